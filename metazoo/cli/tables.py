"""Results and listings as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from metazoo.quoting import printable


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a header, with columns aligned; no cell can look like another row."""
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def value_text(result: dict[str, Any]) -> str:
    """Return the mean of a result and its 95 % interval."""
    if result["metric"] == "accuracy":
        return f"{100 * result['mean']:.2f} ± {100 * result['interval']:.2f} %"
    return f"{result['mean']:.4f} ± {result['interval']:.4f}"


def task_text(result: dict[str, Any]) -> str:
    """Return the protocol, or ways and shots, and the split if it is not the test split."""
    if "protocol" in result:
        return str(result["protocol"])
    split = f", {result['split']}" if result.get("split", "test") != "test" else ""
    ways = "" if result.get("ways") is None else f"{result['ways']}-way "
    return f"{ways}{result['shots']}-shot{split}"


def mode_text(result: dict[str, Any]) -> str:
    """Return "transductive" or "inductive", and the options that were overridden."""
    changes = [f"{name}={value}" for name, value in result.get("options", {}).items()]
    return ", ".join(["transductive" if result["transductive"] else "inductive", *changes])


def result_line(name: str, result: dict[str, Any], chance: float | None) -> str:
    """Return a result as one line; `chance` is the accuracy of guessing, None for a regression."""
    against = f", chance {chance:.1%}" if chance is not None else ""
    return (
        f"{name}: {task_text(result)} test {result['metric']} {value_text(result)}"
        f" (95 % interval, {result['tasks']} tasks, {mode_text(result)}{against})"
    )


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """Print a table of results, one a line, to stdout."""
    header = ("model", "data", "task", "metric", "mean ± 95 %", "tasks", "mode")
    rows = [
        (
            result["model"],
            result["data"],
            task_text(result),
            result["metric"],
            value_text(result),
            str(result["tasks"]),
            mode_text(result),
        )
        for result in results
    ]
    click.echo(table(header, rows))
