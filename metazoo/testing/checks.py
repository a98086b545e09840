"""The checks of `metazoo.testing.check_algorithm`: the first line of each docstring is the rule."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from metazoo import options as declared
from metazoo.base.algorithm import Algorithm, BatchLearner, FeatureLearner, task_loss
from metazoo.base.recipe import Recipe
from metazoo.errors import MetazooError
from metazoo.plugins import checks
from metazoo.tasks.episode import Episode
from metazoo.testing.made_tasks import ClassificationCase

STEPS = 30
# Rounding differs with the batch size, and inner loops amplify it. Real mistakes are far larger.
TOLERANCE = 1e-3


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
    _require(restored == config, f"the options {config} come back from JSON as {restored}")


def takes_no_query_labels(algorithm: type[Algorithm], options: Mapping[str, Any]) -> None:
    """`forward` takes support_x, support_y and query_x only."""
    for method, expected in (
        ("forward", "support_x, support_y, query_x"),
        ("classify", "support_z, support_y, query_z"),
    ):
        if hasattr(algorithm, method):
            names = list(inspect.signature(getattr(algorithm, method)).parameters)[1:]
            _require(
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
            logits = model(episode.support_x, episode.support_y, episode.query_x)
            _require_logits(case, episode, logits, f"in {'training' if training else 'eval'} mode")


def accepts_other_ways(case: ClassificationCase) -> None:
    """Tasks with other ways than in training are answered, or refused with a MetazooError."""
    for trained, ways in ((5, 3), (3, 5)):
        episode = case.episode(ways=ways)
        try:
            logits = _predict(case.model(trained).eval(), episode)
        except MetazooError:
            continue
        _require_logits(case, episode, logits, f"built for {trained} ways and given {ways} ways,")


def trains_every_parameter(case: ClassificationCase) -> None:
    """The training loss is a finite scalar, and every trainable parameter has a finite gradient."""
    model = case.model().train()
    name = "batch_loss" if isinstance(model, BatchLearner) else "loss"
    loss = _training_loss(case, model)
    _require(
        isinstance(loss, Tensor) and loss.shape == (),
        f"`{name}` must return a scalar tensor, for example a mean over the tasks",
    )
    _require(loss.isfinite(), f"`{name}` returned {loss.item()}")
    _require(loss.requires_grad, f"`{name}` has no gradient; do not detach it")
    loss.backward()
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    unused = [key for key, p in parameters.items() if p.grad is None]
    _require(
        not unused,
        f"no gradient reaches {', '.join(unused)}; "
        "create it only if the loss uses it, or register it as a buffer",
    )
    broken = [key for key, p in parameters.items() if not cast(Tensor, p.grad).isfinite().all()]
    _require(not broken, f"the gradient of {', '.join(broken)} is NaN or infinite")


def evaluates_without_side_effects(case: ClassificationCase) -> None:
    """In eval mode `forward` is deterministic and changes nothing."""
    model, episode = _trained_model(case), case.episode()
    before = _state(model)
    first = _predict(model, episode)
    torch.manual_seed(99)
    _require(
        torch.equal(first, _predict(model, episode)),
        "in eval mode it answers the same task differently the second time; "
        "draw random numbers from a generator with a fixed seed",
    )
    with_gradients = model(episode.support_x, episode.support_y, episode.query_x)
    _require(
        _close(with_gradients, first), "in eval mode it answers differently under torch.no_grad()"
    )
    changed = [key for key, value in _state(model).items() if not torch.equal(value, before[key])]
    _require(
        not changed, f"in eval mode `forward` changed {', '.join(changed)}; work on copies instead"
    )
    touched = [name for name, p in model.named_parameters() if p.grad is not None]
    _require(
        not touched,
        f"in eval mode `forward` left a gradient in {', '.join(touched)}; "
        "use torch.autograd.grad instead of backward",
    )


def separates_tasks(case: ClassificationCase) -> None:
    """In eval mode the tasks of a batch do not affect each other."""
    model, episode = _trained_model(case), case.episode()
    together = _predict(model, episode)
    for i in range(len(episode)):
        _require(
            _close(together[i : i + 1], _predict(model, episode[i : i + 1])),
            "it answers a task differently when other tasks are in the batch; "
            "keep statistics and adapted weights per task",
        )


def separates_queries(case: ClassificationCase) -> None:
    """Unless `transductive` is True, the queries of a task do not affect each other."""
    model, episode = _trained_model(case), case.episode()
    _require(
        isinstance(model.transductive, bool),
        f"`transductive` is {model.transductive!r}; it must be True or False",
    )
    if model.transductive:
        return
    x = episode.query_x
    together = _predict(model, episode)
    # The first and the last: an answer may depend only on the queries before it, or after it.
    for i in (0, x.shape[1] - 1):
        this = slice(i, i + 1)
        replaced = 3 * x.flip(1) + 1
        replaced[:, this] = x[:, this]
        for change, answer in (
            ("removed", _predict(model, episode, x[:, this])),
            ("replaced", _predict(model, episode, replaced)[:, this]),
        ):
            _require(
                _close(together[:, this], answer),
                f"the answer for a query changes when the other queries are {change}; "
                "set `transductive` to True, or treat each query independently",
            )


def classifies_features(case: ClassificationCase) -> None:
    """The `forward` of a FeatureLearner is `classify` of `features` in eval mode."""
    model, episode = _trained_model(case), case.unequal()
    if not isinstance(model, FeatureLearner):
        return
    with torch.no_grad():
        support, query = (
            model.features(x.flatten(0, 1)) for x in (episode.support_x, episode.query_x)
        )
        _require(
            support.dim() == 2,
            f"`embed` returned the shape {tuple(support.shape)}, not (N, D); flatten the features",
        )
        _require(
            _close(support[:1], model.features(episode.support_x[:1, 0])),
            "in eval mode `embed` must treat each example independently",
        )
        support, query = (z.unflatten(0, (len(episode), -1)) for z in (support, query))
        logits = model.classify(support, episode.support_y, query)
    _require(
        _close(_predict(model, episode), logits),
        "in eval mode `forward` is not `classify` of `features`; "
        "derive from metazoo.Algorithm instead of FeatureLearner, or do not override `forward`",
    )


def restores_from_state_dict(case: ClassificationCase) -> None:
    """A model that loads a state_dict answers like the model that saved it."""
    model, other, episode = case.model(), case.model(seed=7), case.episode()
    _train(case, model, 2)
    other.load_state_dict(_state(model))
    _require(
        torch.equal(_predict(model.eval(), episode), _predict(other.eval(), episode)),
        "a model with the same state_dict answers differently; "
        "everything that answers depend on must be a parameter or a buffer",
    )


def trains_reproducibly(case: ClassificationCase) -> None:
    """Two training steps from one seed give the same weights, bit for bit."""
    states = []
    for _ in range(2):
        model = case.model()
        _train(case, model, 2)
        states.append(_state(model))
    differ = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    _require(
        not differ,
        f"two trainings with the same seed give different values of {', '.join(differ)}; "
        "draw random numbers from torch's global generator only",
    )


def lowers_the_loss(case: ClassificationCase) -> None:
    """Training on fixed tasks lowers the loss of their queries."""
    model, episode = case.model(), case.episode()
    # In training mode: evaluation may take other inner steps, which can be worse at first.
    before = task_loss(_predict(model.train(), episode), episode.query_y)
    _train(case, model, STEPS)
    after = task_loss(_predict(model, episode), episode.query_y)
    _require(
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
    separates_tasks,
    separates_queries,
    classifies_features,
    restores_from_state_dict,
    trains_reproducibly,
    lowers_the_loss,
]


def _require(condition: object, message: str) -> None:
    # Not an assert statement, which `python -O` removes.
    if not condition:
        raise AssertionError(message)


def _require_logits(case: ClassificationCase, episode: Episode, logits: Tensor, when: str) -> None:
    expected = (*episode.query_x.shape[:2], case.outputs(episode))
    given = f"support {tuple(episode.support_x.shape)}, queries {tuple(episode.query_x.shape)}"
    _require(
        isinstance(logits, Tensor), f"`forward` returned {type(logits).__name__}, not a tensor"
    )
    _require(
        logits.shape == expected,
        f"{when} `forward` returned the shape {tuple(logits.shape)}, not {expected} ({given})",
    )
    _require(
        logits.dtype == torch.float32,
        f"{when} `forward` returned {logits.dtype}, not torch.float32",
    )
    _require(logits.isfinite().all(), f"{when} `forward` returned NaN or infinity ({given})")


def _predict(model: Algorithm, episode: Episode, query_x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        queries = episode.query_x if query_x is None else query_x
        return model(episode.support_x, episode.support_y, queries)


def _training_loss(case: ClassificationCase, model: Algorithm) -> Tensor:
    if isinstance(model, BatchLearner):
        return model.batch_loss(case.batch())
    return model.loss(case.episode())


def _train(case: ClassificationCase, model: Algorithm, steps: int) -> None:
    recipe = declared.build(Recipe, case.algorithm.recipe, "the recipe")
    optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = optimizers.get(recipe.optimizer, torch.optim.SGD)(model.parameters(), lr=recipe.lr)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        _training_loss(case, model).backward()
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
    optimizer.zero_grad()


def _trained_model(case: ClassificationCase) -> Algorithm:
    """Return a model in eval mode after a few steps, so that BatchNorm has seen some data."""
    model = case.model()
    _train(case, model, 5)
    return model.eval()


def _state(model: Algorithm) -> dict[str, Tensor]:
    state = model.state_dict()
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    _require(
        not others,
        f"its state_dict holds {', '.join(others)}, which is not a tensor; "
        "checkpoints store only tensors",
    )
    return {key: value.clone() for key, value in state.items()}


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max() + 1e-6)
