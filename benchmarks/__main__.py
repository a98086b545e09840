"""Measure metazoo against the alternatives: `python -m benchmarks [NAME ...]`, from a checkout.

Each benchmark first checks that all ways do the same work, then times them in turns. It prints a
Markdown table; a ratio of 2x means that a way takes twice the time of the first one in its part.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from metazoo.cli.process import keep_freed_memory

from .harness import Bench, Unavailable, circumstances, reason, write

NAMES = (
    "startup",
    "drawing",
    "evaluation",
    "protonet_step",
    "maml_step",
    "kernels",
    "practitioner",
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}  [default: all]"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no benchmark named {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device\nhint: use --device cpu", file=sys.stderr)
        raise SystemExit(1)
    return options


def main() -> int:
    options = arguments()
    device = torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == "cpu":
        keep_freed_memory()  # for the rivals, too: otherwise large tensors wait for cleared pages
    names = options.names or list(NAMES)
    command = " ".join(["python -m benchmarks", *names])
    command += " --device cuda" * (device.type == "cuda") + " --quick" * options.quick
    record = {**circumstances(command, device, options.quick), "finished": False, "results": {}}

    def save(bench: Bench) -> None:
        record["results"][bench.name] = bench.record()
        if options.json:
            write(options.json, record)

    for name in names:
        bench = Bench(name, device, options.quick, save)
        try:
            importlib.import_module(f"benchmarks.{name}").run(bench)
        except Unavailable as error:
            bench.left_out[name] = str(error)
        except Exception as error:
            bench.problems.append(reason(error))  # the other benchmarks must still run
        save(bench)
        print(bench.text(), flush=True)
    record["finished"] = True
    if options.json:
        write(options.json, record)
    keys = ("date", "commit", "device", "processor", "machine", "threads")
    print(f"`{command}`: " + ", ".join(f"{record[key]}" for key in keys) + " threads")
    return 1 if any(result["problems"] for result in record["results"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
