"""Learning curves, as a PNG and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metazoo.io.files import write_atomically

Points = Sequence[tuple[float, float]]


def validations(metrics: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[float, float]]]:
    """Return the name of the metric and the points (step, value) of a run's validations."""
    for line in metrics:
        for name in line:
            if name.startswith("validation_"):
                return name.removeprefix("validation_"), [
                    (m["step"], m[name]) for m in metrics if name in m
                ]
    return "accuracy", []


def save_png(
    path: Path, title: str, metrics: Sequence[dict[str, Any]], chance: float | None
) -> None:
    """Plot training loss and validations against steps, with a dashed line at `chance`."""
    import io

    from matplotlib.figure import Figure

    name, points = validations(metrics)
    losses = [(m["step"], m["loss"]) for m in metrics if "loss" in m]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*losses) if losses else ([], []), linewidth=1)
    left.set(xlabel="outer step", ylabel="training loss")
    right.plot(*zip(*points) if points else ([], []), marker="o", markersize=3)
    if chance is not None:
        right.axhline(chance, color="grey", linestyle="--", linewidth=1)
        place = right.get_yaxis_transform()  # x in fractions of the axes, y in values
        style = {"color": "grey", "va": "bottom", "fontsize": "small"}
        right.text(0, chance, " chance", transform=place, **style)
    right.set(xlabel="outer step", ylabel=f"validation {name}")
    figure.suptitle(title, fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def text(points: Points, height: int = 8, width: int = 60, bottom: float | None = None) -> str:
    """Return a text plot of points (step, value); points that are not finite are left out.

    The lowest row is the lowest value or `bottom` (for instance chance), whichever is lower.
    """
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if not points:
        return ""
    values = [value for _, value in points]
    low, high = min([*values, *([] if bottom is None else [bottom])]), max(values)
    span = (high - low) or 1.0
    last = points[-1][0]
    grid = [[" "] * width for _ in range(height)]
    for step, value in points:
        column = min(width - 1, round(step / last * (width - 1))) if last else 0
        row = height - 1 - round((value - low) / span * (height - 1))
        grid[row][column] = "*"
    lines = [
        f"{high - span * row / (height - 1):8.3f} |{''.join(cells).rstrip()}"
        for row, cells in enumerate(grid)
    ]
    return "\n".join([*lines, " " * 9 + "+" + "-" * width, f"{'0':>10}{last:>{width}g} steps"])
