"""Try everything that may break metazoo, and print what came of it: `python -m tests.soak`, from a checkout.

The exit status is 0 if there was no fault. A fault is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Before torch is imported: the networks are tiny, and the processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from metazoo.io.files import write_json
from metazoo.provenance import commit, machine

from . import (
    disk,
    endurance,
    inputs,
    kills,
    learners,
    meaning,
    pictures,
    plugins,
    readers,
    runner,
    server,
    table,
)
from .material import Material, make
from .subject import Subject

MODULES = (readers, pictures, inputs, meaning, server, kills, disk, plugins, learners, endurance)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is random")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="this subject, or all of this module; may be repeated",
    )
    parser.add_argument("--case", type=int, help="only this case of it")
    parser.add_argument("--cases", type=int, help="so many cases of each subject")
    parser.add_argument("--quick", action="store_true", help="the part that `make test` runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the table and all faults to FILE"
    )
    return parser.parse_args(words)


def chosen(material: Material, names: Sequence[str] | None) -> list[Subject]:
    """Return the subjects of these names, or of the modules of these names, in the order of the table."""
    modules = {m.__name__.rpartition(".")[2]: m.subjects(material) for m in MODULES}
    known = {*modules, *(subject.name for found in modules.values() for subject in found)}
    if unknown := sorted(set(names or ()) - known):
        raise SystemExit(f"no subject named {unknown[0]}; there are {', '.join(sorted(known))}")
    return [
        subject
        for module, found in modules.items()
        for subject in found
        if names is None or {module, subject.name} & set(names)
    ]


def cases(subject: Subject, options: argparse.Namespace) -> Sequence[int]:
    """Return the numbers of the cases of a subject to run."""
    if options.case is not None:
        return [options.case]
    return range(options.cases or (subject.quick if options.quick else subject.cases))


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="metazoo-soak-") as folder:
        os.environ["METAZOO_CACHE"] = f"{folder}/cache"
        os.environ["MPLCONFIGDIR"] = f"{folder}/matplotlib"
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            material = make(Path(folder) / "material")
        found = []
        for subject in chosen(material, options.only):
            outcomes = runner.run(subject, cases(subject, options), options.seed, options.jobs)
            found.append((subject, outcomes))
            print(
                " | ".join(table.row(subject.what, outcomes).cells()), file=sys.stderr, flush=True
            )
            if text := table.faults(subject, outcomes, options.seed):
                print(text, file=sys.stderr, flush=True)
    return report(found, options)


def report(found: list[tuple[Subject, list[runner.Outcome]]], options: argparse.Namespace) -> int:
    """Print the table, write what was asked for, and return the exit status."""
    everything = [outcome for _, outcomes in found for outcome in outcomes]
    rows = [table.row(subject.what, outcomes) for subject, outcomes in found]
    print(table.markdown([*rows, table.row("all", everything)]))
    if options.json:
        about = {
            "command": f'make soak ARGS="--seed {options.seed} --json FILE"',
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "machine": machine(),
        }
        write_json(options.json, table.record(found, about))
    return int(any(outcome.kind == "fault" for outcome in everything))


if __name__ == "__main__":
    sys.exit(main())
