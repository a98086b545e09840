"""What `metazoo predict` is given: folders of images, tables, lines of text."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metazoo.errors import DataError
from metazoo.image_folders import query_images, support_images
from metazoo.tables import Table, is_table, open_table

STDIN = "-"
WHAT = {"text": "text", "image": "file", "numbers": "row"}


@dataclass(frozen=True)
class Columns:
    """The columns of tables; "" is guessed."""

    label: str = ""
    text: str = ""
    path: str = ""


@dataclass(frozen=True)
class Queries:
    """Unlabelled examples, read when they are needed: each with what the output calls it.

    `what` heads that column of the output: "file", "text" or "row". `count` is None if the number
    of examples is not known before they are read. `said` tells what was guessed.
    """

    what: str
    examples: Iterator[tuple[str, Any]]
    count: int | None
    said: tuple[str, ...] = ()


def labelled(place: Path, columns: Columns) -> tuple[list[Any], list[str], list[str]]:
    """Return labelled examples, their labels, and what was guessed about a table.

    The place is a folder with a folder of images for each class, or a table.
    """
    if not is_table(place):
        found = [(file, name) for name, files in support_images(place) for file in files]
        return [file for file, _ in found], [name for _, name in found], []
    with _table(place, columns, labelled=True) as table:
        examples, labels = [], []
        for row in table.rows:
            if row.label is None:
                raise DataError(
                    f"{place}, line {row.line}: the example has no label",
                    "fill it in, or remove the row",
                )
            examples.append(row.example)
            labels.append(row.label)
        return examples, labels, table.said


@contextlib.contextmanager
def unlabelled(place: str, columns: Columns) -> Iterator[Queries]:
    """Yield the queries of an image, a folder of images, a table or a .txt file, or of stdin ("-").

    A .txt file and stdin hold one text a line.
    """
    if place != STDIN and not is_table(Path(place)):
        files = query_images(Path(place))
        yield Queries("file", ((str(file), file) for file in files), len(files))
        return
    with _table(sys.stdin.buffer if place == STDIN else Path(place), columns) as table:
        yield Queries(WHAT[table.kind], _named(table), None, tuple(table.said))


def _table(source: Any, columns: Columns, labelled: bool = False) -> Table:
    named = {"label": columns.label} if labelled else {}
    return open_table(source, text=columns.text, path=columns.path, labelled=labelled, **named)


def _named(table: Table) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(table.rows, start=1):
        yield str(number) if table.kind == "numbers" else str(row.example), row.example
