"""Squared distances (B, Q, D), (B, N, D) -> (B, Q, N) by stock formulas, Inductor and ours, also differentiated twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from metazoo import ops

from .measure import Case, Row, Scope, Way, compare, compiled, elementwise, floor, marked, overall

Formula = Callable[[Tensor, Tensor], Tensor]

# The small, the large and what training and evaluation have; the others come when time is left.
CORE = [
    (1, 75, 5, 64),
    (16, 75, 5, 64),
    (16, 75, 5, 1600),
    (16, 75, 20, 640),
    (64, 300, 20, 640),
    (64, 300, 60, 1600),
]
QUICK = [(1, 15, 5, 64), (4, 75, 5, 64)]
ALL = list(itertools.product((1, 16, 64), (15, 75, 300), (5, 20, 60), (64, 640, 1600)))
# What a CPU can wait for: passes over the (B, Q, N, D) differences, times their number.
CPU_LIMIT = 2e9
PASSES = {"forward": 3, "double": 20}


def cdist(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).square()


def cdist_exact(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def norms(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(squares, x, y.mT, alpha=-2)


def broadcast(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


STOCK: dict[str, Formula] = {
    "cdist": cdist,
    "cdist, no mm": cdist_exact,
    "norms + bmm": norms,
    "broadcast": broadcast,
}


def exactly(x: Tensor, y: Tensor) -> Tensor:
    """Return the distances in float64, by direct differences and without (B, Q, N, D) numbers at once."""
    x, y = x.double(), y.double()
    return torch.stack([(x - y[:, n : n + 1]).square().sum(-1) for n in range(y.shape[1])], -1)


def points(scope: Scope, b: int, q: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(b, q, d, device=scope.device), torch.randn(b, n, d, device=scope.device)
    return x.requires_grad_(), y.requires_grad_()


def close_points(scope: Scope, b: int, q: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    """Return points of large norm, each of x within 0.01 of one of y: what expanding the square cannot tell apart."""
    y = 1000 + torch.randn(b, n, d, device=scope.device)
    return y[:, torch.arange(q, device=scope.device) % n] + 0.01 * torch.randn(
        b, q, d, device=scope.device
    ), y


def penalty(formula: Formula, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the squared norm of the gradients of the mean square of the distances: three passes."""
    loss = formula(x, y).square().mean() / x.shape[-1]
    gradients = torch.autograd.grad(loss, (x, y), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, y))


def penalty_by_func(formula: Formula, x: Tensor, y: Tensor) -> Any:
    """Return the same by torch.func, the one form of it that torch.compile gets right."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return formula(x, y).square().mean() / x.shape[-1]

    def squares(x: Tensor, y: Tensor) -> Tensor:
        gx, gy = torch.func.grad(loss, (0, 1))(x, y)
        return gx.square().sum() + gy.square().sum()

    return torch.func.grad(squares, (0, 1))(x, y)


def too_much(scope: Scope, mode: str, elements: int) -> str:
    """Return why direct differences of so many elements are left out, or nothing."""
    if scope.cuda or PASSES[mode] * elements <= CPU_LIMIT:
        return ""
    return f"{PASSES[mode]} passes over {elements:.1e} elements are too many for a CPU"


def inductor(scope: Scope, mode: str, core: bool, x: Tensor, y: Tensor) -> Way | str:
    if not scope.cuda and (mode == "double" or not core):
        return "on a CPU only the forward of the main shapes is compiled"
    if mode == "forward":
        function = compiled(broadcast)
        return marked(lambda: function(x, y))
    function = compiled(lambda x, y: penalty_by_func(broadcast, x, y))
    return marked(lambda: function(x.detach(), y.detach()))


def run(scope: Scope, shape: tuple[int, int, int, int], mode: str, core: bool) -> list[Row]:
    """Return the rows of one shape and mode ("forward" or "double")."""
    b, q, n, d = shape
    elements = b * q * n * d
    torch.manual_seed(0)
    x, y = points(scope, *shape)
    formulas: dict[str, Formula] = {**STOCK, "ours": ops.pairwise_sqdist}
    skip = too_much(scope, mode, elements)
    ways: dict[str, Way | str] = {}
    for name, formula in formulas.items():
        if skip and name == "broadcast":
            ways[name] = skip
        elif mode == "forward":
            ways[name] = _forward(formula, x, y)
        else:
            ways[name] = _double(formula, x, y)
    ways["inductor"] = skip or inductor(scope, mode, core, x, y)
    common = {"mode": mode, "B": b, "Q": q, "N": n, "D": d}
    if mode == "double":
        wide = [t.detach().double().requires_grad_() for t in (x, y)]
        reference = penalty(norms, *wide)  # float64 has digits to spare for points like these
        return compare(
            scope, common, ways, lambda result: {"error_double": overall(result, reference)}
        )
    with torch.no_grad():
        reference = exactly(x, y)
        rows = compare(
            scope, common, ways, lambda result: {"error": elementwise(result, reference)}
        )
        hard = close_points(scope, *shape)
        reference = exactly(*hard)
        least = floor(scope, 4 * b * (q * d + n * d + q * n), 2 * elements)
        for row in rows:
            if "us" in row:
                if row["way"] in formulas:
                    row["error_close"] = elementwise(formulas[row["way"]](*hard), reference)
                row.update(least)
                row["fraction"] = float(f"{least['floor_us'] / row.get('cold_us', row['us']):.3g}")
    return rows


def _forward(formula: Formula, x: Tensor, y: Tensor) -> Way:
    x, y = x.detach(), y.detach()
    return lambda: formula(x, y)


def _double(formula: Formula, x: Tensor, y: Tensor) -> Way:
    return lambda: penalty(formula, x, y)


def cases(scope: Scope) -> Iterator[Case]:
    """Yield what there is to measure."""
    shapes = QUICK if scope.quick else CORE + [shape for shape in ALL if shape not in CORE]
    for shape in shapes:
        for mode in ("forward", "double"):
            core = shape == QUICK[0] if scope.quick else shape in CORE
            rank = 1 if core else 5 if mode == "forward" else 6
            yield Case(
                "distances",
                f"{mode} {shape}",
                rank,
                lambda shape=shape, mode=mode, core=core: run(scope, shape, mode, core),
            )
