"""The base classes of data sets."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

from metazoo import options
from metazoo.errors import DataError, did_you_mean
from metazoo.tasks.episode import TaskSource
from metazoo.tasks.examples import Examples, Stream
from metazoo.tasks.sampler import EpisodeSampler


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
        named = {
            name: list(zip(examples.names, examples.counts))
            for name, examples in self.splits.items()
        }
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()

    def move(self, device: torch.device | str) -> None:
        """Hold the data on a device from now on, so that drawing a task there copies nothing."""
        self._splits = {name: examples.to(device) for name, examples in self.splits.items()}

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> EpisodeSampler:
        return self.sampler(self.split(split), ways, shots, queries, seed)
