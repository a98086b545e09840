"""What all benchmarks of the suite share: a result and its rows, the race, and work done in a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metazoo.tasks.episode import Episode

from .kernels import measure
from .kernels.measure import Way
from .kernels.report import ROOT

OURS = "metazoo"


class Unavailable(Exception):
    """Why a benchmark or one of its ways cannot run here."""


@dataclass(frozen=True)
class Options:
    """What the command line asks of a benchmark; `images` is the folder for its plots."""

    images: Path
    quick: bool = False
    accuracy: bool = False

    def pick(self, full: Any, quick: Any) -> Any:
        """Return the size for a run that counts, or that for a run that only shows that it works."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """What a way took; `ratio` says how many times as much as ours in the same part, whose own row has none."""

    part: str
    way: str
    median: float
    low: float
    high: float
    ratio: float | None = None
    settings: str = ""


@dataclass(frozen=True)
class Goal:
    """How many times as much as ours a way was to take, and took."""

    against: str
    goal: float
    reached: float


@dataclass
class Result:
    """What a benchmark found: `same` says what was checked first, `notes` what to know of the figures, `left_out` why."""

    work: str
    unit: str
    same: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    plots: list[str] = field(default_factory=list)

    def checked(self, fact: str, holds: bool) -> None:
        """Record that the ways do the same in some respect, or stop: times of different work say nothing."""
        if not holds:
            raise AssertionError(f"not so: {fact}")
        self.same.append(fact)

    def race(
        self, part: str, ways: Mapping[str, Way], options: Options, *, per: float = 1,
        counts: Mapping[str, float] | None = None, settings: Mapping[str, str] | None = None, rounds: int = 7,
    ) -> None:  # fmt: skip
        """Time the ways in interleaved rounds, after a call of each that does not count, and add their rows: `per` a second.

        `counts` says how much of the work a call of a way does, where that is not all of it.
        """
        times = measure.race(measure.Scope(torch.device("cpu")), ways, options.pick(rounds, 1))
        scale = {name: 1e-6 * per / (counts or {}).get(name, 1) for name in ways}
        self.add(
            part,
            {
                name: [row[key] * scale[name] for key in ("us", "low", "high")]
                for name, row in times.items()
            },
            settings or {},
        )

    def add(
        self, part: str, values: Mapping[str, list[float]], settings: Mapping[str, str]
    ) -> None:
        """Add rows of what each way took, the median of its values and their extremes."""
        before = [row.median for row in self.rows if (row.part, row.way) == (part, OURS)]
        ours = statistics.median(values.get(OURS, before) or [0])
        for name, taken in values.items():
            median = statistics.median(taken)
            ratio = None if name == OURS or not ours else rounded(median / ours)
            figures = (rounded(median), rounded(min(taken)), rounded(max(taken)))
            self.rows.append(Row(part, name, *figures, ratio, settings.get(name, "")))

    def aim(self, goal: float, *rivals: str, part: str = "", ours: str = OURS) -> None:
        """Record a goal against the best of some rivals (those that start with one of these names), where any has run."""
        rows = [row for row in self.rows if row.part == part]
        own = next((row.median for row in rows if row.way == ours), None)
        found = [row for row in rows if row.way.startswith(rivals) and row.way != ours]
        if own and found:
            best = min(found, key=lambda row: row.median)
            against = ", ".join(
                filter(None, [best.way, part, "" if ours == OURS else f"by {ours}"])
            )
            self.goals.append(Goal(against, goal, rounded(best.median / own)))

    def leave_out(self, way: str, error: Exception) -> None:
        """Record why a way was left out."""
        self.left_out[way] = str(error)

    def record(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def rounded(value: float) -> float:
    """Return a value to four digits."""
    return float(f"{value:.4g}")


def quickest(ways: Mapping[str, Way]) -> tuple[str, Way]:
    """Return the setting in which a rival is quickest, and the rival in it."""
    times: dict[str, float] = {}
    scope = measure.Scope(torch.device("cpu"))
    for name, way in ways.items():
        way()
        times[name] = min(measure.sample(scope, way, 1) for _ in range(2))
    best = min(times, key=lambda name: times[name])
    return best, ways[best]


def closeness(values: list[Tensor], references: list[Tensor]) -> float:
    """Return how far some tensors are from others, as a fraction of the largest value, the worst of them."""
    return measure.overall(values, [reference.double() for reference in references])


def in_float64(tasks: Episode) -> Episode:
    """Return tasks whose examples are float64, to compare ways where rounding tells them apart less than mistakes would."""
    return replace(tasks, support_x=tasks.support_x.double(), query_x=tasks.query_x.double())


def fresh(module: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
    """Return what `python -m module words` prints as JSON, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, env={**os.environ, **(environment or {})}, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def lines(name: str, result: Result, *, goals: bool) -> str:
    """Return a result as lines to read, with what became of its goals or without."""
    text = [f"{name}: {result.work}", f"in {result.unit}"]
    text += [f"  the same: {fact}" for fact in result.same]
    width = max((len(f"{row.part} {row.way}") for row in result.rows), default=0) + 2
    for row in result.rows:
        ratio = "" if row.ratio is None else f"{row.ratio:8.3g}x"
        spread = f"{row.median:10.4g} ({row.low:.4g} to {row.high:.4g})"
        text.append(
            f"  {f'{row.part} {row.way}'.strip():{width}}{spread:36}{ratio:9}  {row.settings}".rstrip()
        )
    for goal in result.goals if goals else ():
        verdict = "reached" if goal.reached >= goal.goal else "missed"
        text.append(f"  goal {goal.goal:g}x against {goal.against}: {goal.reached:g}x, {verdict}")
    text += [f"  note: {note}" for note in result.notes]
    text += [f"  left out: {way}: {reason}" for way, reason in result.left_out.items()]
    return "\n".join(text)
