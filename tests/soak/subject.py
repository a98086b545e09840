"""What the soak tries: subjects, their cases, and the faults that a case may find."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20


class Fault(AssertionError):
    """Something that must hold does not."""


class Refused(Exception):
    """metazoo answered with one error, in words; `told` is all that it printed."""

    def __init__(self, error: str, told: str = ""):
        super().__init__(error)
        self.told = told


@dataclass
class Case:
    """One try of a subject.

    Attributes:
        number: its number; with the seed it determines everything that is random.
        rng: the source of all random choices.
        folder: an empty folder, the current one while the case runs.
        done: what was done to the input, for the report of a fault.
        told: receives each of these as it is noted.
    """

    number: int
    rng: random.Random
    folder: Path
    done: list[str] = field(default_factory=list)
    told: Callable[[str], object] = print

    def note(self, what: str) -> None:
        """Record what is done to the input, at once: the process may not survive it."""
        self.done.append(what)
        self.told(what)


@dataclass(frozen=True)
class Subject:
    """A kind of trouble.

    Attributes:
        name: what `--only` calls it.
        what: a few words for the table.
        run: runs a case and returns metazoo's answer. Raises Refused, or a MetazooError, if metazoo
            refused the input, and Fault or anything else if it did neither.
        cases: how many cases a full run has.
        quick: how many a quick run has.
        seconds: limit on the processor time of a case.
        megabytes: limit on the memory that a case may take on top of what the process has.
        together: how many cases share a process.
        warm: called once in each process, in an empty folder, before its cases.
    """

    name: str
    what: str
    run: Callable[[Case], Any]
    cases: int
    quick: int
    seconds: float = 5.0
    megabytes: int = 600
    together: int = 50
    warm: Callable[[], object] = lambda: None


def must(holds: object, problem: str) -> None:
    """Raise Fault unless something holds."""
    if not holds:
        raise Fault(problem)
