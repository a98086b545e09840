"""Tasks as tensors: support and query examples, and the shapes that an algorithm is built for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class TaskSpec:
    """The facts about its tasks that an algorithm needs when it is built.

    Attributes:
        input_shape: shape of one example.
        outputs: ways of a training task; in regression, the size of one target.
        classes: number of base classes in the training split, or 0 if it has no classes.
        regression: whether targets are floats.
        integers: whether examples are integers, such as the token ids of a text.
    """

    input_shape: tuple[int, ...]
    outputs: int
    classes: int = 0
    regression: bool = False
    integers: bool = False


@dataclass(frozen=True)
class Episode:
    """A batch of tasks of equal size.

    For B tasks, the shapes are `support_x` (B, S, *), `support_y` (B, S), `query_x` (B, Q, *) and
    `query_y` (B, Q). Labels are int64 in [0, ways), and every class has at least one support
    example. In regression, targets are floats of shape (B, S, D) and (B, Q, D).
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, tasks: slice) -> Episode:
        """Return some of the tasks as an episode."""
        if tasks.indices(len(self)) == (0, len(self), 1):
            # The same tensors, because `ways_of` remembers what it read from labels on a GPU.
            return self
        return Episode(*(tensor[tasks] for tensor in vars(self).values()))

    def to(self, device: torch.device | str) -> Episode:
        """Return the same tasks on a device."""
        return Episode(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


@dataclass(frozen=True)
class Batch:
    """Labelled examples of the base classes, for ordinary classification.

    Shapes: `x` (N, *), `y` (N,). Labels are int64 in [0, classes).
    """

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the same examples on a device."""
        return Batch(self.x.to(device, non_blocking=True), self.y.to(device, non_blocking=True))


class TaskSource(Protocol):
    """An endless, numbered supply of tasks.

    A source that draws its tasks from classes may list them in an attribute `names`, a tuple.
    """

    def draw(self, first: int, count: int) -> Episode:
        """Return the tasks first, first + 1, ..., first + count - 1."""
        ...


# For labels on a GPU: the version of the tensor that was read, and its number of ways.
_known_ways: WeakIdKeyDictionary = WeakIdKeyDictionary()


def ways_of(support_y: Tensor) -> int:
    """Return the number of classes in a batch of tasks, given its support labels (B, S).

    Labels on a GPU are read once and again only after they change. Reading them waits until the GPU
    has finished its work, and is not possible inside a CUDA graph.
    """
    if not support_y.is_cuda or support_y.is_inference():
        return int(support_y.max()) + 1
    version, ways = _known_ways.get(support_y, (None, 0))
    if version != support_y._version:
        ways = int(support_y.max()) + 1
        _known_ways[support_y] = support_y._version, ways
    return ways
