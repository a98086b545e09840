"""Samplers that draw tasks and batches: task i is a pure function of (seed, i)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metazoo.errors import DataError
from metazoo.tasks import random_on_gpu
from metazoo.tasks.episode import Batch, Episode
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import choose_distinct, random_words, random_words_batch

# Tasks are chosen in blocks, because choosing one small task takes a third of the time of a whole
# block.
BLOCK_TASKS = 64
BLOCK_EXAMPLES = 2**16
# A GPU runs some hundred operations however large the block is.
BLOCK_EXAMPLES_GPU = 2**20


class EpisodeSampler:
    """Draws tasks: `ways` classes, then `shots` support and `queries` query examples of each.

    Classes and examples are drawn without replacement. If the examples lie on a GPU, the tasks are
    chosen there. A subclass that draws in another way overrides `choose` or `choose_examples`; its
    tasks are then chosen on the CPU.

    Raises DataError if there are too few classes, or too few examples in a class, which it names.
    """

    def __init__(self, examples: Examples, ways: int, shots: int, queries: int, seed: int = 0):
        _check_enough(examples, ways, shots, queries)
        self.examples = examples
        self.ways = ways
        self.shots = shots
        self.queries = queries
        self.seed = seed
        self.names = examples.names
        self._counts = np.array(examples.counts)
        self._starts = np.cumsum(self._counts) - self._counts
        overridden = any(
            getattr(type(self), name) is not getattr(EpisodeSampler, name)
            for name in ("choose", "choose_examples")
        )
        self._on_gpu = examples.x.is_cuda and not overridden
        self._block: tuple[int, Tensor] | None = None  # number and rows of the last block

    def choose(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Choose the classes and examples of the tasks first, ..., first + count - 1.

        The choice depends only on the seed and the task's number. It is called for whole blocks, so
        also for tasks that are never drawn.

        Returns:
            The classes in the order of their labels, int64 (count, ways), and the rows of their
            examples, support first, int64 (count, ways, shots + queries).
        """
        words = random_words_batch(
            self.seed, first, count, self.ways * (1 + self.shots + self.queries)
        )
        classes = choose_distinct(words[:, : self.ways], len(self._counts))
        return classes, self.choose_examples(words[:, self.ways :], classes)

    def choose_examples(self, words: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Choose examples of the given classes.

        Args:
            words: random words, uint64 (B, ways * (shots + queries)).
            classes: int64 (B, ways).

        Returns:
            Rows of examples, int64 (B, ways, shots + queries).
        """
        each = self.shots + self.queries
        chosen = choose_distinct(words.reshape(-1, each), self._counts[classes.flatten()])
        return self._starts[classes][:, :, None] + chosen.reshape(*classes.shape, each)

    def rows(self, first: int, count: int) -> Tensor:
        """Return the rows of examples that `choose` returns, int64 (count, ways, shots + queries).

        The last block of tasks is kept, so that consecutive calls do not choose it again.
        """
        size = self._block_size()
        blocks = range(first // size, -(-(first + count) // size))
        start = first - size * blocks.start
        chosen = [self._rows_of_block(block, size) for block in blocks]
        return (chosen[0] if len(chosen) == 1 else torch.cat(chosen))[start : start + count]

    def _block_size(self) -> int:
        examples = self.ways * (self.shots + self.queries)  # of a task
        if self._on_gpu:
            return max(1, BLOCK_EXAMPLES_GPU // examples)
        return min(BLOCK_TASKS, max(1, BLOCK_EXAMPLES // examples))

    def _rows_of_block(self, block: int, size: int) -> Tensor:
        if self._block is None or self._block[0] != block:
            first = size * block
            if self._on_gpu:
                rows = self._choose_on_gpu(first, size)
            else:
                rows = torch.from_numpy(self.choose(first, size)[1])
            self._block = block, rows
        return self._block[1]

    def _choose_on_gpu(self, first: int, count: int) -> Tensor:
        device = self.examples.x.device
        counts = torch.from_numpy(self._counts).to(device)
        starts = torch.from_numpy(self._starts).to(device)
        each = self.shots + self.queries
        return random_on_gpu.choose(self.seed, first, count, self.ways, each, counts, starts)

    def take(self, rows: Tensor) -> Tensor:
        """Return the examples in these rows, in the form that goes into an episode."""
        return self.examples.take(rows)

    def draw(self, first: int, count: int) -> Episode:
        """Return the tasks first, ..., first + count - 1.

        Supports and queries are ordered by class, with ascending labels.
        """
        rows = self.rows(first, count)  # (B, ways, shots + queries)
        labels = torch.arange(self.ways, device=self.examples.x.device)
        return Episode(
            self.take(rows[:, :, : self.shots].flatten(1)),
            labels.repeat_interleave(self.shots).expand(count, -1),
            self.take(rows[:, :, self.shots :].flatten(1)),
            labels.repeat_interleave(self.queries).expand(count, -1),
        )


def _check_enough(examples: Examples, ways: int, shots: int, queries: int) -> None:
    """Raise DataError if there are too few classes or examples for these tasks."""
    if ways > (count := len(examples.counts)):
        raise DataError(
            f"{examples.title} has {count} class{'es' * (count != 1)}, but a task needs {ways}",
            "lower --ways, or add classes; "
            "for a few classes of your own, `metazoo predict` needs no training",
        )
    for name, count in zip(examples.names, examples.counts):
        if count < shots + queries:
            raise DataError(
                f"class '{name}' of {examples.title} has {count} examples, but a task needs "
                f"{shots} for support and {queries} for queries",
                "lower --shots or --queries, or add examples to that class",
            )


class BatchSampler:
    """Draws ordinary batches: every example once an epoch, shuffled by (seed, epoch).

    If the last examples of an epoch do not fill a batch, they are left out.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int = 0):
        self.examples, self.seed = examples, seed
        self.batch_size = min(batch_size, len(examples.x))
        self._labels = torch.repeat_interleave(
            torch.arange(len(examples.counts)), torch.tensor(examples.counts)
        )
        self._epoch: tuple[int, Tensor] | None = None  # number and rows of the last epoch

    def draw(self, first: int, count: int) -> Batch:
        """Return the batches first, ..., first + count - 1 as one batch."""
        rows = torch.cat([self._rows(i) for i in range(first, first + count)])
        return Batch(self.examples.take(rows), self._labels[rows].to(self.examples.x.device))

    def _rows(self, i: int) -> Tensor:
        epoch, place = divmod(i, len(self.examples.x) // self.batch_size)
        if self._epoch is None or self._epoch[0] != epoch:
            words = random_words(self.seed, epoch, len(self.examples.x))
            self._epoch = epoch, torch.from_numpy(np.argsort(words, kind="stable"))
        return self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size]
