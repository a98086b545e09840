"""Batches by length give the same values in the same order, with little padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metazoo.nn import by_length as module
from metazoo.nn.by_length import by_length


def tokens(*lengths: int) -> Tensor:
    x = torch.zeros(len(lengths), 40, dtype=torch.long)
    for i, length in enumerate(lengths):
        x[i, :length] = 1 + i
    return x


def test_values_come_in_the_order_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ON_CPU", 20)
    lengths = [3, 40, 1, 7, 7, 0, 12, 2]
    shapes = []

    def total(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return torch.stack([x.sum(1), (x != 0).sum(1)], 1)

    x = tokens(*lengths)
    assert torch.equal(by_length(total, x), torch.stack([x.sum(1), torch.tensor(lengths)], 1))
    # No batch has more than 20 tokens, but that of the longest text.
    assert shapes == [(4, 3), (2, 7), (1, 12), (1, 40)]


def test_a_zero_inside_of_a_text_does_not_shorten_it() -> None:
    x = tokens(5, 3)
    x[0, 2] = 0
    assert by_length(lambda part: part.sum(1), x).tolist() == [4, 6]
