"""What a soak found: one table, as text, as JSON and in docs/reliability.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .runner import Outcome
from .subject import Subject

HEADER = ("what", "inputs", "answers", "errors", "faults", "longest", "most memory")
WIDTH = 300  # characters of a fault that are printed
SHOWN = 8  # kinds of faults of a subject that are printed; JSON has every fault


@dataclass(frozen=True)
class Row:
    """The outcomes of one subject, or the sum of all."""

    what: str
    inputs: int
    answers: int
    errors: int
    faults: int
    seconds: float
    megabytes: float

    def cells(self) -> tuple[str, ...]:
        counts = (f"{n:,}" for n in (self.inputs, self.answers, self.errors, self.faults))
        return self.what, *counts, f"{self.seconds:.2f} s", f"{self.megabytes:.0f} MiB"


def row(what: str, outcomes: Sequence[Outcome]) -> Row:
    """Return the row of some outcomes."""
    kinds = [outcome.kind for outcome in outcomes]
    return Row(
        what,
        len(outcomes),
        *(kinds.count(kind) for kind in ("answer", "error", "fault")),
        max((outcome.seconds for outcome in outcomes), default=0.0),
        max((outcome.megabytes for outcome in outcomes), default=0.0),
    )


def markdown(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def faults(subject: Subject, outcomes: Sequence[Outcome], seed: int) -> str:
    """Return the faults of a subject, those of one kind together, each with the command that repeats it."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.kind == "fault":
            kinds.setdefault(_kind(outcome), []).append(outcome)
    lines = []
    for alike in sorted(kinds.values(), key=len, reverse=True)[:SHOWN]:
        first = min(alike, key=lambda outcome: len(outcome.done))  # the smallest
        again = f'make soak ARGS="--seed {seed} --only {subject.name} --case {first.case}"'
        lines.append(f"{subject.name}: {len(alike)} x {first.words[:WIDTH]}")
        lines.append(f"    after {', '.join(first.done)[:WIDTH] or 'nothing'}; again: {again}")
    return "\n".join(lines)


def _kind(outcome: Outcome) -> str:
    """Return what faults of one cause have in common: their first line, without numbers and quotes."""
    first = outcome.words.partition("\n")[0]
    return re.sub(r"'[^']*'|\"[^\"]*\"|[0-9.]+|/\S+", "_", first)[:80]


def record(
    found: Sequence[tuple[Subject, Sequence[Outcome]]], about: dict[str, Any]
) -> dict[str, Any]:
    """Return everything, ready for JSON."""
    everything = [outcome for _, outcomes in found for outcome in outcomes]
    rows = [*(row(s.what, outcomes) for s, outcomes in found), row("all", everything)]
    return {
        **about,
        "rows": [asdict(one) for one in rows],
        "faults": [
            {"subject": s.name, "case": o.case, "words": o.words, "done": list(o.done)}
            for s, outcomes in found
            for o in outcomes
            if o.kind == "fault"
        ],
    }
