"""Matching Networks against the paper's equations, written out one example at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import metazoo
from metazoo.algorithms.matching import MatchingNet, class_log_attention
from metazoo.backbones.mlp import MLP

D = 4
SPEC = metazoo.TaskSpec((6,), 3)
UNEQUAL = torch.tensor([[0, 1, 2, 0, 2, 0], [2, 1, 1, 0, 1, 1]])


def build(**options: object) -> MatchingNet:
    torch.manual_seed(1)
    backbone = MLP((6,), MLP.Config(width=D, depth=1))
    return MatchingNet(backbone, SPEC, MatchingNet.Config(**options)).double().eval()  # type: ignore[arg-type]


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def lstm(x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One step of Sutskever et al. 2014: x the input, h the output, c the cell."""
    i, f, g, o = (w @ x + u @ h + b).split(D)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def naive_context(
    model: MatchingNet, support: Tensor, query: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Appendix A of the paper for one query (D,) and a support set (S, D) in reading order."""
    p = dict(model.context.named_parameters())
    passes = []
    for suffix, order in (("", range(len(support))), ("_reverse", reversed(range(len(support))))):
        h = c = torch.zeros(D, dtype=support.dtype)
        outputs = {}
        for s in order:
            bias = p[f"support.bias_ih_l0{suffix}"] + p[f"support.bias_hh_l0{suffix}"]
            h, c = lstm(
                support[s],
                h,
                c,
                p[f"support.weight_ih_l0{suffix}"],
                p[f"support.weight_hh_l0{suffix}"],
                bias,
            )
            outputs[s] = h
        passes.append(outputs)
    g = [passes[0][s] + passes[1][s] + support[s] for s in range(len(support))]
    w, w_read = p["query.weight_ih"].split(D, 1)
    u = torch.cat([p["query.weight_hh"], w_read], 1)  # on the paper's [h, r]
    h = c = r = torch.zeros(D, dtype=support.dtype)
    for _ in range(steps):
        h, c = lstm(query, torch.cat([h, r]), c, w, u, p["query.bias_ih"] + p["query.bias_hh"])
        h = h + query
        weights = [torch.exp(h @ g_s) for g_s in g]
        r = sum(a * g_s for a, g_s in zip(weights, g)) / sum(weights)  # type: ignore[assignment]
    return torch.stack(g), h


def naive_probabilities(
    model: MatchingNet, support: Tensor, labels: Tensor, query: Tensor
) -> Tensor:
    """Equations 1 and 2 of the paper for one query."""
    config = model.config
    if config.fce:
        order = sorted(range(len(labels)), key=lambda s: int(labels[s]))
        support, labels = support[order], labels[order]
        support, query = naive_context(model, support, query, config.fce_steps)
    attention = []
    for example in support:
        if config.similarity == "euclidean":
            c = -sum((a - b) ** 2 for a, b in zip(query, example))
        else:
            c = query @ example / math.sqrt(query @ query) / math.sqrt(example @ example)
            c = c * (
                model.log_scale.exp()
                if model.log_scale is not None
                else 1 / model.config.temperature
            )
        attention.append(math.exp(c))
    y = torch.zeros(3, dtype=torch.float64)
    for a, label in zip(attention, labels):
        y[label] += a / sum(attention)
    return y


@pytest.mark.parametrize("fce", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "cosine"},
        {"similarity": "cosine", "learn_temperature": False, "temperature": 0.5},
        {"similarity": "cosine", "temperature": 0.02},
        {"similarity": "euclidean"},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_the_equations(options: dict[str, object], fce: bool) -> None:
    model = build(**options, fce=fce, fce_steps=3)
    support, query = features(2, 6), features(2, 5).flip(0)
    got = model.classify(support, UNEQUAL, query).exp()
    for b in range(2):
        for q in range(5):
            expected = naive_probabilities(model, support[b], UNEQUAL[b], query[b, q])
            torch.testing.assert_close(got[b, q], expected, rtol=1e-9, atol=1e-12)


def test_tiny_attention_keeps_its_logarithm_and_gradient() -> None:
    similarity = torch.tensor([[[0.0, -1e4, -2e4, -1e4, 0.0, -3e4]]], requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 1, 0, 2]])
    logits = class_log_attention(similarity, labels)
    torch.testing.assert_close(logits, torch.tensor([[[0.0, -1e4, -2e4 - math.log(2)]]]))
    logits[..., 1].sum().backward()
    # d log p(1): +1 shared by the two of class 1, -1 by the two that hold all the attention.
    torch.testing.assert_close(similarity.grad, torch.tensor([[[-0.5, 0.5, 0.0, 0.5, -0.5, 0.0]]]))


@pytest.mark.parametrize("options", [{"fce": True}, {"similarity": "euclidean"}], ids=str)
def test_gradients(options: dict[str, object]) -> None:
    model = build(**options)
    support, query = features(2, 6).requires_grad_(), features(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: model.classify(s, UNEQUAL, q), (support, query))


@pytest.mark.parametrize("fce", [False, True])
@torch.no_grad()
def test_queries_do_not_affect_each_other(fce: bool) -> None:
    model = build(fce=fce)
    support, query = features(2, 6), features(2, 5).flip(0)
    one = model.classify(support, UNEQUAL, query[:, 3:4])
    torch.testing.assert_close(model.classify(support, UNEQUAL, query)[:, 3:4], one)


@torch.no_grad()
def test_full_context_does_not_depend_on_the_order_of_classes() -> None:
    model = build(fce=True)
    support, query = features(1, 6), features(1, 5)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]])
    mixed = torch.tensor([4, 0, 2, 1, 5, 3])
    torch.testing.assert_close(
        model.classify(support[:, mixed], labels[:, mixed], query),
        model.classify(support, labels, query),
    )


def test_training_lowers_the_loss_and_moves_every_parameter() -> None:
    model = build(fce=True, fce_steps=2).train()
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    labels = torch.arange(3).repeat(4, 2)  # (4 tasks, 6 examples)
    support, query = (
        centres[labels] + 0.5 * torch.randn(4, 6, 6, dtype=torch.float64, generator=generator)
        for _ in range(2)
    )
    episode = metazoo.Episode(support, labels, query, labels)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(episode)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
