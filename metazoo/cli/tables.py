"""Results and listings as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header, in columns as wide as they need."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)


def value_text(result: dict[str, Any]) -> str:
    """Return a result's mean and 95 % interval."""
    if result["metric"] == "accuracy":
        return f"{100 * result['mean']:.2f} ± {100 * result['interval']:.2f} %"
    return f"{result['mean']:.4f} ± {result['interval']:.4f}"


def task_text(result: dict[str, Any]) -> str:
    """Return what a result was measured on, in words; the split, too, unless it is the test."""
    if "protocol" in result:
        return str(result["protocol"])
    part = f", {result['split']}" if result.get("split", "test") != "test" else ""
    ways = "" if result.get("ways") is None else f"{result['ways']}-way "
    return f"{ways}{result['shots']}-shot{part}"


def mode_text(result: dict[str, Any]) -> str:
    """Return whether queries were judged together, and which options were set otherwise than the model has them."""
    changes = [f"{name}={value}" for name, value in result.get("options", {}).items()]
    return ", ".join(["transductive" if result["transductive"] else "inductive", *changes])


def result_line(name: str, result: dict[str, Any], chance: float | None) -> str:
    """Return one result in a line."""
    against = f", chance {chance:.1%}" if chance is not None else ""
    return (
        f"{name}: {task_text(result)} test {result['metric']} {value_text(result)}"
        f" (95 % interval, {result['tasks']} tasks, {mode_text(result)}{against})"
    )


def print_results(rows: Sequence[dict[str, Any]]) -> None:
    """Print results to stdout, a line each."""
    header = ("model", "data", "task", "metric", "mean ± 95 %", "tasks", "mode")
    cells = [
        (r["model"], r["data"], task_text(r), r["metric"], value_text(r), str(r["tasks"]), mode_text(r)) for r in rows
    ]  # fmt: skip
    click.echo(table(header, cells))
