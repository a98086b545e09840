"""A run folder: what a training run leaves behind.

config.json         everything that the run is made from, and the versions that made it
metrics.jsonl       one JSON object a line: training loss and rate, or a validation
events.out.*        the same for TensorBoard
curve.png           the learning curve
best.safetensors    the model of the best validation
last.safetensors    the model, the optimizer and the state of the last checkpoint: what --resume reads
result.json         the test of the best model
.lock               what keeps two processes from training here at once
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import locked, read_json, write_atomically, write_json
from metazoo.zoo.blueprint import Blueprint

CONFIG, METRICS, CURVE, BEST, LAST, RESULT = (
    "config.json",
    "metrics.jsonl",
    "curve.png",
    "best.safetensors",
    "last.safetensors",
    "result.json",
)


# What to do where a file of a run folder cannot be read.
DAMAGED = "it was changed or damaged: bring it back from a copy, or train again in another folder"


def create(folder: Path, blueprint: Blueprint) -> None:
    """Make a run folder, or raise OptionError where there is something already, CheckpointError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(not entry.name.startswith(f".{CONFIG}.") for entry in folder.iterdir()):
            raise FileExistsError
        write_json(folder / CONFIG, blueprint.as_dict())
    except FileExistsError:
        hint = (
            f"`metazoo train --resume {folder}` goes on with it; or "
            if (folder / CONFIG).exists()
            else ""
        )
        raise OptionError(f"{folder} exists already", f"{hint}choose another --out") from None
    except OSError as error:
        raise CheckpointError(
            f"the run folder {folder} cannot be made: {error.strerror}", "choose another --out"
        ) from error


def read_blueprint(folder: Path) -> Blueprint:
    """Return what the run in a folder is made from, or raise CheckpointError."""
    if not folder.exists():
        raise CheckpointError(
            f"there is no run folder {folder}", "give the folder that `metazoo train` made"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} is not a run folder: it has no {CONFIG}",
            "give the folder that `metazoo train` made",
        )
    return Blueprint.from_dict(read_json(folder / CONFIG, DAMAGED), str(folder / CONFIG))


def read_result(folder: Path) -> dict[str, Any]:
    """Return what the finished run in a folder came to, or raise CheckpointError."""
    again = (
        f"delete it: `metazoo train --resume {folder}` then makes it again from the last checkpoint"
    )
    result = read_json(folder / RESULT, again)
    numbers = ("mean", "interval", "tasks", "shots", "best_step", "steps", "seconds")
    texts = ("metric", "machine", "metazoo")
    if not (
        isinstance(result, dict)
        and all(isinstance(result.get(key), (int, float)) for key in numbers)
        and all(isinstance(result.get(key), str) for key in texts)
        and isinstance(result.get("transductive"), bool)
    ):
        raise CheckpointError(f"{folder / RESULT} is not the result of a run", again)
    return result


def create_numbered(parent: Path, name: str, blueprint: Blueprint) -> Path:
    """Make the run folder parent/name-1, or the first number after it that is free, and return it."""
    for number in itertools.count(1):
        folder = parent / f"{name}-{number}"
        try:
            # Making it claims it: two runs that start at once get two folders.
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(
                f"the run folder {folder} cannot be made: {error.strerror}", "choose another --out"
            ) from error
        create(folder, blueprint)
        return folder
    raise AssertionError("there is no end of numbers")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run folder for one process, and clear away the unfinished files of one that was killed.

    Raises CheckpointError where another process trains in it.
    """
    try:
        with locked(folder, wait=False):
            for name in (CONFIG, METRICS, BEST, LAST, RESULT, CURVE):
                for leftover in folder.glob(f".{name}.*"):
                    leftover.unlink(missing_ok=True)
            yield
    except BlockingIOError:
        raise CheckpointError(
            f"another process is training in {folder}", "wait for it, or stop it first"
        ) from None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics, or raise CheckpointError; a last line that was cut off is left out."""
    path = folder / METRICS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [_read_line(path, number, line) for number, line in enumerate(lines, start=1)]


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if all(isinstance(value, (int, float)) for value in [values["step"], *values.values()]):
            return values
        problem = "a value is no number"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"line {number} of {path} is damaged: {problem}",
        "remove that line; nothing but the curve needs it",
    )


class RunLog:
    """Appends to a run's metrics and TensorBoard events.

    Opened after step `step`, it first drops what was logged beyond it: a run that was killed logged
    steps that will be taken again.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        write_atomically(
            folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode()
        )
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._events.close()  # type: ignore[no-untyped-call]

    def write(self, step: int, **values: float) -> None:
        """Log values at a step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
