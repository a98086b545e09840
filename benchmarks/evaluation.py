"""Evaluating a pretrained protonet on 10,000 tasks: features once, features for every task, and easyfsl on cached features."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.evaluation.measure import evaluate
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler

from . import rivals
from .drawing import Tasks
from .features import IMAGES_AT_ONCE, Given, features_of, labels_of
from .kernels.measure import Way
from .suite import OURS, Options, Result, Unavailable, quickest

MODEL = "protonet.omniglot"
WAYS, SHOTS, QUERIES = 5, 1, 15
PLAIN, UNCACHED, EASYFSL = (
    "plain loop, a task at a time",
    f"{OURS}, cache=False",
    "easyfsl, cached features",
)
IMAGES, FEATURES = "from images", "from features"


def run(options: Options) -> Result:
    tasks, few = options.pick(10_000, 40), options.pick(100, 10)
    result = Result(
        f"{MODEL} evaluated on {tasks:,} 5-way 1-shot 15-query tasks of Omniglot's 1,623 characters",
        "s",
    )
    examples = rivals.characters()
    model = metazoo.load(MODEL)
    sampler = EpisodeSampler(examples, WAYS, SHOTS, QUERIES)
    plain = rivals.plain_conv4(model.backbone).eval()
    networks = {order: rivals.ordered(plain, order) for order in rivals.ORDERS}
    order, loop = quickest(
        {order: plain_loop(network, sampler, few) for order, network in networks.items()}
    )
    network = networks[order]
    ways: dict[str, Way] = {
        OURS: lambda: evaluate(model, sampler, tasks),
        UNCACHED: lambda: evaluate(model, sampler, few, cache=False),
        PLAIN: loop,
    }
    counts = {OURS: 1.0, UNCACHED: few / tasks, PLAIN: few / tasks}
    settings = {
        UNCACHED: f"measured on {few} tasks",
        PLAIN: f"ordinary Conv4, {order} (the quicker), measured on {few} tasks",
    }
    expected = evaluate(model, sampler, few)
    features = features_of(network, examples)
    over_features = EpisodeSampler(features, WAYS, SHOTS, QUERIES)
    bare = ProtoNet(Given(features.x.shape[1]), metazoo.TaskSpec(features.x.shape[1:], WAYS))
    given: dict[str, Way] = {OURS: lambda: evaluate(bare, over_features, tasks)}
    # One query in 75 may be a tie, which rounding decides.
    for name, accuracies in (
        (UNCACHED, ways[UNCACHED]()),
        (PLAIN, loop()),
        (FEATURES, evaluate(bare, over_features, few)),
    ):
        worst = (accuracies - expected).abs().max().item()
        result.checked(
            f"{name}: the accuracy of each of the first {few} tasks, but for one query at most",
            worst < 1.5 / 75,
        )
    try:
        library = rivals.easyfsl()
    except Unavailable as error:
        result.leave_out(EASYFSL, error)
    else:
        classifier = library.methods.PrototypicalNetworks()
        theirs = easyfsl_accuracy(library, classifier, features, few, Tasks(sampler, 0, few))
        close = abs(theirs - expected.mean().item()) < 1e-3
        result.checked(f"{EASYFSL}: the accuracy over the first {few} tasks, to 0.1 %", close)
        ways[EASYFSL] = lambda: easyfsl_accuracy(
            library, classifier, features_of(network, examples), tasks
        )
        given[EASYFSL] = lambda: easyfsl_accuracy(library, classifier, features, tasks)
        settings[EASYFSL] = (
            f"every image embedded once by the ordinary Conv4, {order}, {IMAGES_AT_ONCE} at a time"
        )
    result.race(IMAGES, ways, options, counts=counts, settings=settings, rounds=3)
    result.race(FEATURES, given, options, rounds=3)
    result.aim(50, PLAIN, UNCACHED, part=IMAGES)
    result.aim(10, EASYFSL, part=IMAGES)
    result.aim(10, EASYFSL, part=FEATURES)
    return result


def easyfsl_accuracy(
    library: SimpleNamespace,
    classifier: nn.Module,
    features: Examples,
    count: int,
    tasks: Tasks | None = None,
) -> float:
    """Return what easyfsl's evaluation gives, on tasks of its own sampler or on those given."""
    items = library.features(labels_of(features), features.x, list(features.names))
    sampler = library.sampler(items, WAYS, SHOTS, QUERIES, count)
    loader = DataLoader(
        items, batch_sampler=tasks or sampler, collate_fn=sampler.episodic_collate_fn
    )
    return library.evaluate(classifier, loader, device="cpu", use_tqdm=False)


def plain_loop(network: nn.Module, sampler: EpisodeSampler, count: int) -> Way:
    """Return the loop that embeds the images of each task and compares queries with prototypes."""

    @torch.no_grad()
    def run() -> Tensor:
        accuracies = []
        for i in range(count):
            task = sampler.draw(i, 1)
            z = network(torch.cat([task.support_x[0], task.query_x[0]]))
            support_z, query_z = z[: WAYS * SHOTS], z[WAYS * SHOTS :]
            prototypes = support_z.view(WAYS, SHOTS, -1).mean(1)
            right = torch.cdist(query_z, prototypes).argmin(1) == task.query_y[0]
            accuracies.append(right.float().mean())
        return torch.stack(accuracies)

    return run
