"""Batches of texts of similar length, so that little time goes into padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Tokens in a batch: on a CPU, more take longer; a GPU works on many at once.
ON_CPU, ON_GPU = 2**10, 2**15


def by_length(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)`, computed in batches of rows of similar length.

    Args:
        function: maps token ids (N, L) to a value (N, *); padding must not change it.
        x: token ids (N, length), padded by 0 at the end.
    """
    tokens = ON_CPU if x.device.type == "cpu" else ON_GPU
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    lengths, order = ((x != 0) * places).amax(1).clamp(min=1).sort(stable=True)
    parts = [
        function(x[order[first:last], : int(lengths[last - 1])])
        for first, last in _batches(lengths.tolist(), tokens)
    ]
    return torch.cat(parts)[order.argsort()]


def _batches(lengths: list[int], tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last row (exclusive) of each batch, for sorted lengths."""
    first = 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or (last + 1 - first) * lengths[last] > tokens:
            yield first, last
            first = last
