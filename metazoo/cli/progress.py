"""What a person sees of a running training."""

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

from metazoo.training.loop import Watcher


@contextlib.contextmanager
def shown(how: str, title: str, chance: float | None) -> Iterator[Watcher]:
    """Show a run's progress while it lasts: "bar", "lines", "none", or "auto" (a bar on a terminal)."""
    if how == "auto":
        how = "bar" if sys.stderr.isatty() else "none"
    if how == "none":
        yield Watcher()
    elif how == "lines":
        yield Lines(Console(stderr=True, highlight=False, soft_wrap=True), title, chance)
    else:
        console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            yield Bar(progress, console, title, chance)


@contextlib.contextmanager
def counted(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while it lasts, nothing elsewhere; give what is told how much of how much is done."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True, highlight=False), transient=True
    ) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


class Lines(Watcher):
    """A line at every validation, with loss, rate and remaining time."""

    def __init__(self, console: Console, title: str, chance: float | None):
        self.console, self.percent = console, chance is not None
        self.began, self.first = time.monotonic(), -1
        self.losses: list[float] = []
        self.steps = self.done = 0
        against = f", chance {chance:.1%}" if chance is not None else ""
        console.print(f"training {title}{against}")

    def step(self, step: int, steps: int, loss: float) -> None:
        if self.first < 0:
            self.first, self.began = step - 1, time.monotonic()
        self.losses.append(loss)
        self.done, self.steps = step, steps

    @property
    def rate(self) -> float:
        return (self.done - self.first) / max(1e-9, time.monotonic() - self.began)

    def validation(self, step: int, value: float, improved: bool) -> None:
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        shown = f"{value:.2%}" if self.percent else f"{value:.4f}"
        mark = " (best)" if improved else ""
        left = (self.steps - step) / self.rate
        self.console.print(
            f"step {step:>6}/{self.steps}  loss {loss:8.4f}  validation {shown}{mark}"
            f"  {self.rate:.1f} steps/s  {left:.0f} s left"
        )

    def test(self, done: int, count: int) -> None:
        if done == count:
            self.console.print(
                f"tested on {count} tasks of classes never trained on"
                if self.percent
                else f"tested on {count} tasks"
            )


class Bar(Lines):
    """A bar with rate and remaining time, and the lines above it."""

    def __init__(self, progress: Progress, console: Console, title: str, chance: float | None):
        super().__init__(console, title, chance)
        self.progress = progress
        self.bars: dict[str, TaskID] = {}

    def _move(self, name: str, done: int, total: int, rate: str) -> None:
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total, completed=done, rate=rate)
        self.progress.update(self.bars[name], completed=done, rate=rate)

    def step(self, step: int, steps: int, loss: float) -> None:
        super().step(step, steps, loss)
        self._move("train", step, steps, f"loss {loss:.4f}  {self.rate:.1f} steps/s")

    def test(self, done: int, count: int) -> None:
        self._move("test", done, count, "")
        super().test(done, count)
