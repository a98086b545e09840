"""Examples grouped by class: held as one tensor, or read piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metazoo.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Examples grouped by class, held as one tensor.

    `x` has shape (M, *), the examples of class 0 first, then those of class 1, ...; `counts` says how many each class
    has, `names` what it is called. uint8 examples are images and are drawn as float32 in [0, 1]; others are drawn as they are.
    """

    x: Tensor
    counts: tuple[int, ...]
    names: tuple[str, ...]
    title: str = "the data"

    def __post_init__(self) -> None:
        if not (len(self.counts) == len(self.names) and sum(self.counts) == len(self.x)):
            raise DataError(
                f"{self.title}: {len(self.x)} examples, {len(self.counts)} counts of sum {sum(self.counts)} and "
                f"{len(self.names)} names do not belong together"
            )

    def to(self, device: torch.device | str) -> Examples:
        """Return the same examples on a device."""
        return replace(self, x=self.x.to(device))

    def over(self, x: Tensor) -> Examples:
        """Return the same classes with other values (features, say) for the same examples."""
        return replace(self, x=x)

    def take(self, rows: Tensor) -> Tensor:
        """Return the examples in these rows, shape (*rows.shape, *), ready for a network."""
        rows = rows.to(self.x.device)
        # index_select copies whole examples; the brackets would go through them element by element, ten times slower.
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

    def stream(self) -> Stream:
        """Return the same examples as a stream."""
        return Stream(
            lambda first, last: self.x[first:last],
            self.counts,
            self.names,
            self.title,
            lambda: hashlib.sha256(as_bytes(self.x)).hexdigest(),
        )


@dataclass(frozen=True)
class Stream:
    """Examples grouped by class, as `Examples` has them, but read piece by piece.

    `read(first, last)` returns those in rows first, ..., last - 1, shape (last - first, *), all of one type and shape.
    `digest()` returns a text that changes when the examples do.
    """

    read: Callable[[int, int], Tensor]
    counts: tuple[int, ...]
    names: tuple[str, ...]
    title: str
    digest: Callable[[], str]

    def examples(self) -> Examples:
        """Read all examples, and hold them."""
        return Examples(self.read(0, sum(self.counts)), self.counts, self.names, self.title)


def as_bytes(x: Tensor) -> memoryview:
    """Return the values of a tensor on the CPU as they lie in memory, one after another in the order of its dimensions."""
    return x.contiguous().flatten().view(torch.uint8).numpy().data


def as_floats(x: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in [0, 1], the same on every device."""
    # By a tensor: a GPU multiplies by the reciprocal of a number, which rounds otherwise than a CPU divides.
    return x.float().div_(torch.full((), 255.0, device=x.device))
