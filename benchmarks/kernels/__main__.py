"""Measures the operations of metazoo/ops.py against stock PyTorch; run from a checkout in which metazoo is installed.

    python -m benchmarks.kernels                       # on the GPU where there is one, everything
    python -m benchmarks.kernels --device cpu --quick  # a part that takes a minute or two
    python -m benchmarks.kernels --only distances,head --minutes 5

Prints tables and writes a JSON file (`--out`), which grows part by part: what matters most comes first, and what the time does
not reach is recorded as not run. Ends with status 1 where one of metazoo's own operations fails or errs.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .report import ROOT, command, speedups, tables, write

SECTIONS = ("distances", "head", "evaluation", "inner_loop", "maml")
# Our answers in float32 may be off by this much, by the kind of error.
TOLERANCE = {"error": 1e-4, "error_close": 1e-4, "error_double": 1e-3, "error_result": 1e-3}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a few small sizes")
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="start nothing after this long  [default: no limit]",
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}")
    parser.add_argument(
        "--out",
        type=Path,
        help="the JSON file  [default: benchmarks/results/kernels-DEVICE-DATE.json]",
    )
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


def kernels() -> dict[str, Any] | None:
    """Return what metazoo says of its kernels, or None where it has none to speak of."""
    try:
        from metazoo.kernels.loading import status
    except ImportError:
        return None
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(status()).items()
    }


def main() -> int:
    options = arguments()
    began = time.monotonic()
    import torch

    from metazoo.cli.memory import keep_freed_memory
    from metazoo.version import VERSION
    from metazoo.zoo import run_folder

    from . import distances, head, inner, maml, measure

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: there is no CUDA device\nhint: --device cpu measures on the CPU",
            file=sys.stderr,
        )
        return 1
    device = torch.device(
        "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == "cpu":
        keep_freed_memory()  # as the command line does: else the large tensors measure the system's clearing of pages
    scope = measure.Scope(device, options.quick)
    name = torch.cuda.get_device_name() if scope.cuda else "cpu"
    today = datetime.date.today().isoformat()
    out = options.out or ROOT / "benchmarks" / "results" / f"kernels-{slug(name)}-{today}.json"
    record: dict[str, Any] = {
        "format": 1,
        "command": command("benchmarks.kernels"),
        "date": today,
        "machine": run_folder.machine(),
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "metazoo": VERSION,
        "kernels": kernels(),
        "method": measure.METHOD[device.type],
        "rates": {},
        "sections": {},
        "not_run": [],
        "problems": [],
        "finished": False,
    }
    print("measuring the reference rates", file=sys.stderr)
    record["sections"]["rates"] = measure.rates(scope)
    record["rates"] = scope.rates
    cases = [
        case
        for module in (distances, head, inner, maml)
        for case in module.cases(scope)
        if case.section in options.only
    ]
    cases.sort(key=lambda case: case.rank)
    for number, case in enumerate(cases, start=1):
        label = f"{case.section}: {case.label}"
        if options.minutes and time.monotonic() - began > 60 * options.minutes:
            record["not_run"].append(label)
            continue
        print(
            f"{time.monotonic() - began:5.0f} s  {number}/{len(cases)}  {label}",
            file=sys.stderr,
            flush=True,
        )
        try:
            rows = case.run()
        except Exception as error:
            # The other cases are worth their time all the same.
            rows = [{"way": "ours", "problem": measure.reason(error)}]
        record["sections"].setdefault(case.section, []).extend(rows)
        record["problems"] += [
            f"{label}, {row['way']}: {row['problem']}" for row in rows if "problem" in row
        ]
        record["problems"] += inexact(label, rows)
        record.update(kernels=kernels(), seconds=round(time.monotonic() - began))
        write(out, record)
    summary = [line for rows in record["sections"].values() for line in speedups(rows)]
    record.update(finished=True, seconds=round(time.monotonic() - began), summary=summary)
    write(out, record)
    print(tables(record))
    print(f"\nwritten to {out}", file=sys.stderr)
    return 1 if record["problems"] else 0


def inexact(label: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with our own answers."""
    ours = [row for row in rows if row["way"].startswith("ours")]
    return [
        f"{label}, {row['way']}: {kind} is {row[kind]:.1e}"
        for row in ours
        for kind, limit in TOLERANCE.items()
        if kind in row and not row[kind] <= limit
    ]


def slug(name: str) -> str:
    """Return a device's name as part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
