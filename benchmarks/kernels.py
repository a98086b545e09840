"""The operators of metazoo.ops against stock PyTorch: squared distances and inner steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metazoo import ops
from metazoo.backbones.conv4 import Conv4
from metazoo.kernels.loading import status

from .harness import OURS, Bench, Call, Way, distance, short

Formula = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, int, int, int]

# (B, Q, N, D): tasks, queries, classes, features.
SHAPES = [
    (1, 75, 5, 64),
    (16, 75, 5, 64),
    (16, 75, 5, 1600),
    (16, 75, 20, 640),
    (64, 300, 20, 640),
    (64, 300, 60, 1600),
]
QUICK = [(1, 15, 5, 64)]
# A CPU leaves out the broadcast if it handles more numbers than this.
CPU_LIMIT = 2e9
LR = 0.01


def run(bench: Bench) -> None:
    bench.work = "the operators of metazoo.ops, (B, Q, N, D) as in docs/kernels.md"
    for shape in bench.pick(SHAPES, QUICK):
        for mode in ("forward", "gradient"):
            with bench.part(f"distances {shape}, {mode}"):
                distances(bench, shape, mode)
    for tasks, steps in bench.pick([(4, 1), (4, 5), (32, 1), (32, 5)], [(2, 1)]):
        with bench.part(f"inner loop, Conv4, {tasks} tasks, {steps} steps"), torch.no_grad():
            inner_loop(bench, tasks, steps)
    found = status()
    bench.work += f"; kernels: {found.mode}, {found.origin if found.loaded else 'plain PyTorch'}"


def broadcast(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


def expansion(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(squares, x, y.mT, alpha=-2)


NO_PRODUCTS = "donot_use_mm_for_euclid_dist"
STOCK: dict[str, Formula] = {
    "cdist": lambda x, y: torch.cdist(x, y).square(),
    "cdist, no products": lambda x, y: torch.cdist(x, y, compute_mode=NO_PRODUCTS).square(),
    "expansion": expansion,
    "broadcast": broadcast,
}


def directly(x: Tensor, y: Tensor) -> Tensor:
    """Return distances in float64 from differences, one class at a time to save memory."""
    x, y = x.double(), y.double()
    return torch.stack([(x - y[:, n : n + 1]).square().sum(-1) for n in range(y.shape[1])], -1)


def points(bench: Bench, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return random points x (B, Q, D) and y (B, N, D)."""
    torch.manual_seed(0)
    b, q, n, d = shape
    sizes = ((b, q, d), (b, n, d))
    x, y = (torch.randn(*size, device=bench.device) for size in sizes)
    return x.requires_grad_(), y.requires_grad_()


def close_points(bench: Bench, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return points of norm about 1,000 sqrt(D), each of x within 0.01 of one of y."""
    x, y = (t.detach() for t in points(bench, shape))
    y = 1000 + y
    return y[:, torch.arange(x.shape[1], device=x.device) % y.shape[1]] + 0.01 * x, y


def slopes(formula: Formula, x: Tensor, y: Tensor) -> Any:
    """Return the gradients of the mean square of the distances."""
    return torch.autograd.grad(formula(x, y).square().mean() / x.shape[-1], (x, y))


def distances(bench: Bench, shape: Shape, mode: str) -> None:
    """Race squared distances or their gradient."""
    x, y = points(bench, shape)
    do = slopes if mode == "gradient" else lambda f, x, y: [f(x, y)]
    formulas = {OURS: ops.pairwise_sqdist, **STOCK}
    if not bench.cuda and math.prod(shape) * (3 if mode == "forward" else 20) > CPU_LIMIT:
        del formulas["broadcast"]
    if mode == "forward" and not bench.quick:
        torch._dynamo.reset()
        formulas["broadcast, Inductor"] = torch.compile(broadcast, fullgraph=True, dynamic=False)
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    with torch.set_grad_enabled(mode == "gradient"):
        expected = slopes(expansion, *wide) if mode == "gradient" else [directly(x, y)]
        race(bench, {name: partial(do, f, x, y) for name, f in formulas.items()}, expected)
    if mode == "forward":
        hard = close_points(bench, shape)
        true = directly(*hard)
        for row in (row for row in bench.rows if row.part == bench.current):
            off = (formulas[row.way](*hard).double() - true).abs() / true
            row.more["error, close points"] = short(off.max().item())


def race(bench: Bench, calls: dict[str, Call], expected: Sequence[Tensor]) -> None:
    """Race calls that return tensors, or tensors of parameters for each task."""

    def error(found: Any) -> float:
        flat = len(found) != len(expected) or found[0].shape != expected[0].shape
        return distance([gather(found)] if flat else found, expected)

    ways = {name: Way(call) for name, call in calls.items()}
    bench.race(ways, unit="us", rounds=5, launches=True, error=error)


def gather(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors (T, *shape_i) as one, (T, P)."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def inner_loop(bench: Bench, tasks: int, steps: int) -> None:
    """Race inner steps of Conv4's parameters with given gradients."""
    torch.manual_seed(0)
    network = [*Conv4((1, 28, 28)).parameters(), *torch.nn.Linear(64, 5).parameters()]
    start = [torch.randn(tasks, *p.shape, device=bench.device) for p in network]
    slopes = [[torch.randn_like(p) for p in start] for _ in range(steps)]
    flat = gather(start)

    def loop(params: Any, step: Callable[[Any, Any], Any]) -> Any:
        for grads in slopes:
            params = step(params, grads)
        return params

    calls = {
        OURS: lambda: [loop(flat, lambda p, g: ops.sgd_update(p, g, LR))],
        "foreach": lambda: loop(start, lambda p, g: torch._foreach_add(p, g, alpha=-LR)),
    }
    race(bench, calls, [flat.double() - LR * sum(gather(grads).double() for grads in slopes)])
