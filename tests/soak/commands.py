"""Commands of metazoo, run in this process, whose every word is checked."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from typing import Any

from metazoo import cli

from .subject import Refused, must

BUG = ("Traceback", "unexpected error in metazoo", "has a bug: ", "out of memory")
LONGEST = 4000  # characters of an error: more than any person reads
PYTHON_WARNING = re.compile(r"^\S+:\d+: \w*Warning: ", flags=re.M)


def execute(*words: Any) -> tuple[int, str, str]:
    """Run a command, and return its status, stdout and stderr, whose text is checked."""
    for number in (1, 2):
        os.ftruncate(number, 0)
    status = cli.run(
        [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words]
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out, err = _written(1), _written(2)
    check_text(out + err)
    return status, out, err


def command(*words: Any) -> tuple[str, str]:
    """Run a command, and return its stdout and stderr. Raises Refused if it fails, in one error."""
    status, out, err = execute(*words)
    if not status:
        return out, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    must(len(errors) == 1, f"status {status} and {len(errors)} errors: {err[-300:]}")
    must(len(errors[0]) < LONGEST, f"an error of {len(errors[0])} characters: {errors[0][:80]}")
    raise Refused(errors[0].removeprefix("error: "), out + err)


def answer(*words: Any) -> Any:
    """Run a command with --json, and return what it says. Raises Refused if it fails."""
    return read_json(command(*words, "--json")[0])


def read_json(text: str) -> Any:
    """Return the value of strict JSON."""

    def refuse(name: str) -> None:
        must(False, f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return must(False, f"stdout is not JSON ({error}): {text[:200]!r}")


def check_text(text: str) -> None:
    """Raise Fault if a text would control a terminal, or shows a bug."""
    control = {c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    must(not control, f"it prints {sorted(control)!r}: {_around(text, control)!r}")
    must(not PYTHON_WARNING.search(text), f"a warning of Python's: {text[-300:]}")
    for words in BUG:
        if words in text:
            lines = [line for line in text.splitlines() if line.startswith("error: ")]
            must(False, f"{words}: {' '.join(lines)[:300] or text[-300:]}")


def _around(text: str, characters: set[str]) -> str:
    place = next((i for i, c in enumerate(text) if c in characters), 0)
    return text[max(0, place - 60) : place + 60]


def _written(number: int) -> str:
    size = os.fstat(number).st_size
    return os.pread(number, size, 0).decode("utf-8", "backslashreplace")
