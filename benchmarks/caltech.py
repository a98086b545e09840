"""Every algorithm on the reduced Caltech-101, one protocol for all: `python -m benchmarks.caltech --data FILE --out FOLDER`.

FILE is `caltech101_32px.zip` or any tree that the data set `folder` reads. Each algorithm is trained on the same number of
images, with the same augmentation; the checkpoint is chosen on the validation classes. What episodes train is trained for each
number of shots; the baselines, once. With `--from-baseline IMAGES` episodes begin with the backbone of `baseline` and see so
many images more (MAML a third), as in Meta-Baseline (Chen et al. 2021, arXiv:2003.04390) and FEAT (Ye et al. 2020,
arXiv:1812.03664).
FOLDER keeps the runs: started again, it goes on. Results: FOLDER/caltech-BACKBONE.json, and of `--from-baseline`
FOLDER/caltech-BACKBONE-finished.json.
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
VALIDATIONS, FINISHING_VALIDATIONS = 10, 4
# Options of each, and the ways and queries of its training tasks (None: it draws batches).
ALGORITHMS: dict[str, tuple[str, list[str], tuple[int, int] | None]] = {
    "baseline": ("baseline", [], None),
    "baseline++": ("baseline++", [], None),
    "matching": ("matching", [], (10, 10)),
    "protonet": ("protonet", [], (10, 10)),
    "maml": (
        "maml",
        ["--inner-steps", "5", "--first-order", "--inner-lr", "0.02", "--center"],
        (5, 10),
    ),
}
# How those that learn from episodes go on from the backbone of `baseline`: which part of the images they see (to MAML one costs
# several times the work), and their options. A trained backbone bears smaller steps than a new one, a new head larger.
FINISHED: dict[str, tuple[int, list[str]]] = {
    "matching": (1, ["--lr", "0.0003"]),
    "protonet": (1, ["--lr", "0.0003"]),
    "maml": (3, ["--lr", "0.00003", "--zero-head", "--inner-lr", "0.005", "--head-lr", "0.05"]),
}
BATCH = 64


def metazoo(*words: str, output: bool = False) -> str:
    """Run the command line, and return what it printed."""
    command = [sys.executable, "-m", "metazoo", *words]
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE if output else None
    )
    return done.stdout or ""


def train(name: str, shots: int, arguments: argparse.Namespace) -> Path:
    """Train an algorithm, or go on with it, and return its run folder."""
    algorithm, options, task = ALGORITHMS[name]
    finishing = task is not None and arguments.from_baseline is not None
    seen = f"{arguments.images}+{arguments.from_baseline}" if finishing else str(arguments.images)
    folder = (
        arguments.out
        / f"{name}-{arguments.backbone}-{seen}-{arguments.precision}"
        / ("batches" if task is None else f"{shots}-shot")
    )
    if (folder / RESULT).exists():
        return folder
    if (folder / "config.json").exists():
        metazoo("train", "--resume", str(folder), "--progress", "lines")
        return folder
    drawn = (
        ["--batch-size", str(BATCH)]
        if task is None
        else ["--train-ways", str(task[0]), "--train-queries", str(task[1])]
    )
    images = BATCH if task is None else task[0] * (shots + task[1])
    validations, count = VALIDATIONS, arguments.images
    if finishing:
        part, more = FINISHED[name]
        validations, count = FINISHING_VALIDATIONS, arguments.from_baseline // part
        drawn += ["--init", str(train("baseline", SHOTS[-1], arguments)), *more]
    steps = max(validations, count // images)
    metazoo(
        "train", algorithm, *options, "--dataset", "folder", "--data-root", str(arguments.data), "--data-size", "32",
        "--backbone", arguments.backbone, "--augment", "photo", "--precision", arguments.precision,
        "--shots", str(shots), "--queries", str(QUERIES), *drawn,
        "--meta-batch", "1", "--steps", str(steps), "--validate-every", str(-(-steps // validations)),
        "--validation-episodes", "60", "--test-episodes", "20", "--out", str(folder), "--progress", "lines",
    )  # fmt: skip
    return folder


def measure(folder: Path, shots: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the test of a run on the tasks that all are tested on."""
    printed = metazoo(
        "eval", str(folder), "--shots", str(shots), "--queries", str(QUERIES), "--episodes", str(arguments.episodes),
        "--data-root", str(arguments.data), "--json", output=True,
    )  # fmt: skip
    return json.loads(printed)["results"][0]


def rows_of(name: str, trained_for: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train an algorithm for a number of shots and return its rows of the table; what draws batches is tested with each."""
    folder = train(name, trained_for, arguments)
    told = json.loads((folder / RESULT).read_text())
    kept = {key: told[key] for key in ("validation", "best_step", "steps", "seconds", "commit")}
    return [
        {
            "algorithm": name,
            "shots": shots,
            **measure(folder, shots, arguments),
            "model": f"{name}.{arguments.backbone}",
            **kept,
        }
        for shots in (SHOTS if ALGORITHMS[name][2] is None else [trained_for])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="conv4", choices=("conv4", "resnet12"))
    parser.add_argument(
        "--images", type=int, default=120_000, help="training images that each run sees"
    )
    parser.add_argument(
        "--from-baseline",
        type=int,
        metavar="IMAGES",
        help="start episodes from the backbone of baseline, for so many images more",
    )
    parser.add_argument(
        "--precision", default="float32", choices=("float32", "bf16"), help="arithmetic of training"
    )
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument(
        "--jobs", type=int, default=1, help="algorithms at a time, on a GPU that one does not fill"
    )
    arguments = parser.parse_args()
    finishing = arguments.from_baseline is not None
    path = arguments.out / f"caltech-{arguments.backbone}{'-finished' * finishing}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    order = list(ALGORITHMS)
    trainings = [
        (name, shots)
        for name in arguments.only
        for shots in (SHOTS if ALGORITHMS[name][2] else SHOTS[-1:])
    ]
    command = (
        f"python -m benchmarks.caltech --data FILE --out FOLDER --backbone {arguments.backbone} --images {arguments.images} "
        f"--precision {arguments.precision}"
    )
    if finishing:
        command += f" --from-baseline {arguments.from_baseline}"
        train("baseline", SHOTS[-1], arguments)  # before the others, which would each begin it
    with ThreadPoolExecutor(arguments.jobs) as pool:
        work = [pool.submit(rows_of, name, shots, arguments) for name, shots in trainings]
        try:
            for done in as_completed(work):
                new = done.result()
                found = {(row["algorithm"], row["shots"]) for row in new}
                rows = [row for row in rows if (row["algorithm"], row["shots"]) not in found] + new
                rows.sort(key=lambda row: (order.index(row["algorithm"]), row["shots"]))
                result = {
                    "command": command,
                    "jobs": arguments.jobs, "machine": machine(), "commit": commit(), "images": arguments.images,
                    "from_baseline": arguments.from_baseline, "rows": rows,
                }  # fmt: skip
                path.write_text(json.dumps(result, indent=1) + "\n")
        except BaseException:
            # What runs is stopped or fails by itself; nothing else begins.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
