"""Tasks, and how they are drawn: task i is a pure function of (seed, i)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from . import device_drawing, options
from .drawing import distinct, random_rows, random_words
from .errors import DataError, did_you_mean
from .examples import Examples, Stream


@dataclass(frozen=True)
class TaskSpec:
    """What an algorithm must know of its tasks before it is built.

    `input_shape` is the shape of one example, `outputs` the ways of a training task or, in regression, the size of one
    target, `classes` the number of base classes in the training split (0 where there are none).
    """

    input_shape: tuple[int, ...]
    outputs: int
    classes: int = 0
    regression: bool = False


@dataclass(frozen=True)
class Episode:
    """One or more tasks of equal size, the task dimension first.

    Shapes: `support_x` (B, S, *), `support_y` (B, S), `query_x` (B, Q, *), `query_y` (B, Q). Labels are int64 in
    [0, ways), and every class has at least one support example; in regression targets are float, (B, S, D) and (B, Q, D).
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, tasks: slice) -> Episode:
        """Return some of the tasks; all of them are the episode itself, whose labels on a GPU may have been read."""
        return self if tasks.indices(len(self)) == (0, len(self), 1) else Episode(*(t[tasks] for t in vars(self).values()))

    def to(self, device: torch.device | str) -> Episode:
        """Return the same tasks on a device."""
        return Episode(*(t.to(device, non_blocking=True) for t in vars(self).values()))


@dataclass(frozen=True)
class Batch:
    """Labelled examples of the base classes, for ordinary classification: `x` (N, *), `y` (N,) int64 in [0, classes)."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the same examples on a device."""
        return Batch(self.x.to(device, non_blocking=True), self.y.to(device, non_blocking=True))


class TaskSource(Protocol):
    """An endless numbered supply of tasks; one that is drawn from classes may have their `names`, a tuple."""

    def draw(self, first: int, count: int) -> Episode:
        """Return the tasks first, first + 1, ..., first + count - 1."""
        ...


# What was read from labels that lie on a GPU, and which version of them it was.
_ways_read: WeakIdKeyDictionary = WeakIdKeyDictionary()


def ways_of(support_y: Tensor) -> int:
    """Return the number of classes in a batch of tasks, from its support labels (B, S).

    Labels on a GPU are read once, for as long as they are not changed: reading waits for all that the GPU has still to do, and
    cannot be part of a CUDA graph.
    """
    if not support_y.is_cuda or support_y.is_inference():
        return int(support_y.max()) + 1
    version, ways = _ways_read.get(support_y, (None, 0))
    if version != support_y._version:
        ways = int(support_y.max()) + 1
        _ways_read[support_y] = support_y._version, ways
    return ways


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
        self.examples, self.ways, self.shots, self.queries, self.seed = examples, ways, shots, queries, seed
        self.names = examples.names
        self._counts = np.array(examples.counts)
        self._starts = np.cumsum(self._counts) - self._counts
        # A subclass that chooses in a way of its own does so in numpy.
        usual = all(getattr(type(self), name) is getattr(EpisodeSampler, name) for name in ("choose", "choose_examples"))
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
        size = max(1, CHOSEN_AT_ONCE_ON_DEVICE // each) if self._on_device else min(TOGETHER, max(1, CHOSEN_AT_ONCE // each))
        blocks = range(first // size, -(-(first + count) // size))
        start = first - size * blocks.start
        chosen = [self._rows_of_block(block, size) for block in blocks]
        return (chosen[0] if len(chosen) == 1 else torch.cat(chosen))[start : start + count]

    def _rows_of_block(self, block: int, size: int) -> Tensor:
        if self._block is None or self._block[0] != block:
            first = size * block
            rows = self._choose_on_device(first, size) if self._on_device else torch.from_numpy(self.choose(first, size)[1])
            self._block = block, rows
        return self._block[1]

    def _choose_on_device(self, first: int, count: int) -> Tensor:
        each, device = self.shots + self.queries, self.examples.x.device
        counts, starts = torch.from_numpy(self._counts).to(device), torch.from_numpy(self._starts).to(device)
        return device_drawing.choose(self.seed, first, count, self.ways, each, counts, starts)

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
        self._labels = torch.repeat_interleave(torch.arange(len(examples.counts)), torch.tensor(examples.counts))
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


class Dataset:
    """Something that tasks are drawn from; the base of every data set.

    A subclass declares its options in `Config` and implements `tasks`. `local_options` names those options that say where
    the data lie rather than what they are: they are not kept with a model; `training_options` those that change the split
    "train" alone. `licence` is that of the data, `recipe` holds the training options that suit them (a mapping of fields of
    `metazoo.Recipe`), `regression` says whether targets are numbers. Making one is cheap: data are read when first drawn.
    """

    Config: ClassVar[type[options.Config]] = options.Config
    local_options: ClassVar[tuple[str, ...]] = ()
    training_options: ClassVar[tuple[str, ...]] = ()
    regression: ClassVar[bool] = False
    licence: ClassVar[str] = ""
    recipe: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: options.Config | None = None):
        self.config: Any = config if config is not None else self.Config()

    @property
    def input_format(self) -> dict[str, Any]:
        """How an image of a user's becomes an example: the arguments of `metazoo.images.decode`; empty if it is no image."""
        return {}

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> TaskSource:
        """Return the supply of tasks of one split: "train", "val" or "test"."""
        raise NotImplementedError

    def protocols(self) -> Mapping[str, Callable[[], tuple[TaskSource, int]]]:
        """Return official evaluations by name: each gives its tasks and how many there are."""
        return {}


class ClassDataset(Dataset):
    """A data set of examples grouped by class, its splits disjoint sets of classes.

    A subclass implements `load`, which returns the examples of each split. One whose data may be larger than memory
    implements `streams`, too, and one that draws its tasks in its own way, `sampler`.
    """

    _splits: dict[str, Examples] | None = None

    def load(self) -> dict[str, Examples]:
        """Read the data and return the examples of each split.

        `metazoo train` needs "train", "val" and "test"; data that are only evaluated on may lack any of them.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        """Give the examples of each split as streams, which can be read while it lasts."""
        yield {name: examples.stream() for name, examples in self.splits.items()}

    @property
    def sampler(self) -> type[EpisodeSampler]:
        """What draws the tasks."""
        return EpisodeSampler

    @property
    def splits(self) -> dict[str, Examples]:
        """The examples of each split, read when first asked for."""
        if self._splits is None:
            self._splits = self.load()
        return self._splits

    def split(self, name: str) -> Examples:
        """Return the examples of one split, or raise DataError where there is none of that name."""
        if name not in self.splits:
            raise DataError(
                f"{type(self).__name__} has no split '{name}' with these options",
                did_you_mean(name, self.splits) + f"it has {', '.join(self.splits)}",
            )
        return self.splits[name]

    def split_sha256(self) -> str:
        """Return the sha256 of which classes are in which split, and how many examples each has."""
        named = {name: list(zip(examples.names, examples.counts)) for name, examples in self.splits.items()}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()

    def move(self, device: torch.device | str) -> None:
        """Hold the data on a device from now on, so that drawing a task there copies nothing."""
        self._splits = {name: examples.to(device) for name, examples in self.splits.items()}

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> EpisodeSampler:
        return self.sampler(self.split(split), ways, shots, queries, seed)
