"""The operations against float64, one number at a time, and their derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metazoo import ops


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pairwise_sqdist_is_the_sum_of_squared_differences() -> None:
    x, y = randn(2, 3, 5), randn(2, 4, 5, seed=1)
    expected = [[[math.dist(x[b, q], y[b, n]) ** 2 for n in range(4)] for q in range(3)] for b in range(2)]
    torch.testing.assert_close(ops.pairwise_sqdist(x, y), torch.tensor(expected, dtype=torch.float64))


def test_pairwise_sqdist_tells_close_points_of_large_norm_apart() -> None:
    y = (1000 + randn(1, 8, 64)).float()
    x = y + (1e-2 * randn(1, 8, 64, seed=1)).float()
    exact = ops.pairwise_sqdist(x.double(), y.double())
    torch.testing.assert_close(ops.pairwise_sqdist(x, y).double(), exact, rtol=1e-5, atol=0)
    # What the expansion would have made of the distances of each point to its own neighbour.
    expansion = x.square().sum(-1).unsqueeze(2) + y.square().sum(-1).unsqueeze(1) - 2 * x @ y.mT
    assert ((expansion - exact) / exact).diagonal(dim1=1, dim2=2).abs().max() > 0.3


def test_pairwise_sqdist_has_first_and_second_derivatives_also_where_points_coincide() -> None:
    x, y = randn(2, 3, 4), randn(2, 2, 4, seed=1)
    y[0, 0] = x[0, 0]
    arguments = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(ops.pairwise_sqdist, arguments)
    assert torch.autograd.gradgradcheck(ops.pairwise_sqdist, arguments)


def test_cosine_similarity_is_the_cosine() -> None:
    x, y = randn(2, 3, 5), randn(2, 4, 5, seed=1)
    got = ops.cosine_similarity(x, y)
    for b in range(2):
        for q in range(3):
            for n in range(4):
                norms = math.hypot(*x[b, q].tolist()) * math.hypot(*y[b, n].tolist())
                assert got[b, q, n].item() == pytest.approx((x[b, q] @ y[b, n]).item() / norms, rel=1e-9)


def test_cosine_similarity_with_a_zero_vector_is_zero_and_has_finite_gradients() -> None:
    x, y = torch.zeros(1, 1, 3, requires_grad=True), torch.ones(1, 2, 3, requires_grad=True)
    cosines = ops.cosine_similarity(x, y)
    assert torch.equal(cosines, torch.zeros(1, 1, 2))
    cosines.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_cosine_similarity_gradients() -> None:
    arguments = randn(2, 3, 4).requires_grad_(), randn(2, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(ops.cosine_similarity, arguments)
    assert torch.autograd.gradgradcheck(ops.cosine_similarity, arguments)


@pytest.mark.parametrize("op", [ops.pairwise_sqdist, ops.cosine_similarity])
@pytest.mark.parametrize(("b", "q", "n"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_no_tasks_queries_or_points(op: object, b: int, q: int, n: int) -> None:
    assert op(torch.zeros(b, q, 5), torch.zeros(b, n, 5)).shape == (b, q, n)  # type: ignore[operator]


def test_prototypical_nll_is_the_mean_over_all_queries() -> None:
    query, prototypes, target = randn(2, 3, 4), randn(2, 5, 4, seed=1), torch.tensor([[0, 4, 2], [1, 1, 3]])
    terms = []
    for b in range(2):
        for q in range(3):
            weights = [math.exp(-(math.dist(query[b, q], p) ** 2)) for p in prototypes[b]]
            terms.append(-math.log(weights[int(target[b, q])] / sum(weights)))
    assert ops.prototypical_nll(query, prototypes, target).item() == pytest.approx(sum(terms) / 6, rel=1e-9)


def test_prototypical_nll_gradients() -> None:
    target = torch.tensor([[0, 1, 2], [1, 1, 0]])
    arguments = randn(2, 3, 4).requires_grad_(), randn(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, p: ops.prototypical_nll(q, p, target), arguments)
    assert torch.autograd.gradgradcheck(lambda q, p: ops.prototypical_nll(q, p, target), arguments)


@pytest.mark.parametrize(
    "lr",
    [0.5, torch.tensor(0.5), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([[0.1], [0.2]])],
    ids=["number", "scalar", "P", "B1"],
)
def test_sgd_update_steps_against_the_gradient_at_every_kind_of_rate(lr: Tensor | float) -> None:
    params, grads = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, 0.0]])
    rates = torch.as_tensor(lr).expand(2, 3).tolist()
    expected = [[params[b, p].item() - rates[b][p] * grads[b, p].item() for p in range(3)] for b in range(2)]
    torch.testing.assert_close(ops.sgd_update(params, grads, lr), torch.tensor(expected))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3)], ids=str)
def test_sgd_update_gradients_reach_the_rates(shape: tuple[int, ...]) -> None:
    arguments = tuple(t.requires_grad_() for t in (randn(2, 3), randn(2, 3, seed=1), randn(*shape, seed=2)))
    assert torch.autograd.gradcheck(ops.sgd_update, arguments)
    assert torch.autograd.gradgradcheck(ops.sgd_update, arguments)
