"""Fine-tuning a new head for each of 1,000 tasks on cached features: metazoo's baselines and easyfsl's Finetune."""

from __future__ import annotations

from torch import nn

import metazoo
from metazoo.algorithms.baseline import Baseline, BaselinePlusPlus
from metazoo.evaluation.measure import evaluate
from metazoo.tasks.sampler import EpisodeSampler

from . import rivals
from .drawing import Tasks
from .evaluation import QUERIES, SHOTS, WAYS, easyfsl_accuracy
from .features import Given, features_of
from .kernels.measure import Way
from .suite import OURS, Options, Result, Unavailable

MODEL = "baseline.omniglot"
LINEAR, COSINE, EASYFSL = f"{OURS} baseline", OURS, "easyfsl Finetune"
# Of each head. The rate and the temperature are easyfsl's to choose, and cost nothing; these do well here.
STEPS, RATE, TEMPERATURE = 100, 1e-2, 10.0


def run(options: Options) -> Result:
    tasks, few = options.pick(1000, 10), options.pick(100, 5)
    result = Result(
        f"{tasks:,} 5-way 1-shot 15-query tasks of Omniglot's test characters, features of {MODEL} given: "
        f"a head fine-tuned for {STEPS} steps for each",
        "s",
    )
    model = metazoo.load(MODEL)
    features = features_of(model.backbone, rivals.omniglot(rotations=True).split("test"))
    sampler = EpisodeSampler(features, WAYS, SHOTS, QUERIES)
    spec = metazoo.TaskSpec(features.x.shape[1:], WAYS, classes=model.spec.classes)

    def ours(kind: type[Baseline], steps: int = STEPS) -> Baseline:
        return kind(Given(features.x.shape[1]), spec, kind.Config(finetune_steps=steps))

    cosine, linear = ours(BaselinePlusPlus), ours(Baseline)
    ways: dict[str, Way] = {
        COSINE: lambda: evaluate(cosine, sampler, tasks),
        LINEAR: lambda: evaluate(linear, sampler, tasks),
    }
    accuracies = {
        COSINE: evaluate(cosine, sampler, few).mean().item(),
        LINEAR: evaluate(linear, sampler, few).mean().item(),
    }
    counts = {COSINE: 1.0, LINEAR: 1.0}
    try:
        library = rivals.easyfsl()
    except Unavailable as error:
        result.leave_out(EASYFSL, error)
    else:

        def theirs(steps: int) -> nn.Module:
            return library.methods.Finetune(
                fine_tuning_steps=steps, fine_tuning_lr=RATE, temperature=TEMPERATURE
            )

        untrained = evaluate(ours(BaselinePlusPlus, 0), sampler, few).mean().item()
        same = easyfsl_accuracy(library, theirs(0), features, few, Tasks(sampler, 0, few))
        result.checked(
            f"baseline++ and easyfsl before any step: the accuracy over the first {few} tasks, to 0.1 %",
            abs(same - untrained) < 1e-3,
        )
        accuracies[EASYFSL] = easyfsl_accuracy(
            library, theirs(STEPS), features, few, Tasks(sampler, 0, few)
        )
        ways[EASYFSL] = lambda: easyfsl_accuracy(library, theirs(STEPS), features, few)
        counts[EASYFSL] = few / tasks
        result.notes.append(
            f"{EASYFSL}: measured on {few} tasks and scaled to {tasks:,}; learning rate {RATE:g}"
        )
    settings = {
        name: f"{100 * accuracy:.1f} % on the first {few} tasks"
        for name, accuracy in accuracies.items()
    }
    settings[COSINE] = f"baseline++, {settings[COSINE]}"
    result.race("", ways, options, counts=counts, settings=settings, rounds=3)
    result.aim(20, EASYFSL)
    result.aim(20, EASYFSL, ours=LINEAR)
    return result
