"""Measuring a model on the tasks of a protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metazoo import distributed
from metazoo.base.algorithm import Algorithm, FeatureLearner
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.encoder import Encoder
from metazoo.evaluation.protocol import Protocol, metric
from metazoo.evaluation.score import Score, score
from metazoo.tasks.episode import Episode, TaskSource
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import choose_distinct, random_words_batch
from metazoo.tasks.sampler import EpisodeSampler

# Values in the examples embedded at once on a CPU: more takes memory and saves no time.
EMBEDDED_AT_ONCE = 2**18
# Examples that an encoder embeds at once on a CPU; it divides them further as suits its network.
ENCODED_AT_ONCE = 64
# Values in the tasks that are answered at once, and in the examples embedded at once on a GPU.
DRAWN_AT_ONCE = 2**21
# Seed of the order of the queries. Samplers use the seeds that users choose, which are small.
ORDER_SEED = 2**63 + 1

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]


def measure(
    model: Algorithm,
    data: Dataset,
    protocol: Protocol,
    device: torch.device | str = "cpu",
    watch: Callable[[int, int], None] = lambda done, count: None,
) -> tuple[dict[str, Any], Tensor]:
    """Return a model's result under a protocol, ready for JSON, and the score of each task.

    Moves a ClassDataset to the device, except for an official protocol, which has its own tasks.
    Calls `watch` with the number of tasks done and the number of all tasks.
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
    model: Algorithm,
    tasks: TaskSource,
    count: int,
    device: torch.device | str = "cpu",
    *,
    cache: bool = True,
    watch: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return the score of each of tasks 0, ..., count - 1, shape (count,).

    Scores are accuracies, or mean squared errors in regression. The model sees the queries of each
    task in random order. Processes started by torchrun share the work, and each returns all scores.

    Args:
        model: evaluated in eval mode; its mode is restored afterwards.
        cache: whether a FeatureLearner embeds each example only once, which gives the same scores.
        watch: called with the number of tasks done.
    """
    was_training = model.training
    model.eval()
    try:
        # Not for a subclass of EpisodeSampler, which may draw tasks in another way.
        if cache and isinstance(model, FeatureLearner) and type(tasks) is EpisodeSampler:
            features = embedded(model, tasks, count, device)
            return _scores(model.classify, features, count, device, watch)
        return _scores(model, tasks, count, device, watch)
    finally:
        model.train(was_training)


def _scores(
    model: Predictor,
    tasks: TaskSource,
    count: int,
    device: torch.device | str,
    watch: Callable[[int], None],
) -> Tensor:
    size = _tasks_at_once(tasks, count)

    def scores_from(first: int) -> Tensor:
        episode = _in_random_order(tasks.draw(first, min(size, count - first)).to(device), first)
        prediction = model(episode.support_x, episode.support_y, episode.query_x)
        values = score(prediction, episode.query_y).cpu()
        if first + len(episode) < count:
            watch(first + len(episode))
        return values

    values = torch.cat(distributed.mapped(scores_from, range(0, count, size)))
    watch(count)
    return values


def _in_random_order(episode: Episode, first: int) -> Episode:
    """Return the same tasks with their queries in an order that depends on the task's number only.

    `first` is the number of the first task. Sources give the queries class by class, so a model
    could tell the class from the position.
    """
    tasks, queries = episode.query_x.shape[:2]
    order = choose_distinct(random_words_batch(ORDER_SEED, first, tasks, queries), queries)
    # Flat rows, because index_select copies whole examples.
    rows = torch.from_numpy(order + queries * np.arange(tasks)[:, None]).flatten()
    rows = rows.to(episode.query_x.device)

    def reorder(x: Tensor) -> Tensor:
        return x.flatten(0, 1).index_select(0, rows).unflatten(0, (tasks, queries))

    return dataclasses.replace(
        episode, query_x=reorder(episode.query_x), query_y=reorder(episode.query_y)
    )


def _tasks_at_once(tasks: TaskSource, count: int) -> int:
    """Return how many tasks fit into memory at once, at most the share of one process."""
    task = tasks.draw(0, 1)
    fitting = DRAWN_AT_ONCE // (task.support_x.numel() + task.query_x.numel())
    return min(max(1, fitting), -(-count // distributed.size()))


def embedded(
    model: FeatureLearner, tasks: EpisodeSampler, count: int, device: torch.device | str
) -> EpisodeSampler:
    """Return the first `count` tasks with features for examples, each example embedded once."""
    rows = tasks.rows(0, count)
    used = torch.zeros(len(tasks.examples.x), dtype=torch.bool, device=rows.device)
    used[rows.flatten()] = True
    features = _features(model, tasks.examples, used.nonzero().squeeze(1), device)
    positions = used.cumsum(0) - 1  # of each example among those used
    return _FeatureSampler(tasks, positions[rows], features)


@torch.no_grad()
def embedded_examples(
    model: FeatureLearner, examples: Examples, device: torch.device | str
) -> Examples:
    """Return the same classes with the features of each example."""
    rows = torch.arange(len(examples.x), device=examples.x.device)
    return examples.with_values(_features(model, examples, rows, device))


def _features(
    model: FeatureLearner, examples: Examples, rows: Tensor, device: torch.device | str
) -> Tensor:
    """Return the features of the examples in these rows; processes share the work."""
    on_cpu = torch.device(device).type == "cpu"
    size = (EMBEDDED_AT_ONCE if on_cpu else DRAWN_AT_ONCE) // examples.x[0].numel()
    least = ENCODED_AT_ONCE if isinstance(model.backbone, Encoder) else 1
    parts = rows.split(max(least, size))
    return torch.cat(
        distributed.mapped(lambda part: model.features(examples.take(part).to(device)), parts)
    )


class _FeatureSampler(EpisodeSampler):
    """The tasks of another sampler, with features for examples.

    `positions` (tasks, ways, shots + queries) are the rows of each task in `features`.
    """

    def __init__(self, tasks: EpisodeSampler, positions: Tensor, features: Tensor):
        super().__init__(tasks.examples, tasks.ways, tasks.shots, tasks.queries, tasks.seed)
        self.positions, self.features = positions, features

    def rows(self, first: int, count: int) -> Tensor:
        return self.positions[first : first + count]

    def take(self, rows: Tensor) -> Tensor:
        features = self.features.index_select(0, rows.flatten().to(self.features.device))
        return features.unflatten(0, rows.shape)
