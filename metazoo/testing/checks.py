"""The checks of `metazoo.testing.check_algorithm`: the first line of each docstring is the rule.

`metazoo.testing.independence` has those of what answers may depend on.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from metazoo import options as declared
from metazoo.base.algorithm import Algorithm, BatchLearner, FeatureLearner, task_loss
from metazoo.base.backbone import check_second_derivative
from metazoo.errors import MetazooError
from metazoo.plugins import checks
from metazoo.tasks.episode import Episode
from metazoo.testing import independence
from metazoo.testing.comparing import close, predict, require, state_of
from metazoo.testing.made_tasks import STEPS, ClassificationCase


def declares_config_and_recipe(algorithm: Any, options: Mapping[str, Any]) -> None:
    """The Config and the recipe are valid, and the options survive a round trip through JSON."""
    try:
        checks.check_algorithm("it", algorithm)
    except MetazooError as error:
        raise AssertionError(error.message) from error
    config = declared.build(algorithm.Config, options, "it")
    restored = declared.build(
        algorithm.Config, json.loads(json.dumps(declared.as_dict(config))), "it"
    )
    require(restored == config, f"the options {config} come back from JSON as {restored}")


def takes_no_query_labels(algorithm: type[Algorithm], options: Mapping[str, Any]) -> None:
    """`forward` takes support_x, support_y and query_x only."""
    for method, expected in (
        ("forward", "support_x, support_y, query_x"),
        ("classify", "support_z, support_y, query_z"),
    ):
        if hasattr(algorithm, method):
            names = list(inspect.signature(getattr(algorithm, method)).parameters)[1:]
            require(
                ", ".join(names) == expected,
                f"`{method}` takes ({', '.join(names)}); declare it with ({expected}), "
                "so that it never sees query labels",
            )


def returns_logits(case: ClassificationCase) -> None:
    """Logits are finite float32 of shape (B, Q, ways), in training and in eval mode."""
    tasks = [(case.episode(*size), size[1]) for size in case.sizes] + [(case.unequal(), 3)]
    for episode, ways in tasks:
        for training in (True, False):
            model = case.model(ways).train(training)
            # Clones, so that a model that changes its inputs spoils no other call.
            inputs = (episode.support_x, episode.support_y, episode.query_x)
            logits = model(*(x.clone() for x in inputs))
            mode = "training" if training else "eval"
            _require_logits(model.spec.outputs, episode, logits, f"in {mode} mode")


def accepts_other_ways(case: ClassificationCase) -> None:
    """Tasks with other ways than in training are answered, or refused with a MetazooError."""
    for trained, ways in ((5, 3), (3, 5)):
        episode = case.episode(ways=ways)
        try:
            logits = predict(case.model(trained).eval(), episode)
        except MetazooError:
            continue
        _require_logits(
            case.spec(ways).outputs,
            episode,
            logits,
            f"built for {trained} ways and given {ways} ways,",
        )


def trains_every_parameter(case: ClassificationCase) -> None:
    """The training loss is a finite scalar, and every trainable parameter has a finite gradient."""
    model = case.model().train()
    if not _trains(model):
        return
    name = "batch_loss" if isinstance(model, BatchLearner) else "loss"
    if model.needs_float32:
        check_second_derivative(model.backbone, case.episode().support_x[0])
    loss = case.training_loss(model)
    require(
        isinstance(loss, Tensor) and loss.shape == (),
        f"`{name}` must return a scalar tensor, for example a mean over the tasks",
    )
    require(loss.isfinite(), f"`{name}` returned {loss.item()}")
    require(loss.requires_grad, f"`{name}` has no gradient; do not detach it")
    loss.backward()
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    unused = [key for key, p in parameters.items() if p.grad is None]
    require(
        not unused,
        f"no gradient reaches {', '.join(unused)}; "
        "create it only if the loss uses it, register it as a buffer, or, to leave it as it is, "
        "call requires_grad_(False)",
    )
    broken = [key for key, p in parameters.items() if not cast(Tensor, p.grad).isfinite().all()]
    require(not broken, f"the gradient of {', '.join(broken)} is NaN or infinite")


def averages_the_loss(case: ClassificationCase) -> None:
    """The training loss is a mean over the tasks of a meta-batch."""
    model, tasks = case.model().train(), case.episode()
    if isinstance(model, BatchLearner) or not _trains(model):
        return
    one, other = tasks[:1], tasks[1:]

    def loss_of(*parts: Episode) -> Tensor:
        torch.manual_seed(0)
        return model.loss(Episode(*(torch.cat(x) for x in zip(*(vars(p).values() for p in parts)))))

    single, copies = loss_of(one), loss_of(one, one, one, one)
    require(
        (copies - single).abs() <= single.abs() + 1e-6,
        f"`loss` is {single:.3g} for a task and {copies:.3g} for four copies of it; "
        "return the mean over the tasks",
    )
    require(
        not torch.equal(loss_of(one, other), loss_of(one, one)),
        "`loss` does not depend on the second task of a meta-batch; return the mean over all tasks",
    )


def evaluates_without_side_effects(case: ClassificationCase) -> None:
    """In eval mode `forward` changes nothing: its inputs, the model, the settings of torch."""
    model, episode = case.trained_model(), case.episode()
    inputs = {name: x for name, x in vars(episode).items() if name != "query_y"}
    given = {name: x.clone() for name, x in inputs.items()}
    before, settings, modes = state_of(model), _torch_settings(), _modes(model)
    with torch.no_grad():
        model(**inputs)
        grad_mode = torch.is_grad_enabled()
    changed = [key for key, value in state_of(model).items() if not torch.equal(value, before[key])]
    changed += [name for name, x in inputs.items() if not torch.equal(x, given[name])]
    require(
        not changed, f"in eval mode `forward` changed {', '.join(changed)}; work on copies instead"
    )
    touched = [name for name, p in model.named_parameters() if p.grad is not None]
    require(
        not touched,
        f"in eval mode `forward` left a gradient in {', '.join(touched)}; "
        "use torch.autograd.grad instead of backward",
    )
    require(
        _modes(model) == modes,
        "in eval mode `forward` changed which modules train, or which parameters need gradients; "
        "restore them, or work on copies",
    )
    require(
        (_torch_settings(), grad_mode) == (settings, False),
        "`forward` changed a setting of torch: gradient mode, threads or default dtype; "
        "set it in a `with` block that restores it",
    )
    require(
        not torch.equal(
            _random_state_after(model, episode, 1), _random_state_after(model, episode, 2)
        ),
        "in eval mode `forward` seeds torch's global generator; use a generator of its own",
    )


def classifies_features(case: ClassificationCase) -> None:
    """The `forward` of a FeatureLearner is `classify` of `features` in eval mode."""
    model, episode = case.trained_model(), case.unequal()
    if not isinstance(model, FeatureLearner):
        return
    with torch.no_grad():
        support, query = (
            model.features(x.flatten(0, 1)) for x in (episode.support_x, episode.query_x)
        )
        require(
            support.dim() == 2,
            f"`embed` returned the shape {tuple(support.shape)}, not (N, D); flatten the features",
        )
        require(
            close(support[:1], model.features(episode.support_x[:1, 0])),
            "in eval mode `embed` must treat each example independently",
        )
        support, query = (z.unflatten(0, (len(episode), -1)) for z in (support, query))
        logits = model.classify(support, episode.support_y, query)
    require(
        close(predict(model, episode), logits),
        "in eval mode `forward` is not `classify` of `features`; "
        "derive from metazoo.Algorithm instead of FeatureLearner, or do not override `forward`",
    )


def restores_from_state_dict(case: ClassificationCase) -> None:
    """A model that loads a state_dict answers like the model that saved it."""
    model, other, episode = case.trained_model(), case.model(seed=7), case.episode()
    other.load_state_dict(state_of(model))
    require(
        torch.equal(predict(model, episode), predict(other.eval(), episode)),
        "a model with the same state_dict answers differently; "
        "everything that answers depend on must be a parameter or a buffer",
    )


def trains_reproducibly(case: ClassificationCase) -> None:
    """Two training steps from one seed give the same weights, bit for bit."""
    states = []
    for _ in range(2):
        model = case.model()
        case.train(model, 2)
        states.append(state_of(model))
    differ = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    require(
        not differ,
        f"two trainings with the same seed give different values of {', '.join(differ)}; "
        "draw random numbers from torch's global generator only",
    )


def lowers_the_loss(case: ClassificationCase) -> None:
    """Training on fixed tasks lowers the loss of their queries."""
    model, episode = case.model(), case.episode()
    if not _trains(model):
        return
    # In training mode: evaluation may take other inner steps, which can be worse at first.
    before = task_loss(predict(model.train(), episode), episode.query_y)
    after = task_loss(predict(case.trained_model().train(), episode), episode.query_y)
    require(
        after < before,
        f"the queries' loss did not fall in {STEPS} steps on fixed tasks: "
        f"from {before:.3f} to {after:.3f}; check the sign of the loss and the recipe's `lr`",
    )


CLASS_CHECKS = [declares_config_and_recipe, takes_no_query_labels]
MODEL_CHECKS = [
    returns_logits,
    accepts_other_ways,
    trains_every_parameter,
    evaluates_without_side_effects,
    *independence.CHECKS,
    classifies_features,
    restores_from_state_dict,
    trains_reproducibly,
    lowers_the_loss,
    averages_the_loss,
]


def _require_logits(outputs: int, episode: Episode, logits: Tensor, when: str) -> None:
    expected = (*episode.query_x.shape[:2], outputs)
    given = f"support {tuple(episode.support_x.shape)}, queries {tuple(episode.query_x.shape)}"
    require(isinstance(logits, Tensor), f"`forward` returned {type(logits).__name__}, not a tensor")
    require(
        logits.shape == expected,
        f"{when} `forward` returned the shape {tuple(logits.shape)}, not {expected} ({given})",
    )
    require(
        logits.dtype == torch.float32,
        f"{when} `forward` returned {logits.dtype}, not torch.float32",
    )
    require(logits.isfinite().all(), f"{when} `forward` returned NaN or infinity ({given})")


def _trains(model: Algorithm) -> bool:
    return any(p.requires_grad for p in model.parameters())


def _modes(model: Algorithm) -> list[bool]:
    return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]


def _torch_settings() -> tuple[object, ...]:
    return torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()


def _random_state_after(model: Algorithm, episode: Episode, seed: int) -> Tensor:
    torch.manual_seed(seed)
    predict(model, episode)
    return torch.get_rng_state()
