"""Tables of examples: which columns hold the texts, images or numbers, and which the labels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from metazoo.errors import DataError, OptionError
from metazoo.io.rows import FORMATS, Format, Rows, format_of, listed, open_file
from metazoo.quoting import printable

Example = str | Path | list[float]
Kind = Literal["text", "image", "numbers"]

# The names by which a column is guessed, in this order, in upper or lower case.
LABELS = ("label", "category", "intent", "class", "class_name", "target", "y", "labels")
TEXTS = (
    *("text", "utterance", "sentence", "query", "question", "message", "review", "comment"),
    *("content", "body", "document", "description", "title"),
)
PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path"),
    *("image", "image_path", "img", "photo", "picture"),
)
COUNTERS = ("", "id", "index", "unnamed: 0")  # columns of numbers that are not features
LONGEST_SHOWN = 60  # letters of a value in a message
PEEKED = 100  # rows that are read to guess which columns hold numbers


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; "" to guess it, or for no split.

    Examples are in the column `text`, in `path` (names of files), or in the columns `numbers`, in
    that order. Raises OptionError if more than one of the three is named.
    """

    label: str = ""
    text: str = ""
    path: str = ""
    numbers: tuple[str, ...] = ()
    split: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.text, self.path, self.numbers))) > 1:
            raise OptionError(
                "the examples of a table are texts, files or numbers",
                "name the columns of one kind",
            )


class Row(NamedTuple):
    """One example: a text, the path of a file or numbers; its label and split, if it has one.

    `line` is that on which the row begins, counted from 1.
    """

    example: Example
    label: str | None
    split: str | None
    line: int


@dataclass(frozen=True)
class Table:
    """An open table. Close it, or use it in a `with` statement.

    Attributes:
        kind: what the examples are.
        columns: the names of the columns that are read; `label` is "" if there are no labels.
        rows: the rows, read one at a time. Raises DataError, naming the line, for a damaged one.
        said: what was guessed, in sentences for the user.
    """

    kind: Kind
    columns: Columns
    rows: Iterator[Row]
    said: list[str]
    close: Callable[[], None]

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_table(
    source: Path | BinaryIO,
    wanted: Columns = Columns(),
    *,
    labelled: bool = False,
    format: Format | None = None,
) -> Table:
    """Open a table (see `metazoo.io.rows`) and choose its columns.

    A label is guessed by the name of its column (`LABELS`). So is a text (`TEXTS`), a path
    (`PATHS`) whose first file exists, or a text that is the only other column. If all other columns
    hold numbers, a row is an example of them. Paths are relative to the folder of the table, or to
    the working directory if it is a stream.

    Args:
        source: a file, or a binary stream, which stays open.
        wanted: the names of columns that are known.
        labelled: whether a table without labels is an error.
        format: how to read it; by default as the suffix says, and a stream as "txt".

    Raises:
        OptionError: there is no column of a given name.
        DataError: the file is missing, empty or not a table, or its columns cannot be guessed.
    """
    if isinstance(source, Path):
        format = format or format_of(source)
        if format is None:
            raise DataError(
                f"{printable(str(source))} does not have the suffix of a table",
                f"it is one of {', '.join(f'.{suffix}' for suffix in FORMATS)}, with or without .gz",
            )
        file, name, folder = open_file(source), printable(str(source)), source.parent
        close = file.close
    else:
        file, name, folder, close = source, "the standard input", Path(), lambda: None
    try:
        rows = Rows(file, name, format or "txt")
        kind, columns = _choose(rows, folder, wanted)
        if labelled and not columns.label:
            raise DataError(
                f"{name} has no column with the name of one for labels; its columns are {listed(rows.names)}",
                "its first line names the columns; name that of the labels with the option 'label'",
            )
        read = _read(rows, folder, kind, columns)
    except BaseException:
        close()
        raise
    return Table(kind, columns, read, _said(rows, kind, wanted, columns), close)


def _choose(rows: Rows, folder: Path, wanted: Columns) -> tuple[Kind, Columns]:
    """Return what the examples are, and all columns."""
    text, path, numbers, split = wanted.text, wanted.path, wanted.numbers, wanted.split
    free = [name for name in rows.names if name not in (text, path, split, *numbers)]
    label = wanted.label or _named(free, LABELS)
    free = [name for name in free if name != label]
    if not (text or path or numbers):
        text, path = _named(free, TEXTS), _named(free, PATHS)
        if text and path and not _has_file(rows, folder, path):
            path = ""
        if text and path:
            raise DataError(
                f"{rows.name} has both texts ('{text}') and files ('{path}')",
                "choose one with the option 'text' or 'path'",
            )
        if not (text or path):
            text, numbers = _by_values(rows, free)
    kind: Kind = "text" if text else "image" if path else "numbers"
    return kind, Columns(label, text, path, numbers, split)


def _named(names: Sequence[str], known: Sequence[str]) -> str:
    """Return the column whose name comes first among known ones, or ""."""
    lower = {name.casefold(): name for name in reversed(names)}
    return next((lower[name] for name in known if name in lower), "")


def _has_file(rows: Rows, folder: Path, column: str) -> bool:
    place = rows.place(column)
    return any(os.path.isfile(folder / str(values[place]).strip()) for values in rows.peek(1))


def _by_values(rows: Rows, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return the one column of texts, or the columns of numbers."""
    first = rows.peek(PEEKED)
    places = {name: rows.place(name) for name in names}

    def holds_words(name: str) -> bool:
        values = [row[places[name]] for row in first]
        return any(not _missing(value) and _number(value) is None for value in values)

    words = [name for name in names if holds_words(name)]
    features = [name for name in names if name not in words and name.casefold() not in COUNTERS]
    if first and bool(features) != (len(words) == 1):
        return (words[0], ()) if words else ("", tuple(features))
    raise DataError(
        f"{rows.name}: which column holds the examples cannot be guessed; its columns are {listed(rows.names)}",
        "name one of texts with the option 'text', or one of files with 'path'",
    )


def _said(rows: Rows, kind: Kind, wanted: Columns, chosen: Columns) -> list[str]:
    """Return what was guessed, for the user."""
    said = []
    if rows.format == "csv" and rows.delimiter != ",":
        said.append(f"the fields of {rows.name} are separated by {rows.delimiter!r}")
    guessed = []
    if rows.format != "txt" and not (wanted.text or wanted.path or wanted.numbers):
        what = {"text": "texts", "image": "files", "numbers": "numbers"}[kind]
        names = chosen.numbers or (chosen.text or chosen.path,)
        guessed.append(f"{what} in {listed(names)}")
    if chosen.label and not wanted.label:
        guessed.append(f"labels in {listed([chosen.label])}")
    return [*said, f"{rows.name} has {' and '.join(guessed)}"] if guessed else said


def _read(rows: Rows, folder: Path, kind: Kind, columns: Columns) -> Iterator[Row]:
    names = columns.numbers or (columns.text or columns.path,)
    places = [rows.place(name) for name in names]
    label, split = (rows.place(name) if name else None for name in (columns.label, columns.split))

    def example(values: list[Any]) -> Example:
        if kind == "numbers":
            return [_as_number(values[place], name) for place, name in zip(places, names)]
        text = _as_text(values[places[0]], names[0])
        return text if kind == "text" else _as_file(text.strip(), folder)

    def read_rows() -> Iterator[Row]:
        for line, values in rows.records:
            try:
                yield Row(
                    example(values),
                    None if label is None else _as_word(values[label], columns.label),
                    None if split is None else _as_word(values[split], columns.split),
                    line,
                )
            except ValueError as error:
                raise rows.error(line, str(error), "repair or remove the row") from None

    return read_rows()


def _as_text(value: Any, column: str) -> str:
    if not isinstance(value, str | None):
        raise ValueError(f"'{printable(column)}' is {_shown(value)}, not a text")
    if not (value or "").strip():
        raise ValueError(f"'{printable(column)}' is empty")
    return value or ""


def _as_file(text: str, folder: Path) -> Path:
    path = folder / text
    if not os.path.isfile(path):  # a pipe would wait for a writer
        raise ValueError(f"there is no file {printable(text)} in {printable(str(folder))}")
    return path


def _as_number(value: Any, column: str) -> float:
    number = _number(value)
    if number is None:
        what = "empty" if _missing(value) else f"{_shown(value)}, not a number"
        raise ValueError(f"'{printable(column)}' is {what}")
    return number


def _as_word(value: Any, column: str) -> str | None:
    """Return a label as text, or None if it is missing; JSON has numbers and truth values too."""
    if isinstance(value, bool | int | float):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str | None):
        raise ValueError(f"'{printable(column)}' is {_shown(value)}, not a label")
    return (value or "").strip() or None


def _number(value: Any) -> float | None:
    """Return a finite number, or None if a value is not one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _shown(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
