"""Measuring a model: a score for each task of a protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metazoo import distributed
from metazoo.base.algorithm import Algorithm, FeatureLearner
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.evaluation.protocol import Protocol, metric
from metazoo.evaluation.score import Score, score
from metazoo.tasks.episode import TaskSource
from metazoo.tasks.sampler import EpisodeSampler

# Numbers in the examples that a network, or tasks over features, are given at once: more are no faster, and need more memory.
EMBEDDED_AT_ONCE = 2**18


DRAWN_AT_ONCE = 2**21


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
            values = score(
                answer(episode.support_x, episode.support_y, episode.query_x), episode.query_y
            ).cpu()
            if first + len(episode) < count:
                watch(first + len(episode))
            return values

        values = torch.cat(distributed.mapped(scored, range(0, count, at_once)))
        watch(count)
        return values
    finally:
        model.train(was_training)


def embedded(
    model: FeatureLearner, tasks: EpisodeSampler, count: int, device: torch.device | str
) -> EpisodeSampler:
    """Return the first `count` tasks over features, with every example that they use embedded once."""
    rows = tasks.rows(0, count)
    used = torch.zeros(len(tasks.examples.x), dtype=torch.bool, device=rows.device)
    used[rows.flatten()] = True
    numbers = EMBEDDED_AT_ONCE if torch.device(device).type == "cpu" else DRAWN_AT_ONCE
    parts = used.nonzero().squeeze(1).split(max(1, numbers // tasks.examples.x[0].numel()))
    features = torch.cat(
        distributed.mapped(lambda part: model.features(tasks.examples.take(part).to(device)), parts)
    )
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
        return self.features.index_select(0, rows.flatten().to(self.features.device)).unflatten(
            0, rows.shape
        )
