"""Answers to queries: printed as they come, or written to a file that a later call continues."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from metazoo.errors import OptionError
from metazoo.io.files import json_text, naming, parse_json, write_atomically
from metazoo.quoting import printable, shell_word

SUFFIXES = (".csv", ".jsonl")
LONGEST = 72  # characters of a text in a table for people
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A query, its label (None: it belongs to no class) and the probability of every class.

    `nearest` holds the nearest labelled examples: example, label and similarity.
    """

    query: str
    label: Any
    probabilities: dict[Any, float]
    nearest: Sequence[tuple[str, Any, float]] = ()

    def as_dict(self, what: str) -> dict[str, Any]:
        """Return the answer for JSON; `what` names the query."""
        values = {what: self.query, "label": self.label, "probabilities": self.probabilities}
        if self.nearest:
            values["nearest"] = [
                {"example": example, "label": label, "similarity": similarity}
                for example, label, similarity in self.nearest
            ]
        return values

    def cells(self) -> list[str]:
        """Return the answer as cells of a table; the label of no class is empty."""
        label = "" if self.label is None else printable(str(self.label))
        best = f"{max(self.probabilities.values()):.4f}"
        nearest = [
            f"{printable(example)} ({printable(str(other))}, {similarity:.2f})"
            for example, other, similarity in self.nearest
        ]
        return [printable(self.query), label, best, *(["; ".join(nearest)] if nearest else [])]


class Output(Protocol):
    """Receives answers in order, a batch at a time."""

    def write(self, answers: Sequence[Answer]) -> None:
        """Take the next answers."""

    def close(self) -> None:
        """Say that there are no more answers."""


class Nowhere:
    """Drops the answers: of the processes of a job, only the first one prints."""

    def write(self, answers: Sequence[Answer]) -> None:
        pass

    def close(self) -> None:
        pass


class Table:
    """Prints aligned columns; their widths are those of the first batch. Long texts are cut."""

    def __init__(self, what: str, explained: bool):
        self.header = csv_header(what, explained)
        self.widths: list[int] = []

    def write(self, answers: Sequence[Answer]) -> None:
        rows = [answer.cells() for answer in answers]
        for row in rows:
            row[2] = f"{float(row[2]):.1%}"
            if self.header[0] == "text" and len(row[0]) > LONGEST:
                row[0] = f"{row[0][: LONGEST - 3]}..."
        if not self.widths:
            self.widths = [max(map(len, column)) for column in zip(self.header, *rows)]
            rows.insert(0, self.header)
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, self.widths))
            click.echo("  ".join(cells).rstrip())

    def close(self) -> None:
        if not self.widths:
            self.write([])


class Json:
    """Prints one JSON array."""

    def __init__(self, what: str):
        self.what, self.begun = what, False

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            text = json_text(answer.as_dict(self.what), indent=2).replace("\n", "\n  ")
            click.echo(f"{',' if self.begun else '['}\n  {text}", nl=False)
            self.begun = True

    def close(self) -> None:
        click.echo("\n]" if self.begun else "[]")


class Csv:
    """Prints a line of CSV for each answer, after a header."""

    def __init__(self, what: str, explained: bool):
        click.echo(csv_lines([csv_header(what, explained)]), nl=False)

    def write(self, answers: Sequence[Answer]) -> None:
        click.echo(csv_lines([answer.cells() for answer in answers]), nl=False)

    def close(self) -> None:
        pass


class AnswerFile:
    """Writes answers to FILE.csv or FILE.jsonl; after a kill, the same call continues it.

    Beside it, a file says how many answers are complete, and for which classifier and queries. It is
    removed at the end. Raises OptionError if the file exists and is not one to continue.
    """

    def __init__(self, path: Path, what: str, explained: bool, fingerprint: str):
        self.path, self.what, self.explained = path, what, explained
        self.fingerprint = fingerprint
        self.state = path.with_name(f".{path.name}.progress")
        self.done, self.size = self._progress()
        if not self.size:
            self._record()  # first, so that after a kill the file is known as one to continue
            self._append(csv_lines([csv_header(what, explained)]) if path.suffix == ".csv" else "")

    def _progress(self) -> tuple[int, int]:
        """Return how many answers, and bytes, of an interrupted call are complete."""
        if not self.path.exists():
            return 0, 0
        again = f"delete it, or choose another --out; `rm {shell_word(self.path)}`"
        if not self.state.exists():
            raise OptionError(f"{self.path} exists already", again)
        try:
            found = parse_json(self.state.read_bytes())
            same = found["for"] == self.fingerprint
            done, size = int(found["done"]), int(found["bytes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{self.state} is damaged: {error}", again) from error
        if not same or done < 0 or not 0 <= size <= self.path.stat().st_size:
            raise OptionError(
                f"{self.path} has answers of another classifier or to other queries", again
            )
        return done, size

    def write(self, answers: Sequence[Answer]) -> None:
        self.done += len(answers)
        if self.path.suffix == ".csv":
            self._append(csv_lines([answer.cells() for answer in answers]))
        else:
            lines = (json_text(answer.as_dict(self.what)) + "\n" for answer in answers)
            self._append("".join(lines))

    def close(self) -> None:
        self.state.unlink(missing_ok=True)

    def _append(self, text: str) -> None:
        """Write after the complete answers, then record that these are complete too."""
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.size else "wb") as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(text.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
                self.size = file.tell()
        self._record()

    def _record(self) -> None:
        values = {"for": self.fingerprint, "done": self.done, "bytes": self.size}
        write_atomically(self.state, json.dumps(values).encode())


def csv_header(what: str, explained: bool) -> list[str]:
    """Return the header of a CSV of answers."""
    return [what, "label", "probability", *(["nearest"] if explained else [])]


def csv_lines(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield values in lists of at most `size`."""
    rest = iter(values)
    while batch := list(itertools.islice(rest, size)):
        yield batch
