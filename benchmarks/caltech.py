"""Every algorithm on the reduced Caltech-101 under one protocol, for the table in docs/results.md:

    python -m benchmarks.caltech --data FILE --out FOLDER

FILE is `caltech101_32px.zip` or any tree that the data set `folder` reads. Each algorithm trains on
the same number of images with the same augmentation; the validation classes choose the checkpoint.
Algorithms that train on episodes are trained once for each number of shots, the baselines once.
`--from-baseline IMAGES` starts episodes from the backbone of `baseline` and trains on that many
images more (MAML on a third), as in Meta-Baseline (Chen et al. 2021, arXiv:2003.04390) and FEAT (Ye
et al. 2020, arXiv:1812.03664).

FOLDER keeps the runs, and a second call continues them. It writes FOLDER/caltech-BACKBONE.json, and
with `--from-baseline` FOLDER/caltech-BACKBONE-finished.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from metazoo.provenance import commit, machine
from metazoo.zoo.run_folder import RESULT

SHOTS = (1, 5)
QUERIES = 15
VALIDATIONS, VALIDATIONS_FROM_BASELINE = 10, 4
BATCH = 64
# The options of each algorithm, and the ways and queries of its training tasks (None: batches).
ALGORITHMS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "baseline": ("", None),
    "baseline++": ("", None),
    "matching": ("", (10, 10)),
    "protonet": ("", (10, 10)),
    "maml": ("--inner-steps 5 --first-order --inner-lr 0.02 --center", (5, 10)),
}
# From a trained backbone: the divisor of the images, because an image costs MAML several times as
# much, and the options. A trained backbone needs smaller steps than a new one, a new head larger.
FROM_BASELINE: dict[str, tuple[int, str]] = {
    "matching": (1, "--lr 0.0003"),
    "protonet": (1, "--lr 0.0003"),
    "maml": (3, "--lr 0.00003 --zero-head --inner-lr 0.005 --head-lr 0.05"),
}


def metazoo(*words: str, output: bool = False) -> str:
    """Run the command line and return what it prints."""
    stdout = subprocess.PIPE if output else None
    command = [sys.executable, "-m", "metazoo", *words]
    return subprocess.run(command, check=True, text=True, stdout=stdout).stdout or ""


def train(name: str, shots: int, arguments: argparse.Namespace) -> Path:
    """Train an algorithm, or continue its training, and return its run folder."""
    options, task = ALGORITHMS[name]
    finishing = task is not None and arguments.from_baseline is not None
    seen = f"{arguments.images}+{arguments.from_baseline}" if finishing else str(arguments.images)
    run = f"{name}-{arguments.backbone}-{seen}-{arguments.precision}"
    folder = arguments.out / run / (f"{shots}-shot" if task else "batches")
    if (folder / RESULT).exists():
        return folder
    if (folder / "config.json").exists():
        metazoo("train", "--resume", str(folder), "--progress", "lines")
        return folder
    validations, count, start = VALIDATIONS, arguments.images, ""
    if finishing:
        divisor, more = FROM_BASELINE[name]
        validations, count = VALIDATIONS_FROM_BASELINE, arguments.from_baseline // divisor
        start = str(train("baseline", SHOTS[-1], arguments))
        options = f"{options} {more}"
    drawn = f"--train-ways {task[0]} --train-queries {task[1]}" if task else f"--batch-size {BATCH}"
    steps = max(validations, count // (task[0] * (shots + task[1]) if task else BATCH))
    words = (
        f"--dataset folder --data-size 32 --backbone {arguments.backbone} --augment photo "
        f"--precision {arguments.precision} --shots {shots} --queries {QUERIES} {drawn} "
        f"--meta-batch 1 --steps {steps} --validate-every {-(-steps // validations)} "
        f"--validation-episodes 60 --test-episodes 20 --progress lines {options}"
    ).split()
    words += ["--data-root", str(arguments.data), "--out", str(folder)]
    metazoo("train", name, *words, *(["--init", start] if start else []))
    return folder


def rows_of(name: str, trained_for: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train an algorithm and return its rows of the table, tested on the tasks that all share."""
    folder = train(name, trained_for, arguments)
    told = json.loads((folder / RESULT).read_text())
    kept = {key: told[key] for key in ("validation", "best_step", "steps", "seconds", "commit")}
    kept["model"] = f"{name}.{arguments.backbone}"
    rows = []
    for shots in SHOTS if ALGORITHMS[name][1] is None else [trained_for]:
        words = (
            f"--shots {shots} --queries {QUERIES} --episodes {arguments.episodes} --json".split()
        )
        words = [str(folder), *words, "--data-root", str(arguments.data)]
        result = json.loads(metazoo("eval", *words, output=True))["results"][0]
        rows.append({"algorithm": name, "shots": shots, **result, **kept})
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--backbone", default="conv4", choices=("conv4", "resnet12"))
    add("--images", type=int, default=120_000, help="images that each training sees")
    add("--from-baseline", type=int, metavar="IMAGES", help="start from the backbone of baseline")
    add("--precision", default="float32", choices=("float32", "bf16"))
    add("--episodes", type=int, default=1000, help="test tasks")
    add("--only", nargs="*", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    add("--jobs", type=int, default=1, help="trainings at a time, for a GPU that one does not fill")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    finishing = arguments.from_baseline is not None
    path = arguments.out / f"caltech-{arguments.backbone}{'-finished' * finishing}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    command = (
        f"python -m benchmarks.caltech --data FILE --out FOLDER --backbone {arguments.backbone} "
        f"--images {arguments.images} --precision {arguments.precision}"
    )
    if finishing:
        command += f" --from-baseline {arguments.from_baseline}"
        train("baseline", SHOTS[-1], arguments)  # before the others, which would each start it
    trainings = [
        (name, shots)
        for name in arguments.only
        for shots in (SHOTS if ALGORITHMS[name][1] else SHOTS[-1:])
    ]
    order = list(ALGORITHMS)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        work = [pool.submit(rows_of, name, shots, arguments) for name, shots in trainings]
        try:
            for done in as_completed(work):
                new = done.result()
                found = {(row["algorithm"], row["shots"]) for row in new}
                rows = [row for row in rows if (row["algorithm"], row["shots"]) not in found] + new
                rows.sort(key=lambda row: (order.index(row["algorithm"]), row["shots"]))
                record = {"command": command, "jobs": arguments.jobs, "machine": machine()}
                record |= {"commit": commit(), "images": arguments.images}
                record |= {"from_baseline": arguments.from_baseline, "rows": rows}
                path.write_text(json.dumps(record, indent=1) + "\n")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # start nothing else
            raise


if __name__ == "__main__":
    main()
