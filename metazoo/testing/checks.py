"""The checks behind `metazoo.testing.check_algorithm`: one function each, its docstring the promise that it holds to."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from metazoo import options as declared
from metazoo.base.algorithm import Algorithm, FeatureLearner, task_loss
from metazoo.base.recipe import Recipe
from metazoo.errors import MetazooError
from metazoo.plugins import checks
from metazoo.tasks.episode import Episode
from metazoo.testing.made_tasks import Classification

STEPS = 30
# Rounding differs between batchings, and inner loops amplify it; what these checks look for is far larger.
TOLERANCE = 1e-3


def _require(held: object, breach: str) -> None:
    # Not an assert statement: those vanish under `python -O`.
    if not held:
        raise AssertionError(breach)


def _answer(model: Algorithm, episode: Episode) -> Tensor:
    with torch.no_grad():
        return model(episode.support_x, episode.support_y, episode.query_x)


def _state(model: Algorithm) -> dict[str, Tensor]:
    state = model.state_dict()
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    _require(
        not strange,
        f"its state_dict holds {', '.join(strange)}, which is no tensor: a checkpoint keeps tensors alone",
    )
    return {key: value.clone() for key, value in state.items()}


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max() + 1e-6)


def _with_queries(episode: Episode, query_x: Tensor) -> Episode:
    return Episode(episode.support_x, episode.support_y, query_x, episode.query_y)


def _train(case: Classification, model: Algorithm, steps: int) -> None:
    recipe = declared.build(Recipe, case.algorithm.recipe, "its recipe")
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer = kinds.get(recipe.optimizer, torch.optim.SGD)(model.parameters(), lr=recipe.lr)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(case.training()).backward()
        if recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizer.step()
    optimizer.zero_grad()


def _trained(case: Classification) -> Algorithm:
    """Return a model after a few steps, in eval mode: at first its normalisation layers know nothing, and answers are faint."""
    model = case.model()
    _train(case, model, 5)
    return model.eval()


def declares_its_options(algorithm: Any, options: Mapping[str, Any]) -> None:
    """Its Config, recipe and `draws` can be read, and its options survive JSON."""
    try:
        checks.check_algorithm("it", algorithm)
    except MetazooError as error:
        raise AssertionError(error.message) from error
    _require(
        algorithm.draws in ("episodes", "batches"),
        f"`draws` is {algorithm.draws!r}, not 'episodes' or 'batches'",
    )
    config = declared.build(algorithm.Config, options, "it")
    again = declared.build(algorithm.Config, json.loads(json.dumps(declared.as_dict(config))), "it")
    _require(again == config, f"its options come back from JSON as {again}, but were {config}")


def takes_no_query_labels(algorithm: type[Algorithm], options: Mapping[str, Any]) -> None:
    """`forward` takes support_x, support_y and query_x alone."""
    for method, wanted in (
        ("forward", "support_x, support_y, query_x"),
        ("classify", "support_z, support_y, query_z"),
    ):
        if hasattr(algorithm, method):
            taken = ", ".join(list(inspect.signature(getattr(algorithm, method)).parameters)[1:])
            _require(
                taken == wanted,
                f"`{method}` must take ({wanted}), so that no query label can enter, but takes ({taken})",
            )


def answers_in_shape(case: Classification) -> None:
    """Logits are finite and of shape (B, Q, ways), in training and in eval mode."""
    episodes = [(case.episode(*size), size[1]) for size in case.sizes] + [(case.unequal(), 3)]
    for episode, ways in episodes:
        for training in (True, False):
            logits = case.model(ways).train(training)(
                episode.support_x, episode.support_y, episode.query_x
            )
            _fits(case, episode, logits, f"in {'training' if training else 'eval'} mode")


def answers_other_ways(case: Classification) -> None:
    """Tasks of another number of ways than trained with are answered, or refused by a MetazooError."""
    for trained, ways in ((5, 3), (3, 5)):
        episode = case.episode(ways=ways)
        try:
            logits = _answer(case.model(trained).eval(), episode)
        except MetazooError:
            continue
        _fits(case, episode, logits, f"built for {trained} ways and asked for {ways}")


def _fits(case: Classification, episode: Episode, logits: Tensor, when: str) -> None:
    wanted = (*episode.query_x.shape[:2], case.outputs(episode))
    _require(
        isinstance(logits, Tensor), f"`forward` returned {type(logits).__name__}, not a tensor"
    )
    given = f"{tuple(episode.support_x.shape)} support and {tuple(episode.query_x.shape)} queries"
    _require(
        logits.shape == wanted,
        f"{when} `forward` returned the shape {tuple(logits.shape)}, not {wanted}, for {given}",
    )
    _require(
        logits.dtype == torch.float32,
        f"{when} `forward` returned {logits.dtype}, not torch.float32",
    )
    _require(
        logits.isfinite().all(),
        f"{when} `forward` returned numbers that are not finite for {given}",
    )


def trains_every_parameter(case: Classification) -> None:
    """`loss` is a finite scalar, and every parameter that requires a gradient gets a finite one."""
    model = case.model().train()
    loss = model.loss(case.training())
    _require(
        isinstance(loss, Tensor) and loss.shape == (),
        "`loss` did not return a tensor of one number",
    )
    _require(loss.isfinite(), f"`loss` is {loss.item()}")
    _require(loss.requires_grad, "`loss` has no gradient")
    loss.backward()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    left = [name for name, p in parameters.items() if p.grad is None]
    _require(
        not left,
        f"no gradient reaches {', '.join(left)}: build it only where the loss uses it, or make it a buffer",
    )
    wild = [name for name, p in parameters.items() if not cast(Tensor, p.grad).isfinite().all()]
    _require(not wild, f"the gradient of {', '.join(wild)} is not finite")


def answers_without_side_effects(case: Classification) -> None:
    """In eval mode `forward` answers the same twice and changes nothing."""
    model, episode = _trained(case), case.episode()
    before = _state(model)
    first = _answer(model, episode)
    torch.manual_seed(99)
    _require(
        torch.equal(first, _answer(model, episode)),
        "in eval mode it answers the same task differently the second time: draw from a generator with a fixed seed there",
    )
    with_grad = model(episode.support_x, episode.support_y, episode.query_x)
    _require(_close(with_grad, first), "in eval mode it answers differently under torch.no_grad()")
    changed = [key for key, value in _state(model).items() if not torch.equal(value, before[key])]
    _require(not changed, f"in eval mode `forward` changed {', '.join(changed)}")
    left = [name for name, p in model.named_parameters() if p.grad is not None]
    _require(not left, f"in eval mode `forward` left a gradient in {', '.join(left)}")


def keeps_tasks_apart(case: Classification) -> None:
    """In eval mode a batch of tasks is answered as each task alone."""
    model, both = _trained(case), case.episode()
    together = _answer(model, both)
    for i in range(len(both)):
        alone = _answer(model, Episode(*(t[i : i + 1] for t in vars(both).values())))
        _require(
            _close(together[i : i + 1], alone),
            "it answers a task differently when it stands in a batch with others",
        )


def keeps_queries_apart(case: Classification) -> None:
    """Unless `transductive`, a query is answered the same whatever the other queries are."""
    model, episode = _trained(case), case.episode()
    _require(
        isinstance(model.transductive, bool),
        f"`transductive` is {model.transductive!r}, neither True nor False",
    )
    if model.transductive:
        return
    x, lie = (
        episode.query_x,
        "`transductive` is False, but the answer for a query changes when the other queries ",
    )
    together = _answer(model, episode)
    # The first and the last: an answer may depend on the queries before it alone, or on those behind it.
    for i in (0, x.shape[1] - 1):
        mine = slice(i, i + 1)
        _require(
            _close(together[:, mine], _answer(model, _with_queries(episode, x[:, mine]))),
            lie + "are taken away",
        )
        others = 3 * x.flip(1) + 1
        others[:, mine] = x[:, mine]
        _require(
            _close(together[:, mine], _answer(model, _with_queries(episode, others))[:, mine]),
            lie + "are others",
        )


def embeds_and_classifies(case: Classification) -> None:
    """In a FeatureLearner `forward` is `classify` of `features` in eval mode, and `embed` treats each example by itself."""
    model, episode = _trained(case), case.unequal()
    if not isinstance(model, FeatureLearner):
        return
    with torch.no_grad():
        support, query = (
            model.features(x.flatten(0, 1)) for x in (episode.support_x, episode.query_x)
        )
        _require(
            support.dim() == 2, f"`embed` returned the shape {tuple(support.shape)}, not (N, D)"
        )
        by_itself = model.features(episode.support_x[:1, 0])
        _require(
            _close(support[:1], by_itself),
            "`embed` does not treat each example by itself in eval mode",
        )
        tasks = len(episode)
        logits = model.classify(
            support.unflatten(0, (tasks, -1)), episode.support_y, query.unflatten(0, (tasks, -1))
        )
    _require(
        _close(_answer(model, episode), logits),
        "in eval mode `forward` is not `classify` of what `features` returns",
    )


def keeps_its_state(case: Classification) -> None:
    """A model with the same state_dict gives the same answers."""
    model, other, episode = case.model(), case.model(seed=7), case.episode()
    _train(case, model, 2)
    other.load_state_dict(_state(model))
    _require(
        torch.equal(_answer(model.eval(), episode), _answer(other.eval(), episode)),
        "a model with its state_dict answers differently: what answers depend on must be a parameter or a buffer",
    )


def repeats_a_step(case: Classification) -> None:
    """Two training steps from one seed are equal bit for bit."""
    states = []
    for _ in range(2):
        model = case.model()
        _train(case, model, 2)
        states.append(_state(model))
    moved = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    _require(
        not moved, f"the same training steps from the same seed give another {', '.join(moved)}"
    )


def learns(case: Classification) -> None:
    """Some training on fixed tasks makes their queries' loss fall."""
    model, episode = case.model(), case.episode()
    # In training mode, whose inner loop is the one that is trained: another number of steps may do worse for a while.
    before = task_loss(_answer(model.train(), episode), episode.query_y)
    _train(case, model, STEPS)
    after = task_loss(_answer(model, episode), episode.query_y)
    _require(
        after < before,
        f"{STEPS} steps on fixed tasks took their queries' loss from {before:.3f} to {after:.3f}, not down",
    )


DECLARATION = [declares_its_options, takes_no_query_labels]
BEHAVIOUR = [
    answers_in_shape,
    answers_other_ways,
    trains_every_parameter,
    answers_without_side_effects,
    keeps_tasks_apart,
    keeps_queries_apart,
    embeds_and_classifies,
    keeps_its_state,
    repeats_a_step,
    learns,
]
