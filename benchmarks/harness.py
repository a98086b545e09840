"""The harness: check that all ways do the same work, time them in turns, report ratios.

A benchmark is a module of this folder with a function `run(bench)`. It opens a part, names the
ways to do its work, and calls `race`:

    with bench.part("drawing"):
        bench.race({"metazoo": Way(ours), "easyfsl": Way(theirs)}, error=difference, limit=1e-6)

Each round times every way once, so that other work on the machine hits all of them. A ratio is the
median over rounds of a way's time by the time of the first way in the same round.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metazoo.errors import first_line, out_of_memory
from metazoo.evaluation.score import Score
from metazoo.io.files import write_json
from metazoo.provenance import commit, machine

ROOT = Path(__file__).parents[1]
OURS = "metazoo"
SCALE = {"s": 1, "ms": 1e3, "us": 1e6, "MiB": 1, "tasks/s": 1}
Call = Callable[[], Any]


class Unavailable(Exception):
    """A benchmark or one of its ways cannot run here; the message says why."""


class Different(AssertionError):
    """Two ways gave different answers, so their times cannot be compared."""


@dataclass(frozen=True)
class Way:
    """One way to do the work of a part.

    A call does `amount` times the work that is reported.
    """

    call: Call
    note: str = ""
    amount: float = 1.0


@dataclass
class Row:
    """What one way took: median and extremes, and the median ratio to the part's first way."""

    part: str
    way: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float | None = None
    note: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """One run of one benchmark: where it runs, and what it found."""

    name: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    save: Callable[[Bench], None] = lambda bench: None
    work: str = ""
    same: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    current: str = ""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, full: Any, quick: Any) -> Any:
        """Return the size of a measurement, or that of a quick run, which only shows that it works."""
        return quick if self.quick else full

    def cpu_only(self) -> None:
        """Raise Unavailable on a GPU."""
        if self.cuda:
            raise Unavailable("it measures the CPU")

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part; if it fails, record the problem and let the other parts run."""
        print(f"{self.name}: {name}", file=sys.stderr, flush=True)
        self.current = name
        try:
            yield
        except Unavailable as error:
            self.left_out[name] = str(error)
        except Exception as error:
            self.problems.append(f"{name}: {reason(error)}")
        self.save(self)

    def check(self, fact: str, error: float, limit: float) -> None:
        """Record that ways agree in some respect, or raise Different."""
        if not error <= limit:
            raise Different(f"{fact}: off by {error:.1e}, allowed {limit:.1e}")
        self.same.append(f"{self.current}: {fact} (off by {error:.1e})")

    @contextlib.contextmanager
    def rival(self, way: str) -> Iterator[None]:
        """Leave a way out if what it needs is missing."""
        try:
            yield
        except Unavailable as error:
            self.left_out[way] = str(error)

    def race(
        self,
        ways: Mapping[str, Way],
        *,
        unit: str = "ms",
        rounds: int = 7,
        error: Callable[[Any], float] | None = None,
        limit: float = 1e-3,
        launches: bool = False,
    ) -> None:
        """Check the answer of each way, time all ways in turns and add their rows.

        `error` measures how far an answer is off. Above `limit` nothing is timed and Different is
        raised. A rival that raises is left out with the reason; metazoo must not raise.
        """
        more: dict[str, dict[str, Any]] = {}
        for name, way in ways.items():
            if (found := self._answer(name, way, error)) is None:
                continue
            if not found.get("error", 0) <= limit:
                raise Different(f"{name} is off by {found['error']:.1e}, allowed {limit:.1e}")
            more[name] = found | (self._launches(way.call) if launches and self.cuda else {})
        calls = {name: self._calls(ways[name].call) for name in more}
        times: dict[str, list[float]] = {name: [] for name in more}
        for i in range(self.pick(rounds, 1)):
            for name in list(more)[:: -1 if i % 2 else 1]:
                taken = self._time(ways[name].call, calls[name])
                times[name].append(taken / ways[name].amount)
        self.add(times, unit=unit)
        for row, (name, found) in zip(self.rows[len(self.rows) - len(more) :], more.items()):
            row.note, row.more = ways[name].note, found

    def add(self, values: Mapping[str, Sequence[float]], *, unit: str) -> None:
        """Add a row for each way from its value in every round; the first way is the reference."""
        first = next(iter(values), None)
        for name, taken in values.items():
            ratio = None
            if name != first:
                ratio = short(statistics.median(a / b for a, b in zip(taken, values[first])))
            figures = [short(SCALE[unit] * f(taken)) for f in (statistics.median, min, max)]
            self.rows.append(Row(self.current, name, unit, *figures, ratio))

    def score(self, values: Mapping[str, Tensor]) -> None:
        """Add a row for each way from its accuracies on the same tasks: mean and 95 % interval.

        The note of all but the first way is its paired difference to the first, in percent.
        """
        first = next(iter(values.values()))
        for name, found in values.items():
            own, other = Score.of(found), Score.of(found - first)
            mean, half = 100 * own.mean, 100 * own.interval
            note = "" if found is first else f"{100 * other.mean:+.2f} ± {100 * other.interval:.2f}"
            figures = [float(f"{value:.4g}") for value in (mean, mean - half, mean + half)]
            self.rows.append(Row(self.current, name, "%", *figures, note=note))

    def quickest(self, ways: Mapping[str, Call]) -> tuple[str, Call]:
        """Return the setting in which a rival is quickest, and the rival in that setting."""
        for call in ways.values():
            call()
        times = {name: min(self._time(call) for _ in range(2)) for name, call in ways.items()}
        best = min(times, key=lambda name: times[name])
        return best, ways[best]

    def _answer(
        self, name: str, way: Way, error: Callable[[Any], float] | None
    ) -> dict[str, Any] | None:
        """Call a way once and return its error, or None for a rival that raises."""
        try:
            answer = way.call()
            return {"error": short(error(answer))} if error else {}
        except Exception as problem:
            if name.startswith(OURS) and not out_of_memory(problem):
                raise
            self.left_out[f"{self.current}: {name}"] = reason(problem)
            return None

    def _calls(self, call: Call) -> int:
        """Return how many calls to time together: about 2 ms, at most 100."""
        return max(1, min(100, int(2e-3 / max(self._time(call), 1e-6))))

    def _time(self, call: Call, calls: int = 1) -> float:
        """Return the seconds of one of some calls; on a GPU from device events, the host included."""
        if not self.cuda:
            began = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - began) / calls
        torch.cuda.synchronize(self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / calls / 1e3

    def _launches(self, call: Call) -> dict[str, Any]:
        """Return how many kernels, copies and fills a call launches, and their time on the GPU."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        try:
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
                call()
                torch.cuda.synchronize(self.device)
            events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
        except Exception:
            return {}  # some containers do not let a program read the counters
        kernel_us = short(sum(e.time_range.elapsed_us() for e in events))
        return {"launches": len(events), "GPU us": kernel_us}

    def record(self) -> dict[str, Any]:
        """Return what was found, ready for JSON."""
        rows = [asdict(row) for row in self.rows]
        found = {"work": self.work, "same": self.same, "rows": rows}
        return {**found, "left_out": self.left_out, "problems": self.problems}

    def text(self) -> str:
        """Return what was found as a Markdown table, with what was checked and left out below it."""
        columns = {
            "part": [row.part for row in self.rows],
            "way": [row.way for row in self.rows],
            "median": [f"{number(row.median)} {row.unit}" for row in self.rows],
            "low to high": [f"{number(row.low)} to {number(row.high)}" for row in self.rows],
            "ratio": ["" if row.ratio is None else f"{row.ratio:.3g}x" for row in self.rows],
        }
        for key in dict.fromkeys(key for row in self.rows for key in row.more):
            columns[key] = [number(row.more.get(key, "")) for row in self.rows]
        columns["note"] = [row.note for row in self.rows]
        kept = [name for name, cells in columns.items() if any(cells)]
        lines = [kept, ["---"] * len(kept), *zip(*(columns[name] for name in kept))]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        below = [f"- checked: {fact}" for fact in self.same]
        below += [f"- left out: {way}: {why}" for way, why in self.left_out.items()]
        below += [f"- PROBLEM: {problem}" for problem in self.problems]
        title = f"## {self.name}\n\n{self.work}" + " (quick run: not a measurement)" * self.quick
        return "\n\n".join([title, table, "\n".join(below)]).rstrip() + "\n"


def number(value: Any) -> str:
    """Return a figure as text."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> float:
    """Return a value rounded to four digits."""
    return float(f"{value:.4g}")


def reason(error: Exception) -> str:
    """Return an exception as one line."""
    if out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {first_line(error)[:200]}"


def distance(values: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Return the largest error as a fraction of the largest value, the worst of several tensors."""
    errors = [
        (v.double() - r.double()).abs().max() / r.double().abs().max().clamp_min(1e-300)
        for v, r in zip(values, references)
    ]
    return torch.stack(errors).max().item()


def fresh(*command: str) -> Any:
    """Return the last line that a new Python process prints, read as JSON."""
    words = [sys.executable, *command]
    done = subprocess.run(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def processor() -> str:
    """Return the name of the processor and its units for bf16, if the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (li.partition(":") for li in lines)}
    flags = fields.get("flags", "").split()
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in flags]
    return " ".join([fields.get("model name", "unknown"), *units])


def circumstances(command: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Return what a reader of the figures must know."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "processor": processor(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "quick": quick,
    }


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, completely or not at all, without the names of this machine's folders."""
    text = json.dumps(record)
    for folder, name in ((str(ROOT), "."), (sys.prefix, "PREFIX"), (str(Path.home()), "~")):
        if len(folder) > 4 or name == "~":
            text = text.replace(json.dumps(folder)[1:-1], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(text))
