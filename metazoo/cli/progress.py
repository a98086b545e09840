"""Progress of a training or a measurement, on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from metazoo.quoting import printable
from metazoo.training.loop import Watcher


@contextlib.contextmanager
def training_progress(how: str, title: str, chance: float | None) -> Iterator[Watcher]:
    """Yield a watcher that shows a training run.

    Args:
        how: "bar", "lines", "none", or "auto" for a bar on a terminal and otherwise nothing.
        title: what is trained on what.
        chance: the accuracy of guessing; None for a regression.
    """
    if how == "auto":
        how = "bar" if sys.stderr.isatty() else "none"
    if how == "none":
        yield Watcher()
    elif how == "lines":
        yield Lines(_console(soft_wrap=True), title, chance)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = _console()
        with Progress(*columns, console=console) as progress:
            yield Bar(progress, console, title, chance)


@contextlib.contextmanager
def measurement_progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function that takes how much is done of how much (None: unknown), and moves a bar."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = _console()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(printable(title), total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _console(*, soft_wrap: bool = False) -> Console:
    """Return a console on stderr to which a name with brackets in it is a name."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


class Lines(Watcher):
    """Prints a line at every validation: loss, score, rate and remaining time."""

    def __init__(self, console: Console, title: str, chance: float | None):
        self.console, self.percent = console, chance is not None
        self.began, self.first = time.monotonic(), -1
        self.losses: list[float] = []
        self.steps = self.done = 0
        against = f", chance {chance:.1%}" if chance is not None else ""
        console.print(f"training {printable(title)}{against}")

    def step(self, step: int, steps: int, loss: float) -> None:
        if self.first < 0:  # a resumed run does not begin at step 1
            self.first, self.began = step - 1, time.monotonic()
        self.losses.append(loss)
        self.done, self.steps = step, steps

    @property
    def rate(self) -> float:
        """Steps per second since this process began to train."""
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.began)

    def validation(self, step: int, value: float, improved: bool) -> None:
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        score = f"{value:.2%}" if self.percent else f"{value:.4f}"
        mark = " (best)" if improved else ""
        left = (self.steps - step) / self.rate
        self.console.print(
            f"step {step:>6}/{self.steps}  loss {loss:8.4f}  validation {score}{mark}"
            f"  {self.rate:.1f} steps/s  {left:.0f} s left"
        )


class Bar(Lines):
    """Shows a bar with rate and remaining time below the lines of `Lines`."""

    def __init__(self, progress: Progress, console: Console, title: str, chance: float | None):
        super().__init__(console, title, chance)
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def step(self, step: int, steps: int, loss: float) -> None:
        super().step(step, steps, loss)
        self._move("train", step, steps, f"loss {loss:.4f}  {self.rate:.1f} steps/s")

    def test(self, done: int, count: int) -> None:
        self._move("test", done, count, "")

    def _move(self, name: str, done: int, total: int, rate: str) -> None:
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total, completed=done, rate=rate)
        self.progress.update(self.bars[name], completed=done, rate=rate)
