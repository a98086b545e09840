"""What a task is: support and query examples, and the shapes an algorithm needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


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
        return (
            self
            if tasks.indices(len(self)) == (0, len(self), 1)
            else Episode(*(t[tasks] for t in vars(self).values()))
        )

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
