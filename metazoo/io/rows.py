"""The rows of .csv, .tsv and .jsonl files, and of texts one to a line, read one at a time."""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from metazoo.errors import DataError, OptionError, did_you_mean
from metazoo.io.files import parse_json
from metazoo.quoting import printable

Format = Literal["csv", "tsv", "jsonl", "txt"]
Record = tuple[int, list[Any]]  # the line on which a row begins, from 1, and its values

FORMATS = ("csv", "tsv", "jsonl", "txt")
LONGEST = 2**20  # bytes of a row: a line of a file that is not a table may have gigabytes
_SHOWN = 12  # columns that a message names


class Rows:
    """The rows of an open table in UTF-8, as lists of values in the order of the columns `names`.

    The first line of .csv and .tsv names the columns. Those of .jsonl are the keys of its first
    object. A .txt has the column "text". Blank lines are left out.

    Raises DataError, here and as `records` are read, if the table is damaged; the message has the
    line.

    Attributes:
        name: the name of the table in messages.
        names: the names of its columns.
        records: the rows that are not read yet.
        delimiter: what separates the fields of .csv and .tsv: a .csv may use semicolons or tabs.
    """

    def __init__(self, file: BinaryIO, name: str, format: Format):
        self.name, self.format = name, format
        self.delimiter = ""
        self._file = file
        self._line = self._size = 0  # lines read so far, and bytes of the row so far
        self.names: list[str] = ["text"]
        self.records: Iterator[Record]
        if format == "txt":
            self.records = self._texts()
        elif format == "jsonl":
            self._open_jsonl()
        else:
            self._open_csv()
        named = [column for column in self.names if column]
        if repeated := next((column for column in named if named.count(column) > 1), None):
            raise self.error(1, f"two columns are named '{printable(repeated)}'", "rename one")

    def error(self, line: int, what: str, hint: str) -> DataError:
        """Return the error for a damaged line."""
        return DataError(f"{self.name}, line {line}: {what}", hint)

    def place(self, column: str) -> int:
        """Return the place of a column in the rows; raise OptionError if there is none."""
        if column not in self.names:
            raise OptionError(
                f"{self.name} has no column '{printable(column)}'",
                f"{did_you_mean(column, self.names)}its columns are {listed(self.names)}",
            )
        return self.names.index(column)

    def peek(self, count: int) -> list[list[Any]]:
        """Return the first of the rows that are not read yet; `records` has them still."""
        first = list(itertools.islice(self.records, count))
        self.records = itertools.chain(first, self.records)
        return [values for _, values in first]

    def _lines(self) -> Iterator[str]:
        while data := self._read_line():
            self._line += 1
            self._size += len(data)
            if self._size > LONGEST:
                what = f"the row has more than {LONGEST} bytes"
                raise self.error(self._line, what, "is it a table? a quote may not be closed")
            try:
                yield data.decode("utf-8-sig" if self._line == 1 else "utf-8")
            except UnicodeDecodeError:
                raise self.error(self._line, "it is not UTF-8", "save the table as UTF-8") from None

    def _read_line(self) -> bytes:
        try:
            return self._file.readline(LONGEST + 1)
        except (OSError, EOFError, ValueError, zlib.error) as error:  # of gzip, or of the disk
            raise DataError(
                f"{self.name} cannot be read after line {self._line}: {error}", "it may be damaged"
            ) from error

    def _texts(self) -> Iterator[Record]:
        for line in self._lines():
            self._size = 0
            if line.strip():
                yield self._line, [line.rstrip("\r\n")]

    def _open_jsonl(self) -> None:
        objects = self._objects()
        first = next(objects, None)
        if first is None:
            raise DataError(f"{self.name} is empty", "it needs one JSON object on each line")
        self.names = list(first[1])
        self.records = (
            (line, [values.get(column) for column in self.names])
            for line, values in itertools.chain([first], objects)
        )

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for line in self._lines():
            self._size = 0
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except ValueError as error:
                raise self.error(self._line, f"it is not JSON: {error}", "repair it") from None
            if not isinstance(value, dict):
                raise self.error(
                    self._line, "it is not a JSON object", 'it is {"text": "...", ...}'
                )
            yield self._line, value

    def _open_csv(self) -> None:
        lines = self._lines()
        header = next(lines, "")
        if not header.strip():
            raise DataError(f"{self.name} is empty", "its first line names the columns")
        self.delimiter = "\t" if self.format == "tsv" else ","
        if self.format == "csv" and "," not in header:
            self.delimiter = next((other for other in ";\t" if other in header), ",")
        fields = self._fields(itertools.chain([header], lines))
        self.names = [name.strip() for name in next(fields)[1]]
        self.records = self._complete(fields)

    def _fields(self, lines: Iterable[str]) -> Iterator[Record]:
        rows, end = csv.reader(lines, delimiter=self.delimiter, strict=True), 0
        while True:
            try:
                values = next(rows, None)
            except csv.Error as error:
                hint = "a field that begins with a quote ends with one; quotes in it are doubled"
                raise self.error(end + 1, f"the row cannot be read: {error}", hint) from None
            if values is None:
                return
            start, end, self._size = end + 1, self._line, 0
            if values:
                yield start, values

    def _complete(self, rows: Iterator[Record]) -> Iterator[Record]:
        for line, values in rows:
            if len(values) != len(self.names):
                raise self.error(
                    line,
                    f"the row has {len(values)} fields, and the first line has {len(self.names)}",
                    f"put a text with {self.delimiter!r} in it between quotes",
                )
            yield line, values


def listed(names: Sequence[str]) -> str:
    """Return the names of columns, for a message."""
    shown = ", ".join(f"'{printable(name)}'" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names)} columns)"


def format_of(path: Path) -> Format | None:
    """Return the format of a table by the suffix of its name, or None; a .gz may follow it."""
    bare = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    suffix = bare.suffix.lower().removeprefix(".")
    return cast(Format, suffix) if suffix in FORMATS else None


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked if it is a .gz; raise DataError if it cannot be opened."""
    name = printable(str(path))
    if path.exists() and not path.is_file():  # a pipe would wait for a writer
        raise DataError(f"{name} is not a file", "give a .csv, .tsv or .jsonl file")
    try:
        opener = gzip.open if path.suffix.lower() == ".gz" else open
        return cast(BinaryIO, opener(path, "rb"))
    except FileNotFoundError:
        raise DataError(f"there is no file {name}", "check the path") from None
    except OSError as error:
        raise DataError(
            f"cannot read {name}: {error.strerror}", "check the path and its permissions"
        ) from error
