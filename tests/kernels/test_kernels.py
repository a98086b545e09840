"""The operators behind `metazoo.ops`: values and derivatives to second order, under torch.func, torch.compile and vmap.

They run as plain PyTorch here; tests/test_emulated.py runs this file again with the kernels' own source, and tests/test_gpu.py
on a GPU (METAZOO_TEST_DEVICE=cuda).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from metazoo import kernels, ops
from metazoo.kernels import compiling as _marks_for_compiler  # noqa: F401
from metazoo.kernels.distance import distances
from metazoo.kernels.prototypical import mean_nll
from metazoo.kernels.sgd import squared, updated

# torch's own forward derivatives and compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

DEVICE = os.environ.get("METAZOO_TEST_DEVICE", "cpu")
RAW = torch.ops.metazoo
HALVES = [torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(DEVICE, dtype)


def cycled(*shape: int, below: int) -> Tensor:
    """Return 0, 1, ... and from 0 again, as targets."""
    return (torch.arange(torch.Size(shape).numel(), device=DEVICE) % below).view(shape)


def naive_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


def naive_gradients(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    difference = g.unsqueeze(-1) * (x.unsqueeze(2) - y.unsqueeze(1))
    return 2 * difference.sum(2), -2 * difference.sum(1)


def naive_nll(query: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(-naive_distances(query, prototypes).flatten(0, 1), target.flatten())


def naive_update(
    params: Tensor,
    gradient: Any,
    lr: Any,
    velocity: Any,
    scale: Any,
    factor: float,
    momentum: float,
    decay: float,
) -> tuple[Tensor, Tensor]:
    v = (
        torch.cat([g.flatten(1) for g in gradient], 1)
        * (1 if scale is None else scale.unsqueeze(1))
        + decay * params
    )
    v = v if velocity is None else momentum * velocity + v
    return params - factor * (1 if lr is None else lr) * v, v


# (B, Q, N, D): none of something, one of everything, a tile and one more, odd sizes, a chunk of 512 numbers and one more.
SHAPES = [
    (0, 3, 2, 4),
    (2, 0, 3, 4),
    (2, 3, 0, 4),
    (2, 3, 2, 0),
    (1, 1, 1, 1),
    (1, 8, 8, 128),
    (3, 9, 9, 5),
    (2, 17, 33, 64),
    (1, 5, 20, 130),
    (2, 3, 5, 512),
    (1, 2, 3, 513),
    (1, 3, 2, 1100),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def close(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Compare with float64, relative to the largest value."""
    assert got.shape == exact.shape
    size = exact.abs().max().item() if exact.numel() else 1.0
    torch.testing.assert_close(
        got.double(), exact, rtol=0, atol=TOLERANCE[dtype] * max(size, 1e-30)
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_distances_and_their_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tasks, queries, points, size = shape
    x, y, g = (
        randn(tasks, queries, size),
        randn(tasks, points, size, seed=1),
        randn(tasks, queries, points, seed=2),
    )
    x, y, g = x.to(dtype), y.to(dtype), g.to(dtype)
    got = RAW.sqdist(x, y)
    assert got.dtype == dtype
    close(got, naive_distances(x.double(), y.double()), dtype)
    for ours, exact in zip(
        RAW.sqdist_backward(g, x, y), naive_gradients(g.double(), x.double(), y.double())
    ):
        assert ours.dtype == dtype
        close(ours, exact, dtype)


def views(shape: tuple[int, int, int], seed: int) -> dict[str, Tensor]:
    """Return tensors of one shape whose numbers lie in memory in different ways."""
    tasks, rows, size = shape
    return {
        "contiguous": randn(*shape, seed=seed),
        "transposed": randn(tasks, size, rows, seed=seed).mT,
        "task in the middle": randn(rows, tasks, size, seed=seed).transpose(0, 1),
        "cut out": randn(tasks, rows + 3, size + 4, seed=seed)[:, 1:-2, 1:-3],
        "of odd rows": randn(tasks, rows + 3, size + 5, seed=seed)[:, 1:-2, 1:-4],
        "every second": randn(tasks, rows, 2 * size, seed=seed)[:, :, ::2],
        "one task for all": randn(1, rows, size, seed=seed).expand(shape),
        "one row for all": randn(tasks, 1, size, seed=seed).expand(shape),
        "one number for all": randn(1, 1, 1, seed=seed).expand(shape),
    }


@pytest.mark.parametrize("layout", list(views((1, 1, 1), 0)))
@pytest.mark.parametrize("size", [6, 132])
def test_memory_layouts(layout: str, size: int) -> None:
    xs, ys, gs = views((3, 5, size), 0), views((3, 4, size), 1), views((3, 5, 4), 2)
    for x, y, g in [
        (xs[layout], ys["contiguous"], gs["contiguous"]),
        (xs["contiguous"], ys[layout], gs["contiguous"]),
        (xs[layout], ys[layout], gs[layout]),
    ]:
        for dtype in (torch.float64, torch.float32):
            x, y, g = x.to(dtype), y.to(dtype), g.to(dtype)
            close(RAW.sqdist(x, y), naive_distances(x.double(), y.double()), dtype)
            for ours, exact in zip(
                RAW.sqdist_backward(g, x, y), naive_gradients(g.double(), x.double(), y.double())
            ):
                close(ours, exact, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[2]], ids=str)
def test_nll_and_its_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tasks, queries, ways, size = shape
    x = (randn(tasks, queries, size) / max(size, 1) ** 0.5).to(dtype)
    y = (randn(tasks, ways, size, seed=1) / max(size, 1) ** 0.5).to(dtype)
    target = cycled(tasks, queries, below=ways)
    nll, prob = RAW.prototypical_nll(x, y, target)
    assert nll.dtype == prob.dtype == (torch.float32 if dtype in HALVES else dtype)
    log_prob = (-naive_distances(x.double(), y.double())).log_softmax(-1)
    sums = torch.float32 if dtype in HALVES else dtype
    close(nll, -log_prob.gather(2, target.unsqueeze(2)).squeeze(2), sums)
    close(prob, log_prob.exp(), sums)
    g = randn(tasks, queries, seed=2).to(nll.dtype)
    slope = g.double().unsqueeze(2) * (F.one_hot(target, ways) - log_prob.exp())
    for ours, exact in zip(
        RAW.prototypical_nll_backward(g, prob, x, y, target),
        naive_gradients(slope, x.double(), y.double()),
    ):
        assert ours.dtype == dtype
        close(ours, exact, dtype)


def test_nll_of_far_prototypes_is_finite() -> None:
    query, prototypes = (
        torch.zeros(1, 1, 2),
        torch.tensor([[[100.0, 0.0], [0.0, 200.0], [300.0, 0.0]]]),
    )
    query, prototypes = query.to(DEVICE), prototypes.to(DEVICE)
    for way, expected in enumerate((0.0, 30000.0, 80000.0)):
        nll, prob = RAW.prototypical_nll(query, prototypes, torch.tensor([[way]], device=DEVICE))
        assert nll.item() == pytest.approx(expected)
        assert prob.flatten().tolist() == [1.0, 0.0, 0.0]


def test_nll_where_the_first_prototypes_are_infinitely_far() -> None:
    # More of them than a warp takes at a time, and squares beyond float32.
    prototypes = torch.cat([torch.full((1, 9, 2), 1e20), torch.zeros(1, 3, 2)], 1).to(DEVICE)
    nll, prob = RAW.prototypical_nll(
        torch.zeros(1, 1, 2, device=DEVICE), prototypes, torch.tensor([[10]], device=DEVICE)
    )
    assert nll.item() == pytest.approx(1.0986, abs=1e-4)
    assert prob.flatten().tolist() == pytest.approx([0.0] * 9 + [1 / 3] * 3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rate", ["number", "one", "T", "P", "TP"])
@pytest.mark.parametrize("more", [False, True])
def test_steps_of_gradients_in_pieces(rate: str, more: bool, dtype: torch.dtype) -> None:
    # More tensors than one launch takes, some empty, one longer than a block's span and one with its tasks strided.
    shapes = [(2, 3), (1,), (0,), (2100,), *[(2,)] * 70]
    tasks, size = 3, sum(torch.Size(s).numel() for s in shapes)
    params = randn(tasks, size).to(dtype)
    gradient = [randn(tasks, *s, seed=i).to(dtype) for i, s in enumerate(shapes)]
    gradient[1] = randn(tasks, 5, seed=99).to(dtype)[:, 2:3]
    lr = {"number": None, "one": (1, 1), "T": (tasks, 1), "P": (1, size), "TP": (tasks, size)}[rate]
    lr = None if lr is None else randn(*lr, seed=7).to(dtype)
    velocity = randn(tasks, size, seed=8).to(dtype) if more else None
    scale = (
        randn(tasks, seed=9).abs().to(torch.float32 if dtype in HALVES else dtype) if more else None
    )
    numbers = (0.5, 0.9, 0.1) if more else (0.5, 0.0, 0.0)
    wide = [None if t is None else t.double() for t in (lr, velocity, scale)]
    after, v = naive_update(params.double(), [g.double() for g in gradient], *wide, *numbers)

    got = RAW.sgd_update(params, gradient, lr, velocity, scale, *numbers)
    close(got[0], after, dtype)
    assert got[0].dtype == dtype
    if more:
        close(got[1], v, dtype)
    here, velocity_here = params.clone(), velocity.clone() if velocity is not None else None
    RAW.sgd_update_(here, gradient, lr, velocity_here, scale, *numbers)
    assert torch.equal(here, got[0])
    assert velocity_here is None or torch.equal(velocity_here, got[1])
    norm = RAW.square_norm(gradient)
    close(
        norm,
        sum(g.double().flatten(1).square().sum(1) for g in gradient),
        torch.float32 if dtype in HALVES else dtype,
    )


def test_steps_from_parameters_that_all_tasks_share() -> None:
    params, gradient = randn(1, 6).expand(4, -1), [randn(4, 2, seed=1), randn(4, 2, 2, seed=2)]
    got = RAW.sgd_update(params, gradient, None, None, None, 0.5, 0.0, 0.0)[0]
    close(got, naive_update(params, gradient, None, None, None, 0.5, 0.0, 0.0)[0], torch.float64)


# ---- derivatives -----------------------------------------------------------------------------------------------------

TARGET = torch.tensor([[0, 3, 1], [2, 2, 0]], device=DEVICE)


def points() -> tuple[Tensor, Tensor]:
    """Return queries and points, one of which coincide."""
    x, y = randn(2, 3, 5), randn(2, 4, 5, seed=1)
    y[0, 0] = x[0, 1]
    return x, y


def whole_step(
    params: Tensor, lr: Tensor, velocity: Tensor, scale: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    return updated(params, [a, b], lr, velocity, scale, 0.5, 0.9, 0.1)


def simple_step(params: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return updated(params, [a, b], None, None, None, 0.5, 0.0, 0.1)[0]


STEP = (
    randn(2, 5),
    randn(1, 5, seed=1),
    randn(2, 5, seed=2),
    randn(2, seed=3),
    randn(2, 2, seed=4),
    randn(2, 3, 1, seed=5),
)
# name: (the operation, arguments that it is differentiated by, the same in torch's own operations)
OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], Callable[..., Any]]] = {
    "distances": (distances, points(), naive_distances),
    "nll": (lambda x, y: mean_nll(x, y, TARGET), points(), lambda x, y: naive_nll(x, y, TARGET)),
    "step": (
        whole_step,
        STEP,
        lambda p, lr, v, s, a, b: naive_update(p, [a, b], lr, v, s, 0.5, 0.9, 0.1),
    ),
    "simple step": (
        simple_step,
        (STEP[0], STEP[4], STEP[5]),
        lambda p, a, b: naive_update(p, [a, b], None, None, None, 0.5, 0.0, 0.1)[0],
    ),
    "squared": (
        lambda a, b: squared([a, b]),
        STEP[4:],
        lambda a, b: a.square().sum(1) + b.square().sum((1, 2)),
    ),
}
each = pytest.mark.parametrize("name", OPERATIONS)


def scalar(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return a function to a number of which every derivative depends on every output."""

    def reduced(*arguments: Tensor) -> Tensor:
        outputs = function(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(
            (o.sin() * torch.arange(1, o.numel() + 1, device=DEVICE).view(o.shape)).sum()
            for o in outputs
        )  # type: ignore[return-value]

    return reduced


@each
def test_gradcheck_to_second_order(name: str) -> None:
    function, arguments, _ = OPERATIONS[name]
    arguments = tuple(a.clone().requires_grad_() for a in arguments)
    assert torch.autograd.gradcheck(
        function, arguments, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, arguments, check_batched_grad=True)


@each
def test_transforms_agree_with_plain_operations(name: str) -> None:
    function, arguments, plain = OPERATIONS[name]
    ours, theirs = scalar(function), scalar(plain)
    every = tuple(range(len(arguments)))
    tangents = tuple(randn(*a.shape, seed=20 + i) for i, a in enumerate(arguments))
    for transform in (
        lambda f: f(*arguments),
        lambda f: grad(f, every)(*arguments),
        lambda f: grad(lambda *a: scalar(grad(f, every))(*a), every)(*arguments),
        lambda f: jvp(f, arguments, tangents),
        lambda f: jvp(grad(f, every), arguments, tangents),
        lambda f: jacrev(f, every)(*arguments),
        lambda f: jacfwd(f, every)(*arguments),
        lambda f: hessian(f, every)(*arguments),
        lambda f: jacrev(jacrev(f))(*arguments),
    ):
        torch.testing.assert_close(transform(ours), transform(theirs))


@each
@pytest.mark.parametrize("batched", ["all", "first", "last"])
def test_vmap_agrees_with_plain_operations(name: str, batched: str) -> None:
    function, arguments, plain = OPERATIONS[name]
    places = {"all": range(len(arguments)), "first": [0], "last": [len(arguments) - 1]}[batched]
    # In the last dimension, so that it must be moved.
    dims = tuple(-1 if i in places else None for i in range(len(arguments)))
    stacked = tuple(
        randn(*a.shape, 3, seed=30 + i) if i in places else a for i, a in enumerate(arguments)
    )
    every = tuple(range(len(arguments)))
    for transform in (
        lambda f: vmap(f, dims)(*stacked),
        lambda f: vmap(grad(scalar(f), every), dims)(*stacked),
        lambda f: vmap(grad(lambda *a: scalar(grad(scalar(f), every))(*a), every), dims)(*stacked),
        lambda f: vmap(hessian(scalar(f)), dims)(*stacked),
        lambda f: grad(lambda *a: vmap(scalar(f), dims)(*a).sum(), every)(*stacked),
        lambda f: vmap(lambda *a: jvp(scalar(f), a, tuple(t.cos() for t in a)), dims)(*stacked),
        lambda f: vmap(vmap(f, dims), tuple(None if d is None else 0 for d in dims))(
            *[torch.stack([a, 2 * a]) if d is not None else a for a, d in zip(stacked, dims)]
        ),
    ):
        torch.testing.assert_close(transform(function), transform(plain))


def test_opcheck() -> None:
    for shape in ((2, 3, 4, 5), (1, 9, 10, 7)):
        tasks, queries, ways, size = shape
        x, y, g = (
            randn(tasks, queries, size),
            randn(tasks, ways, size, seed=1),
            randn(tasks, queries, ways, seed=2),
        )
        target = cycled(tasks, queries, below=ways)
        prob = randn(tasks, queries, ways, seed=3).softmax(-1)
        for operator, arguments in (
            (RAW.sqdist, (x, y)),
            (RAW.sqdist_backward, (g, x, y)),
            (RAW.prototypical_nll, (x, y, target)),
            (RAW.prototypical_nll_backward, (g[:, :, 0], prob, x, y, target)),
        ):
            torch.library.opcheck(operator.default, arguments)
    params, lr, velocity, scale, a, b = STEP
    for rest in ((lr, velocity, scale), (None, None, None)):
        torch.library.opcheck(RAW.sgd_update.default, (params, [a, b], *rest, 0.5, 0.9, 0.1))
        torch.library.opcheck(
            RAW.sgd_update_.default,
            (params.clone(), [a, b], lr, velocity.clone(), scale, 0.5, 0.9, 0.1),
        )
    torch.library.opcheck(RAW.square_norm.default, ([a, b],))


# ---- under torch.compile ---------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_with_first_derivatives(name: str, dynamic: bool) -> None:
    function, arguments, plain = OPERATIONS[name]
    torch._dynamo.reset()
    compiled = torch.compile(scalar(function), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    gradients = []
    for f in (compiled, scalar(plain)):
        leaves = tuple(a.clone().requires_grad_() for a in arguments)
        gradients.append((f(*leaves), torch.autograd.grad(f(*leaves), leaves)))
    torch.testing.assert_close(*gradients)


@each
def test_compiled_second_derivatives_are_not_silently_first_order(name: str) -> None:
    function, arguments, plain = OPERATIONS[name]
    every = tuple(range(len(arguments)))

    def second(f: Callable[..., Any]) -> Callable[..., Any]:
        return grad(lambda *a: scalar(grad(scalar(f), every))(*a), every)

    torch._dynamo.reset()
    got = torch.compile(second(function), fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(got, second(plain)(*arguments))


def test_a_compiled_meta_step_has_the_second_order_gradient() -> None:
    """Two inner steps of a prototypical head and of a flat network, then the outer gradient by everything."""
    x, target = randn(3, 2, 6, 4), cycled(6, below=3).expand(3, 2, -1)
    start, rates = (
        0.3 * randn(20, seed=1),
        torch.full((2, 20), 0.05, dtype=torch.float64, device=DEVICE),
    )

    def network(flat: Tensor, x: Tensor) -> Tensor:
        return (x @ flat[:16].view(4, 4)).tanh() + flat[16:]

    def loss(flat: Tensor, x: Tensor, target: Tensor, nll: Callable[..., Tensor]) -> Tensor:
        z = network(flat, x)
        return nll(z[None, 3:], z[None, :3], target[None, 3:])

    def meta(
        start: Tensor, rates: Tensor, nll: Callable[..., Tensor], update: Callable[..., Tensor]
    ) -> Tensor:
        flat = start.expand(3, -1)
        for step in range(2):
            gradients = vmap(
                lambda f, x, t: grad(lambda a, b: loss(torch.cat([a, b]), x, t, nll), (0, 1))(
                    f[:16], f[16:]
                )
            )(flat, x[:, 0], target[:, 0])
            flat = update(flat, gradients, rates[step])
        return vmap(lambda f, x, t: loss(f, x, t, nll))(flat, x[:, 1], target[:, 1]).mean()

    def by_kernels(start: Tensor, rates: Tensor) -> Tensor:
        def update(flat: Tensor, gradients: Any, rate: Tensor) -> Tensor:
            return updated(flat, list(gradients), rate.unsqueeze(0), None, None, 1.0, 0.0, 0.0)[0]

        return meta(start, rates, mean_nll, update)

    def naive(start: Tensor, rates: Tensor, detached: bool = False) -> Tensor:
        def update(flat: Tensor, gradients: Any, rate: Tensor) -> Tensor:
            flat_gradient = torch.cat(gradients, 1)
            return flat - rate * (flat_gradient.detach() if detached else flat_gradient)

        return meta(start, rates, naive_nll, update)

    torch._dynamo.reset()
    exact = grad(naive, (0, 1))(start, rates)
    first_order = grad(lambda s, r: naive(s, r, True), (0, 1))(start, rates)
    assert (exact[0] - first_order[0]).norm() > 0.01 * exact[0].norm()
    torch.testing.assert_close(grad(by_kernels, (0, 1))(start, rates), exact)
    compiled = torch.compile(grad(by_kernels, (0, 1)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(start, rates), exact)


def test_the_public_operations_compile_whole() -> None:
    x, y, target = randn(2, 3, 5), randn(2, 4, 5, seed=1), cycled(2, 3, below=4)
    params, velocity = randn(2, 5, seed=2), randn(2, 5, seed=3)

    def everything(x: Tensor, y: Tensor, params: Tensor, velocity: Tensor) -> tuple[Tensor, ...]:
        rest = {"velocity": velocity, "momentum": 0.9, "weight_decay": 0.1, "max_norm": 1.0}
        after, v = ops.sgd_update(params, [x[:, 0, :2], x[:, 1:2, :3]], 0.1, **rest)
        return ops.pairwise_sqdist(x, y, root=True), ops.prototypical_nll(x, y, target), after, v

    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y, params, velocity), everything(x, y, params, velocity))


def test_covers_what_the_mode_says() -> None:
    assert kernels.covers("cpu") == (kernels.mode() == "emulated")
    assert not kernels.covers("meta")
