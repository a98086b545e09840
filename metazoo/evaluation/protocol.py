"""Evaluation protocols."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metazoo.base.dataset import Dataset
from metazoo.errors import UnknownNameError, did_you_mean
from metazoo.tasks.episode import TaskSource


@dataclass(frozen=True)
class Protocol:
    """The tasks that a model is measured on: tasks 0, ..., count - 1 of a split.

    `name` selects an official protocol of the data set instead, which has its own tasks, ways,
    shots and count.
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
        """Return the protocol of a result of `measure`."""
        if "protocol" in result:
            return cls(name=result["protocol"])
        drawn = {
            key: result[key]
            for key in ("split", "ways", "shots", "queries", "seed")
            if key in result
        }
        return cls(**drawn, count=result["tasks"])

    def first(self, count: int) -> Protocol:
        """Return the protocol limited to `count` tasks; an official one ignores the limit."""
        return dataclasses.replace(self, count=min(count, self.count))

    def tasks(self, data: Dataset) -> tuple[TaskSource, int]:
        """Return the tasks and their number.

        Raises UnknownNameError if the data set has no official protocol of this name.
        """
        if self.name is None:
            tasks = data.tasks(self.split, self.ways, self.shots, self.queries, self.seed)
            return tasks, self.count
        official = data.protocols()
        if self.name not in official:
            known = f"it has {', '.join(official)}" if official else "it has no official protocols"
            raise UnknownNameError(
                f"{type(data).__name__} has no protocol '{self.name}'",
                did_you_mean(self.name, official) + known,
            )
        return official[self.name]()

    def classes(self, data: Dataset) -> tuple[str, ...]:
        """Return the names of the classes that tasks are drawn from, or () if they are not listed."""
        return tuple(getattr(self.tasks(data)[0], "names", ()))

    def as_dict(self, data: Dataset) -> dict[str, Any]:
        """Return the fields that describe the protocol in a result."""
        if self.name is not None:
            return {"protocol": self.name}
        values = {
            "split": self.split,
            "ways": self.ways,
            "shots": self.shots,
            "queries": self.queries,
            "seed": self.seed,
        }
        if data.regression:
            del values["ways"]
        return values


def metric(data: Dataset) -> str:
    """Return the name of the metric of a data set: "accuracy", or "mse" in regression."""
    return "mse" if data.regression else "accuracy"
