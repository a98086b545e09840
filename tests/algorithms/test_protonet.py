"""Prototypical Networks against the paper's equations, written out one example at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.mlp import MLP

D = 4
UNEQUAL = torch.tensor([[0, 1, 2, 0, 2, 0], [2, 1, 1, 0, 1, 1]])


def build(**options: object) -> ProtoNet:
    torch.manual_seed(1)
    backbone = MLP((6,), MLP.Config(width=D, depth=1))
    return ProtoNet(backbone, metazoo.TaskSpec((6,), 3), ProtoNet.Config(**options)).double()  # type: ignore[arg-type]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def naive_logits(model: ProtoNet, support: Tensor, labels: Tensor, query: Tensor) -> list[float]:
    """The exponents of equation 2 for one query (D,) and one support set (S, D)."""
    logits = []
    for k in range(3):
        members = [z for z, label in zip(support, labels) if label == k]
        prototype = sum(members) / len(members)
        if model.log_scale is None:
            logits.append(-sum((a - b) ** 2 for a, b in zip(query.tolist(), prototype.tolist())))
        else:
            cosine = (query @ prototype).item() / math.sqrt(
                (query @ query).item() * (prototype @ prototype).item()
            )
            logits.append(math.exp(model.log_scale.item()) * cosine)
    return logits


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@torch.no_grad()
def test_equals_the_equations(distance: str) -> None:
    model = build(distance=distance)
    support, query = randn(2, 6, D), randn(2, 5, D).flip(0)
    got = model.classify(support, UNEQUAL, query)
    expected = [
        [naive_logits(model, support[b], UNEQUAL[b], query[b, q]) for q in range(5)]
        for b in range(2)
    ]
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_loss_is_the_mean_negative_log_probability_of_the_right_class(distance: str) -> None:
    model = build(distance=distance).eval()
    episode = metazoo.Episode(
        randn(2, 6, 6),
        UNEQUAL,
        randn(2, 5, 6).flip(0),
        torch.tensor([[0, 1, 2, 2, 1], [1, 1, 0, 2, 0]]),
    )
    with torch.no_grad():
        logits = model(episode.support_x, episode.support_y, episode.query_x)
    terms = [
        -math.log(logits[b, q].exp()[y] / logits[b, q].exp().sum())
        for b in range(2)
        for q, y in enumerate(episode.query_y[b])
    ]
    assert model.loss(episode).item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_gradients(distance: str) -> None:
    model = build(distance=distance)
    support, query = randn(2, 6, D).requires_grad_(), randn(2, 2, D).flip(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: model.classify(s, UNEQUAL, q), (support, query))
    if model.log_scale is not None:
        model.classify(support, UNEQUAL, query)[0, 0, 0].backward()
        assert model.log_scale.grad is not None
        assert model.log_scale.grad.abs() > 0
