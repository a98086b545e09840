"""The update steps of an inner loop alone, their gradients given: Conv4's 112,261 parameters in 18 tensors, for every task."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from metazoo import ops
from metazoo.backbones.conv4 import Conv4

from .measure import Case, Row, Scope, Way, compare, compiled, marked, overall

LR = 0.01
# Compiled where the question is whether a compiler does it as well; the others are eager and captured alone.
COMPILED = ("per tensor", "foreach", "flat, sub", "ours")


def shapes() -> list[tuple[int, ...]]:
    """Return the shapes of what a 5-way model adapts."""
    found = [
        tuple(p.shape)
        for p in [*Conv4((1, 28, 28)).parameters(), *torch.nn.Linear(64, 5).parameters()]
    ]
    assert (len(found), sum(map(_size, found))) == (18, 112_261), (
        "this is not the network of the paper any more"
    )
    return found


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


class Loop:
    """Parameters of every task, flat and by tensor, and the gradients of every step."""

    def __init__(self, scope: Scope, tasks: int, steps: int):
        torch.manual_seed(0)
        device = scope.device
        self.tensors = [torch.randn(tasks, *shape, device=device) for shape in shapes()]
        self.grads = [[torch.randn_like(p) for p in self.tensors] for _ in range(steps)]
        self.flat = gather(self.tensors)
        self.flat_grads = [gather(grads) for grads in self.grads]
        self.rates = torch.full((self.flat.shape[1],), LR, device=device)
        # What the ways in place change.
        self.own_flat, self.own_tensors = self.flat.clone(), [p.clone() for p in self.tensors]

    def reset(self) -> None:
        self.own_flat.copy_(self.flat)
        for own, p in zip(self.own_tensors, self.tensors):
            own.copy_(p)

    def per_tensor(self) -> list[Tensor]:
        params = self.tensors
        for grads in self.grads:
            params = [p - LR * g for p, g in zip(params, grads)]
        return params

    def foreach(self) -> Sequence[Tensor]:
        params: Sequence[Tensor] = self.tensors
        for grads in self.grads:
            params = torch._foreach_add(params, grads, alpha=-LR)
        return params

    def foreach_in_place(self) -> list[Tensor]:
        for grads in self.grads:
            torch._foreach_add_(self.own_tensors, grads, alpha=-LR)
        return self.own_tensors

    def flat_sub(self) -> Tensor:
        params = self.flat
        for grads in self.grads:
            params = torch.sub(params, gather(grads), alpha=LR)
        return params

    def flat_addcmul(self) -> Tensor:
        params = self.flat
        for grads in self.grads:
            params = torch.addcmul(params, gather(grads), self.rates, value=-1)
        return params

    def flat_sub_of_flat(self) -> Tensor:
        params = self.flat
        for grads in self.flat_grads:
            params = torch.sub(params, grads, alpha=LR)
        return params

    def ours(self) -> Tensor:
        params = self.flat
        for grads in self.grads:
            params = ops.sgd_update(params, grads, LR)
        return params

    def ours_per_parameter(self) -> Tensor:
        params = self.flat
        for grads in self.grads:
            params = ops.sgd_update(params, grads, self.rates)
        return params

    def ours_of_flat(self) -> Tensor:
        params = self.flat
        for grads in self.flat_grads:
            params = ops.sgd_update(params, grads, LR)
        return params

    def ours_in_place(self) -> Tensor:
        for grads in self.grads:
            ops.sgd_update_(self.own_flat, grads, LR)
        return self.own_flat

    def ways(self) -> dict[str, Callable[[], Any]]:
        return {
            "per tensor": self.per_tensor,
            "foreach": self.foreach,
            "foreach, in place": self.foreach_in_place,
            "flat, sub": self.flat_sub,
            "flat, addcmul, per-parameter rates": self.flat_addcmul,
            "flat, sub, flat gradients": self.flat_sub_of_flat,
            "ours": self.ours,
            "ours, per-parameter rates": self.ours_per_parameter,
            "ours, flat gradients": self.ours_of_flat,
            "ours, in place": self.ours_in_place,
        }


def gather(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors (T, *shape_i) as one, (T, P)."""
    return torch.cat([t.flatten(1) for t in tensors], 1)


def captured(loop: Loop, way: Way) -> Way:
    """Return the replay of a CUDA graph of the way, with what it changes in place as it was."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            way()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = way()
    loop.reset()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def run(scope: Scope, tasks: int, steps: int, how: str) -> list[Row]:
    """Return the rows of one inner loop, run one of three ways: "eager", "compiled" or "graph"."""
    loop = Loop(scope, tasks, steps)
    reference = loop.flat.double()
    for grads in loop.flat_grads:
        reference = reference - LR * grads.double()

    def judge(result: Any) -> Row:
        flat = result if isinstance(result, Tensor) else gather(result)
        error = overall([flat], [reference])
        loop.reset()
        return {"error": error}

    ways: dict[str, Way | str] = {}
    # These are the steps alone; what they cost where they are differentiated is in the section "maml".
    with torch.no_grad():
        for name, way in loop.ways().items():
            if how == "eager":
                ways[name] = way
            elif how == "compiled":
                ways[name] = (
                    marked(compiled(way)) if name in COMPILED else "not compiled: see the module"
                )
            else:
                try:
                    ways[name] = captured(loop, way)
                except Exception as error:
                    ways[name] = _raising(error)
        return compare(scope, {"how": how, "tasks": tasks, "steps": steps}, ways, judge)


def _raising(error: Exception) -> Way:
    """Return a way that fails as its capture did, so that it is judged as any failure is."""

    def way() -> None:
        raise error

    return way


def cases(scope: Scope) -> Iterator[Case]:
    """Yield what there is to measure."""
    sizes = [(4, 1)] if scope.quick else list(itertools.product((4, 32), (1, 5)))
    for tasks, steps in sizes:
        for how, rank in (("eager", 2), ("graph", 2), ("compiled", 4)):
            if how == "graph" and not scope.cuda:
                continue
            if how == "compiled" and not scope.cuda and (scope.quick or (tasks, steps) != (4, 1)):
                continue  # minutes of g++ for what runs on a GPU
            label = f"{how}, {tasks} tasks, {steps} steps"
            yield Case(
                "inner_loop", label, rank, lambda t=tasks, s=steps, how=how: run(scope, t, s, how)
            )
