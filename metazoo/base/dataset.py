"""The base classes of data sets."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from metazoo import options
from metazoo.errors import DataError, did_you_mean
from metazoo.tasks.episode import TaskSource
from metazoo.tasks.examples import Examples, Stream
from metazoo.tasks.sampler import EpisodeSampler


class Dataset:
    """The base class of data sets: a source of tasks for each split.

    A subclass declares its options in `Config` and implements `tasks`. Its constructor is cheap: data
    are read when the first task is drawn. Class attributes:

    - `local_options`: names of options that say where the data are stored; a model does not keep them;
    - `training_options`: names of options that change only the split "train";
    - `regression`: whether targets are floats;
    - `drawings`: whether every example is a drawing of light strokes on a dark ground, so that a
      classifier can warn of other pictures;
    - `licence`: the licence of the data;
    - `recipe`: training options that suit the data (fields of `metazoo.Recipe`).
    """

    Config: ClassVar[type[options.Config]] = options.Config
    local_options: ClassVar[tuple[str, ...]] = ()
    training_options: ClassVar[tuple[str, ...]] = ()
    regression: ClassVar[bool] = False
    drawings: ClassVar[bool] = False
    licence: ClassVar[str] = ""
    recipe: ClassVar[Mapping[str, Any]] = {}
    config: options.Config

    def __init__(self, config: options.Config | None = None):
        self.config = config if config is not None else self.Config()

    @property
    def input_format(self) -> dict[str, Any]:
        """How a user's image or text becomes an example (see `metazoo.inputs`).

        Empty if examples are neither images nor texts.
        """
        return {}

    @property
    def notes(self) -> Sequence[str]:
        """What was guessed about the data, in sentences for the user."""
        return ()

    def training_defaults(self) -> Mapping[str, Any]:
        """Return the training options that suit the data: `recipe`, or what depends on the options."""
        return self.recipe

    @classmethod
    def reading_options(cls, input_format: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with which examples have the given input format.

        By default those options that have the name of one of its keys.
        """
        names = {option.name for option in options.read(cls.Config)}
        return {name: input_format[name] for name in input_format if name in names}

    @classmethod
    def options_for(cls, input_format: Mapping[str, Any]) -> dict[str, Any]:
        """Return options for evaluating a model that was trained on other data.

        `input_format` is the model's. By default they are the `reading_options`.
        """
        return cls.reading_options(input_format)

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> TaskSource:
        """Return the tasks of a split: "train", "val" or "test"."""
        raise NotImplementedError

    def protocols(self) -> Mapping[str, Callable[[], tuple[TaskSource, int]]]:
        """Return the official evaluation protocols by name; each returns its tasks and their number."""
        return {}


class ClassDataset(Dataset):
    """A data set of examples grouped by class; its splits have no class in common.

    A subclass implements `load`. Override `streams` as well if the data may not fit in memory, and
    `sampler` to draw tasks in another way.
    """

    _splits: dict[str, Examples] | None = None

    def load(self) -> dict[str, Examples]:
        """Read the data and return the examples of each split.

        `metazoo train` needs "train", "val" and "test"; for evaluation any of them is enough.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        """Yield the examples of each split as streams, readable inside the `with` block."""
        yield {name: examples.stream() for name, examples in self.splits.items()}

    @property
    def sampler(self) -> type[EpisodeSampler]:
        """The class that draws tasks."""
        return EpisodeSampler

    @property
    def splits(self) -> dict[str, Examples]:
        """The examples of each split, loaded on first access."""
        if self._splits is None:
            self._splits = self.load()
        return self._splits

    def split(self, name: str) -> Examples:
        """Return the examples of a split, or raise DataError if there is no such split."""
        if name not in self.splits:
            raise DataError(
                f"{type(self).__name__} has no split '{name}' with these options",
                did_you_mean(name, self.splits) + f"it has {', '.join(self.splits)}",
            )
        return self.splits[name]

    def split_sha256(self) -> str:
        """Return the sha256 of the class names and example counts of every split."""
        named = {
            name: list(zip(examples.names, examples.counts))
            for name, examples in self.splits.items()
        }
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()

    def data_sha256(self) -> str:
        """Return the sha256 of the examples of every split, as they are loaded."""
        digests = {name: examples.digest() for name, examples in self.splits.items()}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def move(self, device: torch.device | str) -> None:
        """Move the data to a device, so that tasks are drawn there without copying."""
        self._splits = {name: examples.to(device) for name, examples in self.splits.items()}

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> EpisodeSampler:
        return self.sampler(self.split(split), ways, shots, queries, seed)
