"""Measures the goals for a GPU, each against stock PyTorch on the same device; run from a checkout.

    python -m benchmarks.goals [--device cuda] [--quick] --out FILE

Checks first that the ways of a goal do the same; where they do not, it is a problem and nothing of that goal is timed. Float32
is measured with TF32 off; TF32 and bf16 are ways of their own. CUDA graphs come last. The file grows goal by goal. Ends with
status 1 where there is a problem; a goal that is missed is none.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import measure
from benchmarks.kernels.__main__ import kernels
from benchmarks.kernels.measure import Row, Scope, Way
from benchmarks.kernels.report import command, write
from metazoo.cli.memory import keep_freed_memory
from metazoo.version import VERSION
from metazoo.zoo import run_folder

from . import cached, maml, protonet
from .part import GRAPH, OURS, Part, allow_tf32, graphed

PARTS = {"maml": maml.part, "protonet": protonet.part, "cached": cached.part}
# In float32 a maximum that rounding turns moves a gradient by hundredths; what is further off is wrong.
FAR_OFF = 0.1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it works, and measures nothing"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    return parser.parse_args()


def eager(scope: Scope, part: Part) -> list[Row]:
    """Return the rows of a part's ways as they are."""
    rows = measure.compare(scope, {}, part.ways, part.judge)
    for row in rows:
        if "us" in row and row["way"] in part.episodes:
            row["us_per_episode"] = float(f"{row['us'] / part.episodes[row['way']]:.4g}")
    return rows


def captured(scope: Scope, part: Part) -> list[Row]:
    """Return rows of the ways that are captured, beside themselves as they are."""
    rows: list[Row] = []
    for name in part.captured:
        ways: dict[str, Way | str] = {
            name: part.ways[name],
            name + GRAPH: graphed(scope, part.ways[name]),
        }
        rows += measure.compare(scope, {}, ways, part.judge)
    return rows


def problems(name: str, rows: list[Row]) -> list[str]:
    """Return what is wrong with our own answers in float32; in less than that, failing is a finding."""
    ours = [row for row in rows if row["way"] in (OURS, OURS + GRAPH)]
    failed = [f"{name}, {row['way']}: {row['problem']}" for row in ours if "problem" in row]
    return failed + [
        f"{name}, {row['way']}: off by {row['error']}"
        for row in ours
        if not row.get("error", 0) < FAR_OFF
    ]


def conclude(part: Part, section: dict[str, Any]) -> None:
    """Put verdicts into a section, from all that was timed."""
    rows = (
        section["captured"] + section["rows"]
    )  # of a way that was timed twice, the time in the larger company counts
    section["goals"] = part.verdicts({row["way"]: row["us"] for row in rows if "us" in row})


def lines(record: dict[str, Any]) -> str:
    """Return what was found as lines to read."""
    text = []
    for name, section in record["sections"].items():
        text += [
            "",
            f"{name}: {section['work']}",
            *(f"  the same: {fact}" for fact in section["same"]),
        ]
        for row in section["rows"] + section["captured"]:
            figures = (
                f"{row['us']:12,.4g} us"
                if "us" in row
                else row.get("skipped", row.get("problem", ""))
            )
            text.append(
                f"  {row['way']:60}{figures}"
                + (f"  error {row['error']:.1e}" if "error" in row else "")
            )
        text += [
            f"  goal: {goal['goal']}; {goal['way']}: {goal['value']:,g}, limit {goal['limit']:,g}: "
            + ("reached" if goal["reached"] else "missed")
            for goal in section["goals"]
        ]
    return "\n".join(text + [f"PROBLEM {problem}" for problem in record["problems"]])


def main() -> int:
    options = arguments()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: there is no CUDA device\nhint: --device cpu --quick rehearses it without",
            file=sys.stderr,
        )
        return 1
    scope = Scope(torch.device(options.device), options.quick)
    allow_tf32(False)
    if not scope.cuda:
        keep_freed_memory()
    record: dict[str, Any] = {
        "format": 1,
        "command": command("benchmarks.goals"),
        "date": datetime.date.today().isoformat(),
        "machine": run_folder.machine(),
        "device": torch.cuda.get_device_name() if scope.cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "metazoo": VERSION,
        "quick": options.quick,
        "method": measure.METHOD[options.device],
        "sections": {},
        "problems": [],
        "finished": False,
    }
    parts: dict[str, Part] = {}
    for name, make in PARTS.items():
        try:
            part = make(scope)
            section = {
                "work": part.work,
                "same": part.check(),
                "rows": [],
                "captured": [],
                "goals": [],
            }
        except Exception as error:
            # The other goals are worth their time all the same.
            record["problems"].append(f"{name}: {measure.reason(error)}")
            continue
        parts[name], record["sections"][name] = part, section
        section["rows"] = eager(scope, part)
        conclude(part, section)
        record["problems"] += problems(name, section["rows"])
        record["kernels"] = kernels()
        write(options.out, record)
    # A capture that fails can leave the allocator in disorder, so nothing but captures comes after one.
    for name, part in parts.items():
        section = record["sections"][name]
        section["captured"] = captured(scope, part)
        record["problems"] += problems(name, section["captured"])
        conclude(part, section)
        write(options.out, record)
    record["finished"] = True
    write(options.out, record)
    print(lines(record))
    return 1 if record["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
