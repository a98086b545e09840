"""What `metazoo predict` is given: folders of images, tables, lines of text."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metazoo.errors import DataError
from metazoo.image_folders import query_images, support_images
from metazoo.io.rows import format_of
from metazoo.quoting import printable
from metazoo.tables import Columns, Table, open_table

STDIN = "-"
WHAT = {"text": "text", "image": "file", "numbers": "row"}


@dataclass(frozen=True)
class Queries:
    """Unlabelled examples, read when they are needed: each with what the output calls it.

    `what` heads that column of the output: "file", "text" or "row". `count` is None if the number
    of examples is not known before they are read. `said` tells what was guessed.
    """

    what: str
    examples: Iterator[tuple[str, Any]]
    count: int | None
    said: list[str]


def labelled(place: Path, columns: Columns) -> tuple[list[Any], list[str], list[str]]:
    """Return labelled examples, their labels, and what was guessed about a table.

    The place is a folder with a folder of images for each class, or a table.
    """
    if not _is_table(place):
        found = [(file, name) for name, files in support_images(place) for file in files]
        return [file for file, _ in found], [name for _, name in found], []
    with open_table(place, columns, labelled=True) as table:
        examples, labels = [], []
        for row in table.rows:
            if row.label is None:
                raise DataError(
                    f"{printable(str(place))}, line {row.line}: the example has no label",
                    "fill it in, or remove the row",
                )
            examples.append(row.example)
            labels.append(row.label)
        return examples, labels, table.said


@contextlib.contextmanager
def unlabelled(place: str, columns: Columns) -> Iterator[Queries]:
    """Yield the queries of an image, a folder of images, a table or a .txt file, or of stdin ("-").

    A .txt file and stdin hold one text a line. Labels in a table are not read.
    """
    if place != STDIN and not _is_table(Path(place)):
        files = query_images(Path(place))
        yield Queries("file", ((str(file), file) for file in files), len(files), [])
        return
    columns = dataclasses.replace(columns, label="")
    with open_table(sys.stdin.buffer if place == STDIN else Path(place), columns) as table:
        yield Queries(WHAT[table.kind], _named(table), None, table.said)


def _is_table(place: Path) -> bool:
    return format_of(place) is not None and not place.is_dir()


def _named(table: Table) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(table.rows, start=1):
        yield str(number) if table.kind == "numbers" else str(row.example), row.example
