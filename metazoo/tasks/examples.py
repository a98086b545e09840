"""Examples grouped by class: held in one tensor, or read piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metazoo.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Examples grouped by class, held in one tensor.

    uint8 examples are images, and are drawn as float32 in [0, 1]. Other types are drawn unchanged.

    Attributes:
        x: all examples, shape (M, *): those of class 0, then those of class 1, and so on.
        counts: number of examples of each class.
        names: name of each class.
        title: name of the data in error messages.

    Raises DataError if the lengths of `x`, `counts` and `names` do not agree.
    """

    x: Tensor
    counts: tuple[int, ...]
    names: tuple[str, ...]
    title: str = "the data"

    def __post_init__(self) -> None:
        if not (len(self.counts) == len(self.names) and sum(self.counts) == len(self.x)):
            raise DataError(
                f"{self.title}: the lengths do not agree: {len(self.x)} examples, "
                f"{len(self.counts)} counts that sum to {sum(self.counts)}, "
                f"{len(self.names)} names"
            )

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on a device."""
        return replace(self, x=self.x.to(device))

    def with_values(self, x: Tensor) -> Examples:
        """Return the same classes with other values for each example, such as its features."""
        return replace(self, x=x)

    def take(self, rows: Tensor) -> Tensor:
        """Return the examples in these rows, ready for a network, shape (*rows.shape, *)."""
        rows = rows.to(self.x.device)
        # index_select copies whole examples. Indexing with brackets copies single elements, which
        # takes ten times as long.
        x = self.x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return as_floats(x) if x.dtype == torch.uint8 else x

    def merge(self, other: Examples, title: str) -> Examples:
        """Return these classes followed by the other's."""
        return Examples(
            torch.cat([self.x, other.x]),
            self.counts + other.counts,
            self.names + other.names,
            title,
        )

    def digest(self) -> str:
        """Return a string that changes when the examples change."""
        return hashlib.sha256(as_bytes(self.x.cpu())).hexdigest()

    def stream(self) -> Stream:
        """Return the same examples as a stream."""
        return Stream(
            lambda first, last: self.x[first:last],
            self.counts,
            self.names,
            self.title,
            self.digest,
        )


@dataclass(frozen=True)
class Stream:
    """Examples grouped by class, as in `Examples`, but read piece by piece.

    Attributes:
        read: `read(first, last)` returns the rows first, ..., last - 1, shape (last - first, *).
            All rows have the same type and shape.
        counts: number of examples of each class.
        names: name of each class.
        title: name of the data in error messages.
        digest: `digest()` returns a string that changes when the examples change.
    """

    read: Callable[[int, int], Tensor]
    counts: tuple[int, ...]
    names: tuple[str, ...]
    title: str
    digest: Callable[[], str]

    def examples(self) -> Examples:
        """Read all examples into memory."""
        return Examples(self.read(0, sum(self.counts)), self.counts, self.names, self.title)


def as_bytes(x: Tensor) -> memoryview:
    """Return the values of a CPU tensor as bytes in C order."""
    return x.contiguous().flatten().view(torch.uint8).numpy().data


def as_floats(x: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1], with the same values on every device."""
    # The divisor is a tensor: divided by a number, a GPU multiplies by the reciprocal instead,
    # which rounds differently from the CPU's division.
    return x.float().div_(torch.full((), 255.0, device=x.device))
