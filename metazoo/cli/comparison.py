"""Paired differences between models that were measured on the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.evaluation.protocol import Protocol
from metazoo.evaluation.score import Score
from metazoo.zoo.source import Source

TASK_KEYS = ("protocol", "split", "ways", "shots", "queries", "seed")


@dataclass(frozen=True)
class Measured:
    """The results of a model: for each protocol a row, and the scores of its tasks."""

    source: Source
    data: Dataset
    protocols: list[Protocol]
    rows: list[dict[str, Any]]
    scores: list[torch.Tensor]


def paired_differences(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return how much each model differs from the first on the same tasks, with intervals.

    A model that was measured on other tasks than the first is left out, with a note on stderr.
    """
    first, *others = measured
    split = first.rows[0].get("split")
    result: list[dict[str, Any]] = []
    for one in others:
        if not _same_tasks(one.data, first.data, split):
            _note_other_data(first, one, split)
            continue
        for ours, row, base in zip(one.scores, first.rows, first.scores):
            result.append(
                {
                    "model": one.source.name,
                    "minus": first.source.name,
                    "metric": row["metric"],
                    **Score.of(ours - base).as_dict(),
                    **{key: row[key] for key in TASK_KEYS if key in row},
                }
            )
    return result


def _note_other_data(first: Measured, one: Measured, split: str | None) -> None:
    flags = ["--dataset"]
    if type(one.data) is type(first.data):
        names = _differing_options(first.data, one.data, split) or first.data.local_options
        flags = [f"--data-{name.replace('_', '-')}" for name in names] or flags
    click.echo(
        f"note: '{first.source.name}' and '{one.source.name}' have different data, so there is no "
        f"paired difference; {' and '.join(flags)} can give both the same",
        err=True,
    )


def _same_tasks(a: Dataset, b: Dataset, split: str | None) -> bool:
    """Return whether two data sets give the same tasks, though in other places or image sizes."""
    if type(a) is not type(b) or _differing_options(a, b, split):
        return False
    if isinstance(a, ClassDataset) and isinstance(b, ClassDataset):
        parts = [split] if split in a.splits else [part for part in a.splits if part != "train"]
        return all(_classes(a, part) == _classes(b, part) for part in parts)
    return True


def _differing_options(a: Dataset, b: Dataset, split: str | None) -> list[str]:
    """Return the options that differ between two data sets and change the tasks of a split."""
    ignored = {*a.local_options, *a.input_format}
    if split != "train":
        ignored |= {*a.training_options}
    ours, theirs = options.as_dict(a.config), options.as_dict(b.config)
    return [name for name in ours if name not in ignored and ours[name] != theirs.get(name)]


def _classes(data: ClassDataset, split: str) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    examples = data.splits.get(split)
    return (examples.names, examples.counts) if examples is not None else None
