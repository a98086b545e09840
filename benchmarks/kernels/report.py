"""What the benchmarks leave: a JSON file without names of this machine's folders, and tables to read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Section, what makes a line of its table, what stands in its cells.
TABLES = [
    ("distances", ("mode", "B", "Q", "N", "D"), "us"),
    ("distances", ("mode", "B", "Q", "N", "D"), "cold_us"),
    ("distances", ("mode", "B", "Q", "N", "D"), "launches"),
    ("distances", ("mode", "B", "Q", "N", "D"), "ops"),
    ("distances", ("mode", "B", "Q", "N", "D"), "error"),
    ("distances", ("mode", "B", "Q", "N", "D"), "error_close"),
    ("distances", ("mode", "B", "Q", "N", "D"), "error_double"),
    ("distances", ("mode", "B", "Q", "N", "D"), "fraction"),
    ("head", ("mode", "B", "Q", "N", "D"), "us"),
    ("head", ("mode", "B", "Q", "N", "D"), "launches"),
    ("head", ("mode", "B", "Q", "N", "D"), "ops"),
    ("head", ("mode", "B", "Q", "N", "D"), "error"),
    ("evaluation", ("way",), "us_per_episode"),
    ("inner_loop", ("way",), "us"),
    ("inner_loop", ("way",), "launches"),
    ("inner_loop", ("way",), "ops"),
    ("maml", ("tasks", "steps"), "us"),
    ("maml", ("tasks", "steps"), "launches"),
    ("maml", ("tasks", "steps"), "ops"),
]
ACROSS = {"evaluation": ("what", "D"), "inner_loop": ("how", "tasks", "steps")}
LIBRARIES = "one episode at a time"
# Which stock ways do what one of ours does.
RIVALS = {
    "ours": (
        "cdist",
        "cdist, no mm",
        "norms + bmm",
        "broadcast",
        "per tensor",
        "foreach",
        "flat, sub",
    ),
    "ours, 1000 tasks at once": ("cdist, 1000 tasks at once",),
    "ours, per-parameter rates": ("flat, addcmul, per-parameter rates",),
    "ours, flat gradients": ("flat, sub, flat gradients",),
    "ours, in place": ("foreach, in place",),
    "auto": ("off",),
}
UNITS = {
    "us": "microseconds a call",
    "cold_us": "microseconds a call, L2 cleared and launches hidden",
    "us_per_episode": "microseconds an episode",
    "fraction": "of the rate that binds",
    "error": "largest relative error against float64",
    "error_close": "the same for close points of large norm",
    "error_double": "the same for the gradient of the penalty",
    "launches": "kernels, copies and fills a call",
    "ops": "non-view operations a call",
}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1)
    for folder, name in (
        (str(ROOT), "."),
        (sys.prefix, "PREFIX"),
        (sys.base_prefix, "BASE"),
        (str(Path.home()), "~"),
    ):
        # A folder high up, such as /usr, says nothing of anyone.
        if folder.count(os.sep) > 1 or name == "~":
            text = text.replace(json.dumps(folder)[1:-1], name)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def command(module: str) -> str:
    """Return the command that runs, with the names of files alone."""
    return " ".join(
        [
            "python -m",
            module,
            *(Path(word).name if os.sep in word else word for word in sys.argv[1:]),
        ]
    )


def tables(record: Mapping[str, Any]) -> str:
    """Return a record's sections as tables."""
    parts = [f"{record['machine']}\n{json.dumps(record['rates'])}"]
    for section, down, value in TABLES:
        rows = [row for row in record["sections"].get(section, []) if row.get(value) is not None]
        if rows:
            parts.append(
                f"{section}: {UNITS[value]}\n"
                + _pivot(rows, down, ACROSS.get(section, ("way",)), value)
            )
    rows = [row for section in record["sections"].values() for row in section]
    if record.get("summary"):
        parts.append("\n".join(["how many times as fast as stock PyTorch", *record["summary"]]))
    skipped = sorted({f"{row['way']}: {row['skipped']}" for row in rows if "skipped" in row})
    parts.append("\n".join(["left out:", *skipped]) if skipped else "nothing was left out")
    if record["not_run"]:
        parts.append(f"not run, for the time was over: {len(record['not_run'])} parts")
    parts += [f"PROBLEM {problem}" for problem in record["problems"]]
    return "\n\n".join(parts)


def _pivot(
    rows: list[dict[str, Any]], down: tuple[str, ...], across: tuple[str, ...], value: str
) -> str:
    def name(row: dict[str, Any], keys: tuple[str, ...]) -> str:
        return " ".join(
            str(row[key]) if isinstance(row[key], str) else f"{key}{row[key]}" for key in keys
        )

    lines, columns = (
        list(dict.fromkeys(name(row, keys) for row in rows)) for keys in (down, across)
    )
    cells = {(name(row, down), name(row, across)): f"{row[value]:.4g}" for row in rows}
    table = [
        ["", *columns],
        *([line, *(cells.get((line, column), "-") for column in columns)] for line in lines),
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        ).rstrip()
        for row in table
    )


def speedups(rows: list[dict[str, Any]]) -> list[str]:
    """Return lines that say how many times as fast each of our ways is as the fastest eager stock one like it."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if "us" in row:
            keys = [
                k for k in ("what", "mode", "how", "B", "Q", "N", "D", "tasks", "steps") if k in row
            ]
            label = " ".join(
                str(row[k]) if isinstance(row[k], str) else f"{k}{row[k]}" for k in keys
            )
            groups.setdefault(label, {})[row["way"]] = row
    lines = []
    for label, group in groups.items():
        for way, rivals in RIVALS.items():
            stock = [group[name] for name in rivals if name in group]
            if way in group and stock:
                parts = []
                for value in ("us", "cold_us"):
                    if value in group[way]:
                        best = min(stock, key=lambda row: row[value])
                        parts.append(
                            f"{best[value] / group[way][value]:.2f}x {best['way']}"
                            + " (cold)" * (value == "cold_us")
                        )
                parts += [
                    f"{group[name]['us'] / group[way]['us']:.2f}x {name}"
                    for name in ("inductor", LIBRARIES)
                    if name in group
                ]
                lines.append(f"{label:36} {way:28} {', '.join(parts)}")
    return lines


def commit() -> str:
    """Return the commit of the checkout, with a mark where it was changed since, or "unknown" where git cannot tell."""
    try:
        git = [
            "git",
            "-C",
            str(ROOT),
            "describe",
            "--always",
            "--abbrev=40",
            "--exclude=*",
            "--dirty",
        ]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sources() -> str:
    """Return a digest of all that the figures depend on: a copy of a checkout need have no commit."""
    digest = hashlib.sha256()
    for path in sorted(
        path for folder in ("csrc", "metazoo") for path in (ROOT / folder).rglob("*")
    ):
        if path.suffix in (".py", ".h", ".cuh", ".cu", ".cpp"):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
