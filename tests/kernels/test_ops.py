"""The operations against float64, one number at a time, and their derivatives."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from metazoo import kernels, ops


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pairwise_sqdist_is_the_sum_of_squared_differences() -> None:
    x, y = randn(2, 3, 5), randn(2, 4, 5, seed=1)
    expected = [
        [[math.dist(x[b, q], y[b, n]) ** 2 for n in range(4)] for q in range(3)] for b in range(2)
    ]
    torch.testing.assert_close(
        ops.pairwise_sqdist(x, y), torch.tensor(expected, dtype=torch.float64)
    )


def test_pairwise_sqdist_tells_close_points_of_large_norm_apart() -> None:
    y = (1000 + randn(1, 8, 64)).float()
    x = y + (1e-2 * randn(1, 8, 64, seed=1)).float()
    exact = ops.pairwise_sqdist(x.double(), y.double())
    torch.testing.assert_close(ops.pairwise_sqdist(x, y).double(), exact, rtol=1e-5, atol=0)
    # What the expansion would have made of the distances of each point to its own neighbour.
    expansion = x.square().sum(-1).unsqueeze(2) + y.square().sum(-1).unsqueeze(1) - 2 * x @ y.mT
    assert ((expansion - exact) / exact).diagonal(dim1=1, dim2=2).abs().max() > 0.3


@pytest.mark.parametrize("size", [(1, 8, 8, 64), (4, 100, 40, 64), (2, 100, 40, 300)], ids=str)
def test_pairwise_sqdist_is_exact_for_clusters_whatever_the_size(size: tuple[int, ...]) -> None:
    # Pairs of close points, each at a place of its own far from the others: no one centre serves them all.
    tasks, queries, points, features = size
    y = (1000 * randn(tasks, points, features)).float()
    x = (
        y[:, torch.arange(queries) % points]
        + (1e-1 * randn(tasks, queries, features, seed=1)).float()
    )
    exact = (x.double().unsqueeze(2) - y.double().unsqueeze(1)).square().sum(-1)
    torch.testing.assert_close(ops.pairwise_sqdist(x, y).double(), exact, rtol=2e-5, atol=0)
    assert ops.pairwise_sqdist(y, y).diagonal(dim1=1, dim2=2).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_up_in_float32(dtype: torch.dtype) -> None:
    # In float16 the sum stops growing at 2048, in bfloat16 at 256.
    x, y = torch.ones(1, 2, 4096, dtype=dtype), torch.zeros(1, 3, 4096, dtype=dtype)
    got = ops.pairwise_sqdist(x, y)
    assert got.dtype == dtype
    assert (got == 4096).all()
    # Its distances are beyond float16, the loss is not.
    loss = ops.prototypical_nll(
        32 * x[:, :, :128], 32 * y[:, :, :128], torch.zeros(1, 2, dtype=torch.int64)
    )
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(math.log(3), rel=1e-2)


def test_root_gives_the_distance_and_no_slope_where_points_coincide() -> None:
    x, y = randn(2, 3, 4), randn(2, 2, 4, seed=1)
    torch.testing.assert_close(ops.pairwise_sqdist(x, y, root=True), torch.cdist(x, y))
    arguments = x.clone().requires_grad_(), y.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: ops.pairwise_sqdist(x, y, root=True), arguments)
    assert torch.autograd.gradgradcheck(
        lambda x, y: ops.pairwise_sqdist(x, y, root=True), arguments
    )
    y[0, 0] = x[0, 0]
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(
        ops.pairwise_sqdist(x, y, root=True)[0, 0, 0], x, create_graph=True
    )
    assert torch.equal(slope, torch.zeros_like(x))
    assert torch.autograd.grad(slope.sum(), x)[0].isfinite().all()


def test_what_is_not_a_number_stays_so() -> None:
    for points in (2, 3000):  # by differences, and by products
        x, y = torch.zeros(1, points, 40), torch.ones(1, 2, 40)
        x[0, 0, 0], x[0, 1, 0] = math.nan, math.inf
        for root in (False, True):
            got = ops.pairwise_sqdist(x, y, root=root)
            assert got[0, 0].isnan().all()
            assert (got[0, 1] == math.inf).all()
            assert got[0, 2:].isfinite().all()


def test_the_root_of_a_square_beyond_float16_is_right() -> None:
    x, y = (
        torch.full((1, 1, 64), 200.0, dtype=torch.float16),
        torch.zeros(1, 1, 64, dtype=torch.float16),
    )
    assert ops.pairwise_sqdist(x, y, root=True).item() == 1600.0


@pytest.mark.parametrize("features", [64, 640, 1600, 10000])
def test_distances_just_large_enough_for_products_are_right(features: int) -> None:
    # Every y is far from the centre and every x a little nearer to it: distances are a twentieth of the norms, all of one sign.
    y = torch.ones(1, 40, features)
    y[:, ::2] = -1
    x = (0.69 * y).repeat(1, 2, 1)
    exact = (x.double().unsqueeze(2) - y.double().unsqueeze(1)).square().sum(-1)
    error = (ops.pairwise_sqdist(x, y).double() / exact - 1).abs().max().item()
    assert error < 2e-4


def test_gradients_of_clusters_are_right_whatever_the_size() -> None:
    y = (
        1000 * torch.tensor([1.0, -1.0]).repeat(10).view(1, 20, 1)
        + (1e-2 * randn(1, 20, 64)).float()
    ).requires_grad_()
    x = (y.detach().repeat(1, 6, 1) + (1e-2 * randn(1, 120, 64, seed=1)).float()).requires_grad_()
    same = (torch.arange(120).unsqueeze(1) % 2 == torch.arange(20) % 2).unsqueeze(0)
    got = torch.autograd.grad((ops.pairwise_sqdist(x, y) * same).sum(), (x, y))
    wide = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    exact = torch.autograd.grad(
        ((wide[0].unsqueeze(2) - wide[1].unsqueeze(1)).square().sum(-1) * same).sum(), wide
    )
    for ours, theirs in zip(got, exact):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=0, atol=1e-4 * theirs.abs().max().item()
        )


def test_one_task_may_stand_for_all() -> None:
    x, y = randn(1, 3, 4), randn(5, 2, 4, seed=1)
    torch.testing.assert_close(ops.pairwise_sqdist(x, y), ops.pairwise_sqdist(x.repeat(5, 1, 1), y))
    torch.testing.assert_close(ops.pairwise_sqdist(y, x), ops.pairwise_sqdist(y, x.repeat(5, 1, 1)))


def test_autocast_takes_distances_in_float32() -> None:
    x, y, target = (
        randn(1, 3, 64).bfloat16(),
        randn(1, 2, 64, seed=1).bfloat16(),
        torch.zeros(1, 3, dtype=torch.int64),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, loss = ops.pairwise_sqdist(x, y), ops.prototypical_nll(x, y, target)
    assert got.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(got, ops.pairwise_sqdist(x.float(), y.float()))


def test_autocast_leaves_large_problems_and_gradients_alone() -> None:
    x, y = (
        randn(2, 100, 64).float().requires_grad_(),
        randn(2, 60, 64, seed=1).float().requires_grad_(),
    )
    expected = torch.autograd.grad(ops.pairwise_sqdist(x, y).sin().sum(), (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            assert ops.pairwise_sqdist(x, y).dtype == torch.float32
        got = torch.autograd.grad(ops.pairwise_sqdist(x, y).sin().sum(), (x, y))
    torch.testing.assert_close(got, expected)


def test_meta_tensors_have_shapes() -> None:
    assert ops.pairwise_sqdist(
        torch.zeros(2, 3, 4, device="meta"), torch.zeros(2, 5, 4, device="meta")
    ).shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"\(2, 3\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), r"\(2, 3, 4\) and \(2, 3, 5\)"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 3, 4), r"\(2, 3, 4\) and \(3, 3, 4\)"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 3, 4, dtype=torch.int64), "int64"),
    ],
    ids=["dimensions", "features", "tasks", "type"],
)
def test_points_that_do_not_fit_together_are_refused(x: Tensor, y: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ops.pairwise_sqdist(x, y)
    with pytest.raises(ValueError, match=says):
        ops.prototypical_nll(x, y, torch.zeros(2, 3, dtype=torch.int64))


def test_targets_that_do_not_fit_are_refused() -> None:
    x, y = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(2, 5\)"):
        ops.prototypical_nll(x, y, torch.zeros(2, 5, dtype=torch.int64))
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match="whole numbers"):
            ops.prototypical_nll(x, y, torch.zeros(2, 3, dtype=dtype))
    for dtype in (torch.uint8, torch.int32):
        assert ops.prototypical_nll(x, y, torch.zeros(2, 3, dtype=dtype)).item() == pytest.approx(
            math.log(5)
        )
    for way in (5, -1, -100):
        wrong = torch.tensor([[0, 1, way], [0, 1, 2]])
        if kernels.covers("cpu"):
            assert ops.prototypical_nll(x, y, wrong).isnan()
        else:
            with pytest.raises(IndexError, match=str(way)):
                ops.prototypical_nll(x, y, wrong)


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
                assert got[b, q, n].item() == pytest.approx(
                    (x[b, q] @ y[b, n]).item() / norms, rel=1e-9
                )


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
    query, prototypes, target = (
        randn(2, 3, 4),
        randn(2, 5, 4, seed=1),
        torch.tensor([[0, 4, 2], [1, 1, 3]]),
    )
    terms = []
    for b in range(2):
        for q in range(3):
            weights = [math.exp(-(math.dist(query[b, q], p) ** 2)) for p in prototypes[b]]
            terms.append(-math.log(weights[int(target[b, q])] / sum(weights)))
    assert ops.prototypical_nll(query, prototypes, target).item() == pytest.approx(
        sum(terms) / 6, rel=1e-9
    )


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
    params, grads = (
        torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, 0.0]]),
    )
    rates = torch.as_tensor(lr).expand(2, 3).tolist()
    expected = [
        [params[b, p].item() - rates[b][p] * grads[b, p].item() for p in range(3)] for b in range(2)
    ]
    torch.testing.assert_close(ops.sgd_update(params, grads, lr), torch.tensor(expected))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3)], ids=str)
def test_sgd_update_gradients_reach_the_rates(shape: tuple[int, ...]) -> None:
    arguments = tuple(
        t.requires_grad_() for t in (randn(2, 3), randn(2, 3, seed=1), randn(*shape, seed=2))
    )
    assert torch.autograd.gradcheck(ops.sgd_update, arguments)
    assert torch.autograd.gradgradcheck(ops.sgd_update, arguments)


def as_torch_does_it(
    params: Tensor,
    grads: list[Tensor],
    lr: float,
    steps: int,
    max_norm: float | None,
    **options: float,
) -> Tensor:
    """Return each task's parameters after steps of torch.optim.SGD on the same gradients, clipped by clip_grad_norm_."""
    after = []
    for task in range(len(params)):
        weight = torch.nn.Parameter(params[task].clone())
        optimizer = torch.optim.SGD([weight], lr, **options)
        for _ in range(steps):
            weight.grad = torch.cat([g[task].flatten() for g in grads])
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_([weight], max_norm)
            optimizer.step()
        after.append(weight.detach())
    return torch.stack(after)


@pytest.mark.parametrize("max_norm", [None, 1.0, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_update_is_torchs_own_for_every_task(
    momentum: float, weight_decay: float, max_norm: float | None
) -> None:
    params, grads = randn(3, 7), [randn(3, 2, 2, seed=1), randn(3, 3, seed=2)]
    expected = as_torch_does_it(
        params, grads, 0.5, 3, max_norm, momentum=momentum, weight_decay=weight_decay
    )
    options = {"weight_decay": weight_decay, "max_norm": max_norm}
    here, there = params.clone(), params
    velocity = torch.zeros_like(params) if momentum else None
    velocity_here = torch.zeros_like(params) if momentum else None
    for _ in range(3):
        ops.sgd_update_(here, grads, 0.5, velocity=velocity_here, momentum=momentum, **options)
        if velocity is None:
            there = ops.sgd_update(there, grads, 0.5, **options)
        else:
            there, velocity = ops.sgd_update(
                there, grads, 0.5, velocity=velocity, momentum=momentum, **options
            )
    torch.testing.assert_close(here, expected)
    torch.testing.assert_close(there, expected)
    assert velocity is None or torch.equal(velocity, velocity_here)


def test_sgd_update_of_one_task_is_that_of_a_batch_of_one() -> None:
    params, grads, velocity = randn(5), [randn(2, 2, seed=1), randn(1, seed=2)], randn(5, seed=3)
    options = {"momentum": 0.9, "weight_decay": 0.1, "max_norm": 1.0}
    got = ops.sgd_update(params, grads, randn(5, seed=4), velocity=velocity, **options)
    batch = [t.unsqueeze(0) for t in (params, *grads, velocity)]
    expected = ops.sgd_update(batch[0], batch[1:3], randn(5, seed=4), velocity=batch[3], **options)
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours, theirs.squeeze(0))


def test_a_parameter_may_be_one_number() -> None:
    params, grads = randn(3, 4), [randn(3, seed=1), randn(3, 3, seed=2)]
    expected = params - 0.5 * torch.cat([grads[0].unsqueeze(1), grads[1]], 1)
    torch.testing.assert_close(ops.sgd_update(params, grads, 0.5), expected)
    torch.testing.assert_close(ops.sgd_update(params[0], [g[0] for g in grads], 0.5), expected[0])
    torch.testing.assert_close(ops.sgd_update_(params.clone(), grads, 0.5), expected)
    assert ops.sgd_update(params, grads, 0.5, max_norm=1e-6).sub(params).norm(dim=1).max() < 1e-6


def test_a_gradient_that_is_not_a_number_is_not_hidden_by_clipping() -> None:
    assert (
        ops.sgd_update(torch.zeros(1, 2), torch.tensor([[math.nan, 1.0]]), 1.0, max_norm=1.0)
        .isnan()
        .all()
    )


def test_who_saved_a_buffer_hears_of_a_step_in_place() -> None:
    for velocity in (None, torch.zeros(2, 3)):
        params, scale = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
        squares = (scale * params).sum()
        ops.sgd_update_(params, [torch.ones(2, 1), torch.ones(2, 2)], 0.5, velocity=velocity)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squares.backward()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_update_in_place_under_vmap(weight_decay: float) -> None:
    params, grads = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    expected = ops.sgd_update(
        params.flatten(0, 1), grads.flatten(0, 1), 0.5, weight_decay=weight_decay
    )
    torch.vmap(lambda p, a, b: ops.sgd_update_(p, [a, b], 0.5, weight_decay=weight_decay))(
        params, grads[..., :1], grads[..., 1:]
    )
    torch.testing.assert_close(params.flatten(0, 1), expected)


def test_a_gradient_of_zero_is_clipped_without_harm() -> None:
    params, grads = (
        randn(2, 3).requires_grad_(),
        torch.zeros(2, 3, dtype=torch.float64, requires_grad=True),
    )
    after = ops.sgd_update(params, grads, 0.5, max_norm=1.0)
    assert torch.equal(after, params)
    gradients = torch.autograd.grad(after.sum(), (params, grads), create_graph=True)
    assert all(g.isfinite().all() for g in gradients)


def test_clipping_is_differentiated() -> None:
    arguments = tuple(
        t.requires_grad_() for t in (randn(2, 3), 5 * randn(2, 3, seed=1), randn(2, 3, seed=2))
    )

    def step(params: Tensor, grads: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        return ops.sgd_update(
            params, grads, 0.5, velocity=velocity, momentum=0.9, weight_decay=0.1, max_norm=1.0
        )

    assert torch.autograd.gradcheck(step, arguments)
    assert torch.autograd.gradgradcheck(step, arguments)


def test_sgd_update_in_place_records_nothing_and_returns_its_buffer() -> None:
    params = torch.zeros(2, 3, requires_grad=True)
    assert ops.sgd_update_(params, torch.ones(2, 3), 0.5) is params
    assert params.is_leaf
    assert (params == -0.5).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"params": torch.zeros(2, 3, 1)}, r"params \(2, 3, 1\)"),
        ({"grads": torch.zeros(2, 4)}, r"\[\(2, 4\)\]"),
        ({"grads": []}, r"\[\]"),
        ({"grads": [torch.zeros(1, 3)]}, r"\[\(1, 3\)\]"),
        ({"lr": torch.zeros(2)}, r"not \(2,\)"),
        ({"velocity": torch.zeros(3)}, r"velocity \(3,\)"),
        ({"lr": torch.zeros(2)}, r"one for each task is \(T, 1\)"),
        ({"momentum": 0.9}, "velocity"),
        ({"grads": [torch.zeros(2, 2), None]}, "None"),
        ({"grads": torch.zeros(2, 3, dtype=torch.float64)}, "float32, torch.float64"),
        (
            {
                "params": torch.zeros(2, 3, dtype=torch.int64),
                "grads": torch.zeros(2, 3, dtype=torch.int64),
            },
            "int64",
        ),
        ({"velocity": torch.zeros(2, 3, dtype=torch.float64)}, "float32, torch.float64"),
        ({"max_norm": -1.0}, "-1.0"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_steps_that_do_not_fit_together_are_refused(change: dict[str, object], says: str) -> None:
    arguments = {"params": torch.zeros(2, 3), "grads": torch.zeros(2, 3), "lr": 0.5, **change}
    for take in (ops.sgd_update, ops.sgd_update_):
        with pytest.raises(ValueError, match=says):
            take(**arguments)  # type: ignore[operator]


def test_a_buffer_that_is_not_contiguous_is_not_changed_in_place() -> None:
    params = torch.zeros(3, 2).mT
    with pytest.raises(ValueError, match="contiguous"):
        ops.sgd_update_(params, torch.ones(2, 3), 0.5)
    assert (params == 0).all()


BOTH_WAYS = """
import torch
from torch.func import grad
from metazoo import ops

ops.SMALL = 0  # so that distances this small reach the operator as well
x, y = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
target = torch.zeros(2, 3, dtype=torch.int64)

def distances(x, y):
    return ops.pairwise_sqdist(x, y).sin().sum()

def loss(x, y):
    return ops.prototypical_nll(x, y, target)

def step(x, y):
    gradients = [y[:, 0, :2], y[:, 1, 2:]]
    after, velocity = ops.sgd_update(
        x[:, 0], gradients, 0.1, velocity=x[:, 1], momentum=0.9, max_norm=1.0
    )
    return after.sin().sum() + velocity.sin().sum()

def second(f):
    return grad(lambda *a: sum(g.sin().sum() for g in grad(f, (0, 1))(*a)), (0, 1))

def eager(f):
    return second(f)(x, y)

def compiled(f):
    return torch.compile(second(f), fullgraph=True, backend="aot_eager")(x, y)

for function in (distances, loss, step):
    first, then = %s
    torch.testing.assert_close(first(function), then(function))
"""


# In processes of their own: the first use of torch.compile marks functions for it.
@pytest.mark.parametrize("order", ["eager, compiled", "compiled, eager"])
def test_operations_compile_whole_in_either_order(order: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", BOTH_WAYS % order]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
