"""How the benchmarks measure: times interleaved over the ways, errors, and what one call launches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Way = Callable[[], Any]
Row = dict[str, Any]

# Twice what the largest second-level cache of these devices holds and more, so that no input survives in it; the
# clearing takes long enough for the host to have queued what is measured by the time that it ends.
FLUSH_BYTES = 512 * 2**20
METHOD = {
    "cuda": "us: device events around many calls, host included, inputs warm; cold_us: device events around one call queued "
    "behind a write of 512 MiB, which clears the L2 cache and hides the launches; medians of interleaved rounds, low and high "
    "are the extremes; launches and kernel_us: torch.profiler, one call; TF32 is off",
    "cpu": "us: time.perf_counter around calls; medians of interleaved rounds, low and high are the extremes; ops: non-view "
    "operations of one call, an operation of metazoo counting as one",
}


@dataclass
class Scope:
    """What is measured: on which device, how much of it, and the reference rates once they are known."""

    device: torch.device
    quick: bool = False
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 7 if self.cuda else 5


@dataclass
class Case:
    """A part of a section that is measured together. The smaller the rank, the sooner its turn."""

    section: str
    label: str
    rank: int
    run: Callable[[], list[Row]]


def compare(
    scope: Scope, common: Row, ways: Mapping[str, Way | str], judge: Callable[[Any], Row]
) -> list[Row]:
    """Return a row for every way: its errors as `judge` finds them, its launches and its times.

    A way that is a string was left out: the string says why. One of ours that fails is a problem; a stock one may.
    """
    rows = {name: {**common, "way": name} for name in ways}
    running: dict[str, Way] = {}
    for name, way in ways.items():
        row = rows[name]
        if isinstance(way, str):
            row["skipped"] = way
            continue
        try:
            if scope.cuda:
                torch.cuda.reset_peak_memory_stats(scope.device)
                before = torch.cuda.memory_allocated(scope.device)
                result = way()
                row["peak_mb"] = round(
                    (torch.cuda.max_memory_allocated(scope.device) - before) / 1e6, 2
                )
            else:
                result = way()
            row.update(judge(result))
            del result
            row.update(count(scope, way))
            running[name] = way
        except Exception as error:
            # Whatever stock PyTorch cannot do at this shape is a finding, and one way's failure must not lose the others.
            kind = "problem" if name.startswith("ours") and not out_of_memory(error) else "skipped"
            row[kind] = reason(error)
            if scope.cuda:
                torch.cuda.empty_cache()
    for name, times in race(scope, running).items():
        rows[name].update(times)
    return list(rows.values())


def out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def reason(error: Exception) -> str:
    """Return one line on an exception."""
    if out_of_memory(error):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    name = "not implemented" if isinstance(error, NotImplementedError) else type(error).__name__
    return f"{name}: {lines[0][:200]}"


def race(scope: Scope, ways: Mapping[str, Way], rounds: int | None = None) -> dict[str, Row]:
    """Return each way's times of a call in microseconds. Every round runs every way, so that what else happens hits all.

    Each way has been called before: a first call may build something. Without a number of rounds it is `scope.rounds`, or 3
    where a call takes long.
    """
    calls: dict[str, int] = {}
    usual = scope.rounds
    for name, way in ways.items():
        took = sample(scope, way, 1)
        calls[name] = max(1, min(100, int(2000 / max(took, 1))))
        if took > 1e5:
            usual = min(usual, 3)
    warm: dict[str, list[float]] = {name: [] for name in ways}
    cold: dict[str, list[float]] = {name: [] for name in ways}
    flush = torch.empty(FLUSH_BYTES // 4, device=scope.device) if scope.cuda and ways else None
    for _ in range(rounds or usual):
        for name, way in ways.items():
            warm[name].append(sample(scope, way, calls[name]))
            if flush is not None:
                flush.zero_()
                cold[name].append(sample(scope, way, 1, drained=False))
    rows: dict[str, Row] = {}
    for name, values in warm.items():
        rows[name] = {
            "us": _round(statistics.median(values)),
            "low": _round(min(values)),
            "high": _round(max(values)),
        }
        if cold[name]:
            rows[name]["cold_us"] = _round(statistics.median(cold[name]))
    return rows


def sample(scope: Scope, way: Way, calls: int, drained: bool = True) -> float:
    """Return the microseconds that one of some calls takes."""
    if not scope.cuda:
        began = time.perf_counter()
        for _ in range(calls):
            way()
        return (time.perf_counter() - began) / calls * 1e6
    if drained:
        torch.cuda.synchronize(scope.device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        way()
    end.record()
    torch.cuda.synchronize(scope.device)
    return start.elapsed_time(end) / calls * 1e3


def _round(value: float) -> float:
    return float(f"{value:.4g}")


class _Counter(TorchDispatchMode):
    """Counts operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [r.alias_info for r in func._schema.returns]
        self.ops += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def count(scope: Scope, way: Way) -> Row:
    """Return what one call launches: on a GPU kernels, copies and fills and their time, on a CPU its non-view operations."""
    if getattr(way, "compiled", False) and not scope.cuda:
        return {}  # a dispatch mode would make it run uncompiled
    if not scope.cuda:
        with _Counter() as counter:
            way()
        return {"ops": counter.ops}
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    way()
    torch.cuda.synchronize(scope.device)
    try:
        # The host's own operations are not asked for: of ten thousand tasks one by one they take minutes to sort.
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            way()
            torch.cuda.synchronize(scope.device)
        launched = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
    except Exception as error:
        return {
            "launches": None,
            "launches_problem": reason(error),
        }  # some containers keep the counters closed
    kernel_us = sum(e.time_range.elapsed_us() for e in launched)
    return {
        "launches": len(launched),
        "kernel_us": _round(kernel_us),
        "kernels": sorted({e.name[:120] for e in launched}),
    }


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function compiled by Inductor for the shapes that it is called with, and nothing of earlier ones kept."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def marked(way: Way) -> Way:
    """Return the way, marked as compiled."""

    def call() -> Any:
        return way()

    call.compiled = True  # type: ignore[attr-defined]
    return call


def elementwise(value: Tensor, reference: Tensor) -> float:
    """Return the largest relative error of an element."""
    return _round(
        ((value.double() - reference).abs() / reference.abs().clamp_min(1e-300)).max().item()
    )


def overall(values: Any, references: Any) -> float:
    """Return the largest error as a fraction of the largest value, the worst of several tensors."""
    errors = [
        (v.double() - r).abs().max() / r.abs().max().clamp_min(1e-300)
        for v, r in zip(values, references)
    ]
    return _round(torch.stack(errors).max().item())


def rates(scope: Scope) -> list[Row]:
    """Return the device's copy bandwidth (GB/s, read and written) and its float32 multiply-add rate (Gflop/s)."""
    size, order = (2**28, 8192) if scope.cuda else (2**24, 1024) if scope.quick else (2**26, 2048)
    block = torch.randn(size, device=scope.device)
    a = torch.randn(order, order, device=scope.device)
    ways: dict[str, Way] = {"copy": block.clone, "matmul": lambda: a @ a}
    for way in ways.values():
        way()
    times = race(scope, ways)
    key = "cold_us" if scope.cuda else "us"
    scope.rates["copy_gb_s"] = _round(2 * 4 * size / times["copy"][key] / 1e3)
    scope.rates["fp32_gflop_s"] = _round(2 * order**3 / times["matmul"][key] / 1e3)
    return [
        {"way": "copy", "bytes": 2 * 4 * size, "gb_s": scope.rates["copy_gb_s"], **times["copy"]},
        {
            "way": "matmul",
            "order": order,
            "gflop_s": scope.rates["fp32_gflop_s"],
            **times["matmul"],
        },
    ]


def floor(scope: Scope, bytes_moved: float, slots: float) -> Row:
    """Return the least time in microseconds by each of the reference rates, and which binds.

    A direct difference costs a subtraction and a multiply-add: 3 flops, but 2 issue slots, each of which the matrix product
    fills with a multiply-add of 2 flops. So slots count: by flops no more than 3 of 4 could ever be reached.
    """
    by_bytes = bytes_moved / scope.rates["copy_gb_s"] / 1e3
    by_slots = 2 * slots / scope.rates["fp32_gflop_s"] / 1e3
    return {
        "floor_us": _round(max(by_bytes, by_slots)),
        "binds": "copy" if by_bytes >= by_slots else "fp32",
    }
