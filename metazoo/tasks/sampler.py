"""How tasks and batches are drawn: task i is a pure function of (seed, i)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metazoo.errors import DataError
from metazoo.tasks import random_on_device
from metazoo.tasks.episode import Batch, Episode
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import distinct, random_rows, random_words

# Tasks are chosen together, whichever of them is asked for: one small one alone costs a third of them all.
TOGETHER = 64


CHOSEN_AT_ONCE = 2**16  # examples


CHOSEN_AT_ONCE_ON_DEVICE = 2**20  # some hundred operations, however many tasks


class EpisodeSampler:
    """Draws `ways` classes, then `shots` support and `queries` other query examples of each, all without replacement.

    Tasks of examples that lie on a GPU are chosen there. Raises DataError, naming the class, where there are too few classes
    or examples.
    """

    def __init__(self, examples: Examples, ways: int, shots: int, queries: int, seed: int = 0):
        if ways > (count := len(examples.counts)):
            raise DataError(
                f"{examples.title} has {count} class{'es' * (count != 1)}, but a task needs {ways}",
                "ask for fewer ways, or add classes; for a few classes of your own, `metazoo predict` needs no training",
            )
        for name, count in zip(examples.names, examples.counts):
            if count < shots + queries:
                raise DataError(
                    f"class '{name}' of {examples.title} has {count} examples, but a task needs {shots} for support and "
                    f"{queries} for queries",
                    "ask for fewer shots or queries, or add examples to that class",
                )
        self.examples, self.ways, self.shots, self.queries, self.seed = (
            examples,
            ways,
            shots,
            queries,
            seed,
        )
        self.names = examples.names
        self._counts = np.array(examples.counts)
        self._starts = np.cumsum(self._counts) - self._counts
        # A subclass that chooses in a way of its own does so in numpy.
        usual = all(
            getattr(type(self), name) is getattr(EpisodeSampler, name)
            for name in ("choose", "choose_examples")
        )
        self._on_device = usual and examples.x.is_cuda
        self._block: tuple[int, Tensor] | None = None

    def choose(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what tasks first, ..., first + count - 1 are made of, from their numbers alone.

        Classes in the order of their labels, int64 (count, ways), and the rows of each one's examples, support first, int64
        (count, ways, shots + queries). A subclass that draws in another way overrides this; it may be asked for more tasks than
        are drawn.
        """
        words = random_rows(self.seed, first, count, self.ways * (1 + self.shots + self.queries))
        classes = distinct(words[:, : self.ways], len(self._counts))
        return classes, self.choose_examples(words[:, self.ways :], classes)

    def choose_examples(self, words: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return rows of examples of classes (B, ways), int64 (B, ways, shots + queries), from as many words for each task."""
        each = self.shots + self.queries
        chosen = distinct(words.reshape(-1, each), self._counts[classes.flatten()])
        return self._starts[classes][:, :, None] + chosen.reshape(*classes.shape, each)

    def rows(self, first: int, count: int) -> Tensor:
        """Return the rows of `choose`, kept from one call to the next where tasks follow each other."""
        each = self.ways * (self.shots + self.queries)
        size = (
            max(1, CHOSEN_AT_ONCE_ON_DEVICE // each)
            if self._on_device
            else min(TOGETHER, max(1, CHOSEN_AT_ONCE // each))
        )
        blocks = range(first // size, -(-(first + count) // size))
        start = first - size * blocks.start
        chosen = [self._rows_of_block(block, size) for block in blocks]
        return (chosen[0] if len(chosen) == 1 else torch.cat(chosen))[start : start + count]

    def _rows_of_block(self, block: int, size: int) -> Tensor:
        if self._block is None or self._block[0] != block:
            first = size * block
            rows = (
                self._choose_on_device(first, size)
                if self._on_device
                else torch.from_numpy(self.choose(first, size)[1])
            )
            self._block = block, rows
        return self._block[1]

    def _choose_on_device(self, first: int, count: int) -> Tensor:
        each, device = self.shots + self.queries, self.examples.x.device
        counts, starts = (
            torch.from_numpy(self._counts).to(device),
            torch.from_numpy(self._starts).to(device),
        )
        return random_on_device.choose(self.seed, first, count, self.ways, each, counts, starts)

    def take(self, rows: Tensor) -> Tensor:
        """Return what stands for the examples in these rows."""
        return self.examples.take(rows)

    def draw(self, first: int, count: int) -> Episode:
        """Return the tasks first, ..., first + count - 1; supports and queries lie class by class, labels ascending."""
        rows = self.rows(first, count)  # (B, ways, shots + queries)
        labels = torch.arange(self.ways, device=self.examples.x.device)
        return Episode(
            self.take(rows[:, :, : self.shots].flatten(1)),
            labels.repeat_interleave(self.shots).expand(count, -1),
            self.take(rows[:, :, self.shots :].flatten(1)),
            labels.repeat_interleave(self.queries).expand(count, -1),
        )


class BatchSampler:
    """Draws ordinary batches: every example once an epoch, in an order that is a pure function of (seed, epoch).

    The examples of an epoch that do not fill a batch are left out of it.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int = 0):
        self.examples, self.seed = examples, seed
        self.batch_size = min(batch_size, len(examples.x))
        self._labels = torch.repeat_interleave(
            torch.arange(len(examples.counts)), torch.tensor(examples.counts)
        )
        self._epoch: tuple[int, Tensor] | None = None

    def draw(self, first: int, count: int) -> Batch:
        """Return batches first, ..., first + count - 1 as one."""
        rows = torch.cat([self._rows(i) for i in range(first, first + count)])
        return Batch(self.examples.take(rows), self._labels[rows].to(self.examples.x.device))

    def _rows(self, i: int) -> Tensor:
        epoch, place = divmod(i, len(self.examples.x) // self.batch_size)
        if self._epoch is None or self._epoch[0] != epoch:
            words = random_words(self.seed, epoch, len(self.examples.x))
            self._epoch = epoch, torch.from_numpy(np.argsort(words, kind="stable"))
        return self._epoch[1][place * self.batch_size : (place + 1) * self.batch_size]
