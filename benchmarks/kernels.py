"""The operators of metazoo.ops against stock PyTorch: distances, the prototypical loss, inner steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
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
    with bench.part("rates of this device"):
        rates(bench)
    for shape in bench.pick(SHAPES, QUICK):
        for mode in ("forward", "gradient", "penalty"):
            with bench.part(f"distances {shape}, {mode}"):
                distances(bench, shape, mode)
    for shape in bench.pick(SHAPES, QUICK):
        for mode in ("forward", "gradient"):
            with bench.part(f"prototypical loss {shape}, {mode}"):
                losses(bench, shape, mode)
    for tasks, steps in bench.pick([(4, 1), (4, 5), (32, 1), (32, 5)], [(2, 1)]):
        with bench.part(f"inner loop, Conv4, {tasks} tasks, {steps} steps"), torch.no_grad():
            inner_loop(bench, tasks, steps)
    found = status()
    bench.work += f"; kernels: {found.mode}, {found.origin if found.loaded else 'plain PyTorch'}"


def rates(bench: Bench) -> None:
    """Measure the copy bandwidth and the float32 rate, for comparison."""
    size, order = (2**28, 8192) if bench.cuda else bench.pick((2**26, 2048), (2**22, 256))
    block = torch.randn(size, device=bench.device)
    square = torch.randn(order, order, device=bench.device)
    bench.race({"copy": Way(block.clone), "matrix product": Way(lambda: square @ square)})
    for row, amount, unit in zip(bench.rows, (8 * size, 2 * order**3), ("GB/s", "Gflop/s")):
        row.note, row.ratio = f"{short(amount / row.median / 1e6):g} {unit}", None


def broadcast(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


def expansion(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(squares, x, y.mT, alpha=-2)


def cdist(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).square()


def cdist_direct(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


STOCK: dict[str, Formula] = {
    "cdist": cdist,
    "cdist, no products": cdist_direct,
    "expansion": expansion,
    "broadcast": broadcast,
}


def directly(x: Tensor, y: Tensor) -> Tensor:
    """Return distances in float64 from differences, one class at a time to save memory."""
    x, y = x.double(), y.double()
    return torch.stack([(x - y[:, n : n + 1]).square().sum(-1) for n in range(y.shape[1])], -1)


def points(bench: Bench, shape: Sequence[int], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return random points x (B, Q, D) and y (B, N, D)."""
    torch.manual_seed(0)
    b, q, n, d = shape
    sizes = ((b, q, d), (b, n, d))
    x, y = (scale * torch.randn(*size, device=bench.device) for size in sizes)
    return x.requires_grad_(), y.requires_grad_()


def close_points(bench: Bench, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return points of norm about 1,000 sqrt(D), each of x within 0.01 of one of y."""
    x, y = (t.detach() for t in points(bench, shape))
    y = 1000 + y
    return y[:, torch.arange(x.shape[1], device=x.device) % y.shape[1]] + 0.01 * x, y


def slopes(formula: Formula, x: Tensor, y: Tensor, create_graph: bool = False) -> Any:
    """Return the gradients of the mean square of the distances."""
    loss = formula(x, y).square().mean() / x.shape[-1]
    return torch.autograd.grad(loss, (x, y), create_graph=create_graph)


def penalty(formula: Formula, x: Tensor, y: Tensor) -> Any:
    """Return the gradients of the squared norm of those gradients."""
    return torch.autograd.grad(sum(g.square().sum() for g in slopes(formula, x, y, True)), (x, y))


def distances(bench: Bench, shape: Shape, mode: str) -> None:
    """Race squared distances, their gradient, or the gradient of a gradient penalty."""
    x, y = points(bench, shape)
    do = {"forward": lambda f, x, y: [f(x, y)], "gradient": slopes, "penalty": penalty}[mode]
    formulas = {OURS: ops.pairwise_sqdist, **stock(bench, shape, mode)}
    if mode == "forward" and not bench.quick:
        torch._dynamo.reset()
        formulas["broadcast, Inductor"] = torch.compile(broadcast, fullgraph=True, dynamic=False)
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    with torch.set_grad_enabled(mode != "forward"):
        expected = [directly(x, y)] if mode == "forward" else do(expansion, *wide)
        race(bench, {name: partial(do, f, x, y) for name, f in formulas.items()}, expected)
    if mode == "forward":
        hard = close_points(bench, shape)
        true = directly(*hard)
        for row in (row for row in bench.rows if row.part == bench.current):
            off = (formulas[row.way](*hard).double() - true).abs() / true
            row.more["error, close points"] = short(off.max().item())


def losses(bench: Bench, shape: Shape, mode: str) -> None:
    """Race the loss of Prototypical Networks, or its gradient."""
    x, y = points(bench, shape, shape[3] ** -0.5)  # small distances: the softmax is not a step
    target = torch.randint(shape[2], shape[:2], device=bench.device)

    def do(formula: Formula | None, x: Tensor, y: Tensor) -> Any:
        with torch.set_grad_enabled(mode != "forward"):
            if formula is None:
                value = ops.prototypical_nll(x, y, target)
            else:
                value = F.cross_entropy(-formula(x, y).flatten(0, 1), target.flatten())
            return [value] if mode == "forward" else torch.autograd.grad(value, (x, y))

    formulas = {OURS: None, **stock(bench, shape, mode)}
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    calls = {name: partial(do, formula, x, y) for name, formula in formulas.items()}
    race(bench, calls, do(expansion, *wide))


def stock(bench: Bench, shape: Shape, mode: str) -> dict[str, Formula]:
    """Return the stock formulas; on a CPU without the broadcast where it takes too long."""
    numbers = torch.Size(shape).numel() * (3 if mode == "forward" else 20)
    skipped = "broadcast" if not bench.cuda and numbers > CPU_LIMIT else ""
    return {name: formula for name, formula in STOCK.items() if name != skipped}


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
    flat, flat_slopes = gather(start), [gather(grads) for grads in slopes]
    rates = torch.full((flat.shape[1],), LR, device=bench.device)

    def loop(start: Any, slopes: Any, step: Callable[[Any, Any], Any]) -> Call:
        def call() -> Any:
            params = start
            for grads in slopes:
                params = step(params, grads)
            return [params] if isinstance(params, Tensor) else params

        return call

    calls = {
        OURS: loop(flat, slopes, lambda p, g: ops.sgd_update(p, g, LR)),
        f"{OURS}, rates per parameter": loop(
            flat, slopes, lambda p, g: ops.sgd_update(p, g, rates)
        ),
        f"{OURS}, flat gradients": loop(flat, flat_slopes, lambda p, g: ops.sgd_update(p, g, LR)),
        "per tensor": loop(start, slopes, lambda p, g: [a - LR * b for a, b in zip(p, g)]),
        "foreach": loop(start, slopes, lambda p, g: torch._foreach_add(p, g, alpha=-LR)),
        "flat, sub": loop(flat, slopes, lambda p, g: torch.sub(p, gather(g), alpha=LR)),
        "flat, addcmul": loop(
            flat, slopes, lambda p, g: torch.addcmul(p, gather(g), rates, value=-1)
        ),
    }
    expected = flat.double() - LR * sum(grads.double() for grads in flat_slopes)

    race(bench, calls, [expected])
