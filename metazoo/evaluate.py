"""Evaluation: a score for every task, its mean, and how far the mean may be off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import distributed
from .algorithm import Algorithm, FeatureLearner
from .episodes import ClassDataset, Dataset, EpisodeSampler, TaskSource
from .errors import MetazooError, UnknownNameError, did_you_mean

# Numbers in the examples that a network, or tasks over features, are given at once: more are no faster, and need more memory.
EMBEDDED_AT_ONCE = 2**18
DRAWN_AT_ONCE = 2**21


class NotANumber(MetazooError):
    """A model's answer is no number."""

    exit_code = 1


@dataclass(frozen=True)
class Score:
    """The mean of per-task scores, half the width of its 95 % interval (1.96 standard errors), and their number."""

    mean: float
    interval: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """Return the score of per-task values (E,)."""
        spread = values.double().std().item() if len(values) > 1 else math.nan
        return cls(values.double().mean().item(), 1.96 * spread / math.sqrt(len(values)), len(values))

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"mean": self.mean, "interval": self.interval, "tasks": self.tasks}


@dataclass(frozen=True)
class Protocol:
    """Which tasks a model is measured on: tasks 0, ..., count - 1 of a split, or an official protocol of the data set by name.

    An official protocol has its own tasks, ways, shots and count.
    """

    split: str = "test"
    ways: int = 5
    shots: int = 1
    queries: int = 15
    seed: int = 0
    count: int = 1000
    name: str | None = None

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Protocol:
        """Return the protocol of a result that `measure` gave."""
        if "protocol" in result:
            return cls(name=result["protocol"])
        drawn = {key: result[key] for key in ("split", "ways", "shots", "queries", "seed") if key in result}
        return cls(**drawn, count=result["tasks"])

    def first(self, count: int) -> Protocol:
        """Return the protocol of its first tasks alone; an official one keeps its own number."""
        return dataclasses.replace(self, count=min(count, self.count))

    def tasks(self, data: Dataset) -> tuple[TaskSource, int]:
        """Return the tasks and their number, or raise UnknownNameError where the data set has no such protocol."""
        if self.name is None:
            return data.tasks(self.split, self.ways, self.shots, self.queries, self.seed), self.count
        official = data.protocols()
        if self.name not in official:
            has = f"it has {', '.join(official)}" if official else "it has none"
            raise UnknownNameError(
                f"{type(data).__name__} has no protocol '{self.name}'", did_you_mean(self.name, official) + has
            )
        return official[self.name]()

    def classes(self, data: Dataset) -> tuple[str, ...]:
        """Return the names of the classes that its tasks are drawn from, as far as they say so."""
        return tuple(getattr(self.tasks(data)[0], "names", ()))

    def as_dict(self, data: Dataset) -> dict[str, Any]:
        """Return what a result says of its protocol."""
        if self.name is not None:
            return {"protocol": self.name}
        values = {"split": self.split, "ways": self.ways, "shots": self.shots, "queries": self.queries, "seed": self.seed}
        if data.regression:
            del values["ways"]
        return values


def measure(
    model: Algorithm, data: Dataset, protocol: Protocol, device: torch.device | str = "cpu",
    watch: Callable[[int, int], None] = lambda done, count: None,
) -> tuple[dict[str, Any], Tensor]:  # fmt: skip
    """Return a model's result under a protocol, ready for JSON, and the score of each task; the data move to the device.

    An official protocol has tasks of its own, and the data stay where they are.
    """
    if isinstance(data, ClassDataset) and protocol.name is None:
        data.move(device)
    tasks, count = protocol.tasks(data)
    values = evaluate(model, tasks, count, device, watch=lambda done: watch(done, count))
    result = {
        "metric": metric(data),
        **Score.of(values).as_dict(),
        **protocol.as_dict(data),
        "transductive": model.transductive,
    }
    return result, values


def metric(data: Dataset) -> str:
    """Return the name of what is measured on a data set's tasks."""
    return "mse" if data.regression else "accuracy"


@torch.no_grad()
def evaluate(
    model: Algorithm, tasks: TaskSource, count: int, device: torch.device | str = "cpu", *, cache: bool = True,
    watch: Callable[[int], None] = lambda done: None,
) -> Tensor:  # fmt: skip
    """Return the score of each of tasks 0, ..., count - 1, shape (count,): accuracy, or mean squared error in regression.

    With `cache`, a FeatureLearner embeds each example that the tasks use once, and the tasks are drawn from the features:
    the same answers, sooner. `watch` is told how many tasks are done. The model is left in the mode that it was in. Processes
    that torchrun started share out the work, and all return all scores.
    """
    was_training = model.training
    model.eval()
    try:
        answer: Callable[[Tensor, Tensor, Tensor], Tensor]
        if cache and isinstance(model, FeatureLearner) and type(tasks) is EpisodeSampler:
            # A subclass may draw in a way of its own.
            tasks = embedded(model, tasks, count, device)
            answer = model.classify
        else:
            answer = model
        one = tasks.draw(0, 1)
        at_once = max(1, DRAWN_AT_ONCE // (one.support_x.numel() + one.query_x.numel()))
        at_once = min(at_once, -(-count // distributed.size()))

        def scored(first: int) -> Tensor:
            episode = tasks.draw(first, min(at_once, count - first)).to(device)
            values = score(answer(episode.support_x, episode.support_y, episode.query_x), episode.query_y).cpu()
            if first + len(episode) < count:
                watch(first + len(episode))
            return values

        values = torch.cat(distributed.mapped(scored, range(0, count, at_once)))
        watch(count)
        return values
    finally:
        model.train(was_training)


def embedded(model: FeatureLearner, tasks: EpisodeSampler, count: int, device: torch.device | str) -> EpisodeSampler:
    """Return the first `count` tasks over features, with every example that they use embedded once."""
    rows = tasks.rows(0, count)
    used = torch.zeros(len(tasks.examples.x), dtype=torch.bool, device=rows.device)
    used[rows.flatten()] = True
    numbers = EMBEDDED_AT_ONCE if torch.device(device).type == "cpu" else DRAWN_AT_ONCE
    parts = used.nonzero().squeeze(1).split(max(1, numbers // tasks.examples.x[0].numel()))
    features = torch.cat(distributed.mapped(lambda part: model.features(tasks.examples.take(part).to(device)), parts))
    places = used.cumsum(0) - 1
    return _Embedded(tasks, places[rows], features)


class _Embedded(EpisodeSampler):
    """The tasks of another sampler over features, from where each task's features are, (tasks, ways, shots + queries)."""

    def __init__(self, tasks: EpisodeSampler, places: Tensor, features: Tensor):
        super().__init__(tasks.examples, tasks.ways, tasks.shots, tasks.queries, tasks.seed)
        self.places, self.features = places, features

    def rows(self, first: int, count: int) -> Tensor:
        return self.places[first : first + count]

    def take(self, rows: Tensor) -> Tensor:
        return self.features.index_select(0, rows.flatten().to(self.features.device)).unflatten(0, rows.shape)


def score(prediction: Tensor, target: Tensor) -> Tensor:
    """Return each task's score (B,): accuracy of logits (B, Q, ways) or mean squared error of values (B, Q, D).

    Raises NotANumber where the prediction is none: argmax would take it for class 0.
    """
    errors = (prediction - target).square().flatten(1).mean(1) if target.is_floating_point() else None
    if prediction.isnan().any() or (errors is not None and not errors.isfinite().all()):
        raise NotANumber(
            "the model answers with what is not a number (nan or infinite)",
            "lower the learning rate, or the inner rate or steps at evaluation",
        )
    if errors is not None:
        return errors
    return (prediction.argmax(-1) == target).float().mean(1)
