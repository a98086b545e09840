"""Measures metazoo against what a user would pick instead: `python -m benchmarks [NAME ...]`, from a checkout.

Each benchmark first checks that all ways do the same, times them in interleaved rounds, prints what it found and writes it to
`--out`; `python docs/tables.py` puts the results into docs/performance.md. What is not installed is left out, with the reason.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
from pathlib import Path

import torch

from metazoo.cli.memory import keep_freed_memory
from metazoo.zoo import run_folder

from .kernels.report import ROOT, command, write
from .suite import Options, Unavailable, lines

NAMES = (
    "drawing",
    "evaluation",
    "protonet_step",
    "maml_step",
    "to_98",
    "heads",
    "memory",
    "growth",
)
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}  [default: all]"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it works, and measures nothing"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the results  [default: benchmarks/results; if quick, build/bench]",
    )
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="protonet_step: also train in both precisions, and test (takes minutes)",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    out = arguments.out or (ROOT / "build" / "bench" if arguments.quick else RESULTS)
    if arguments.quick and out.resolve() == RESULTS.resolve():
        parser.error(
            "the results of a quick run are no results; give it another folder with --out, or none"
        )
    keep_freed_memory()  # for the rivals as well: without it large tensors measure the system's clearing of pages
    images = ROOT / "docs" / "images" if out == RESULTS else out
    options = Options(images, arguments.quick, arguments.accuracy)
    for name in arguments.names or NAMES:
        print(f"running {name}", file=sys.stderr, flush=True)
        try:
            result = importlib.import_module(f"benchmarks.{name}").run(options)
        except Unavailable as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        record = {
            "benchmark": name,
            "command": command("benchmarks"),
            "date": datetime.date.today().isoformat(),
            "machine": run_folder.machine(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": run_folder.commit(),
            "quick": options.quick,
            "freed_memory": "kept, for every way (metazoo/cli/memory.py)",
            **result.record(),
        }
        write(out / f"{name}.json", record)
        print(lines(name, result, goals=not options.quick), flush=True)
    return 0


def processor() -> str:
    """Return the processor's name, and which units for bf16 it has, where the system tells."""
    path = Path("/proc/cpuinfo")
    told = (
        dict(
            line.split(":", 1)
            for line in path.read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
        if path.exists()
        else {}
    )
    fields = {key.strip(): value.strip() for key, value in told.items()}
    units = [
        unit for unit in ("avx512_bf16", "amx_bf16") if unit in fields.get("flags", "").split()
    ]
    return " ".join([fields.get("model name", "unknown"), *units])


if __name__ == "__main__":
    sys.exit(main())
