"""What the goals share: a goal's work and its ways, arithmetic in TF32, and ways captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.measure import Row, Scope, Way, overall, reason
from metazoo.base.algorithm import Algorithm
from metazoo.tasks.episode import Episode

OURS = "ours"
GRAPH, TF32, BF16 = ", CUDA graph", ", TF32", ", bf16"
# A first capture needs what lazy initialisation has made before: handles, workspaces, plans of convolutions.
WARM_UP = 3


@dataclass
class Part:
    """A goal: its ways, what is checked of them first, what a row says of an answer, which are captured, and the verdicts."""

    work: str
    ways: dict[str, Way]
    check: Callable[[], list[str]]
    judge: Callable[[Any], Row]
    verdicts: Callable[[Mapping[str, float]], list[Row]]
    captured: tuple[str, ...] = ()
    episodes: Mapping[str, int] = field(default_factory=dict)


def checked(fact: str, error: float, limit: float) -> str:
    """Return the fact with its error, or stop: times of different work say nothing."""
    if not error < limit:
        raise AssertionError(f"not so: {fact} (off by {error:.1e})")
    return f"{fact} (off by {error:.1e})"


def verdict(goal: str, way: str, value: float, limit: float, *, least: bool = False) -> Row:
    """Return whether a way's value is at most its limit (with `least`, at least)."""
    reached = value >= limit if least else value <= limit
    return {
        "goal": goal,
        "way": way,
        "value": float(f"{value:.4g}"),
        "limit": limit,
        "reached": reached,
    }


def slopes(model: Algorithm, task: Episode) -> Way:
    """Return the way to the gradient of metazoo's own loss."""
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(model.loss(task), parameters)


def error_of(result: Any, reference: Tensor) -> Row:
    """Return the error of a gradient as a fraction of its largest value; what gives no gradient has none."""
    # As one: the gradient by a bias before BatchNorm is zero but for rounding.
    return {"error": overall([flat(result)], [reference])} if isinstance(result, tuple) else {}


def flat(gradient: tuple[Tensor, ...]) -> Tensor:
    """Return a gradient by several tensors as one."""
    return torch.cat([g.flatten() for g in gradient])


def allow_tf32(allowed: bool) -> None:
    """Let float32 products and convolutions be taken in TF32, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def in_tf32(way: Way) -> Way:
    """Return the way with TF32 allowed while it runs."""

    def call() -> Any:
        allow_tf32(True)
        try:
            return way()
        finally:
            allow_tf32(False)

    return call


def graphed(scope: Scope, way: Way) -> Way | str:
    """Return a way that replays what another launches, or why there is none."""
    if not scope.cuda:
        return "a CPU has no CUDA graphs"
    torch.cuda.empty_cache()  # a graph has memory of its own, and during a capture nothing that is kept can be freed for it
    try:
        side = torch.cuda.Stream(scope.device)
        side.wait_stream(torch.cuda.current_stream(scope.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                way()
        torch.cuda.current_stream(scope.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            result = way()
    except Exception as error:
        # That it cannot be captured is a finding, whatever the reason.
        return f"cannot be captured: {reason(error)}"

    def replay() -> Any:
        graph.replay()
        return result

    return replay
