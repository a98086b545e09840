"""SimpleShot against its definition, written out one example at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import metazoo
from metazoo.algorithms.simpleshot import SimpleShot
from metazoo.backbones.mlp import MLP
from metazoo.testing import check_algorithm

D = 4
UNEQUAL = torch.tensor([[0, 1, 2, 0, 2, 0], [2, 1, 1, 0, 1, 1]])
CENTERS = ("base", "support", "none")


def build(center: str) -> SimpleShot:
    backbone = MLP((6,), MLP.Config(width=D, depth=1))
    config = SimpleShot.Config(center=center)  # type: ignore[arg-type]
    return SimpleShot(backbone, metazoo.TaskSpec((6,), 3), config).double()


def randn(*shape: int, seed: int = 2) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=noise)


def unit(z: Tensor) -> Tensor:
    return z / math.sqrt(sum(value**2 for value in z.tolist()))


def naive_cosines(
    support: list[Tensor], labels: list[int], query: Tensor, base: Tensor | None, center: str
) -> list[float]:
    """The cosines of one query (D,) with the three class means of one support set."""
    members = [[z for z, label in zip(support, labels) if label == k] for k in range(3)]
    c = torch.zeros(D, dtype=torch.float64)
    if center == "support":
        c = sum((sum(m) / len(m) for m in members), c) / 3
    elif base is not None:
        c = base
    means = [unit(sum((unit(z - c) for z in m), torch.zeros_like(c))) for m in members]
    return [float(unit(query - c) @ mean) for mean in means]


@pytest.mark.parametrize("seen", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("center", CENTERS)
@torch.no_grad()
def test_equals_the_definition(center: str, seen: bool) -> None:
    model = build(center)
    base = randn(9, D, seed=3) + 1
    if seen:
        model.fit_base(base, torch.arange(9) % 4)
    mean = sum(base) / 9 if seen and center == "base" else None
    support, query = randn(2, 6, D) + 1, randn(2, 5, D, seed=4) + 1
    got = model.classify(support, UNEQUAL, query) / model.log_scale.exp()
    expected = [
        [
            naive_cosines(list(support[b]), UNEQUAL[b].tolist(), query[b, q], mean, center)
            for q in range(5)
        ]
        for b in range(2)
    ]
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


def test_the_base_mean_is_saved_with_the_model() -> None:
    model, other = build("base"), build("base")
    model.fit_base(randn(9, D), torch.arange(9) % 4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.base_mean, model.base_mean)
    assert model.base_mean.any()
    assert "base_mean" not in build("support").state_dict()


@pytest.mark.parametrize("center", CENTERS)
def test_gradients(center: str) -> None:
    model = build(center)
    support, query = randn(2, 6, D).requires_grad_(), randn(2, 2, D, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: model.classify(s, UNEQUAL, q), (support, query))


def test_conforms_with_the_mean_of_the_support_set() -> None:
    check_algorithm("simpleshot", {"center": "support"})
