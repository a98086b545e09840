"""A run folder: the files of one training run.

config.json         what the run is made from, and the versions that made it
metrics.jsonl       one JSON object a line: training loss and rate, or a validation
events.out.*        the same for TensorBoard
curve.png           the learning curve
best.safetensors    the model with the best validation
last.safetensors    model, optimizer and state of the last checkpoint, which --resume reads
result.json         the test of the best model
.lock               keeps a second process from training here at the same time
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
from metazoo.quoting import shell_word
from metazoo.zoo.blueprint import Blueprint

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CURVE = "curve.png"
BEST = "best.safetensors"
LAST = "last.safetensors"
RESULT = "result.json"

# The hint for a file of a run folder that cannot be read.
DAMAGED = "it is damaged or was edited: restore it from a copy, or train again in another folder"


def create(folder: Path, blueprint: Blueprint) -> None:
    """Create a run folder.

    Raises OptionError if the folder has files already, CheckpointError if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(not entry.name.startswith(f".{CONFIG}.") for entry in folder.iterdir()):
            raise FileExistsError
        write_json(folder / CONFIG, blueprint.as_dict())
    except FileExistsError:
        is_run = (folder / CONFIG).exists()
        resume = (
            f"`metazoo train --resume {shell_word(folder)}` continues it; or " if is_run else ""
        )
        raise OptionError(f"{folder} exists already", f"{resume}choose another --out") from None
    except OSError as error:
        raise _cannot_create(folder, error) from error


def create_numbered(parent: Path, name: str, blueprint: Blueprint) -> Path:
    """Create the run folder parent/name-N, with the lowest N that is free, and return its path."""
    for number in itertools.count(1):
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)  # fails for all but one of two runs that start together
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_create(folder, error) from error
        break
    create(folder, blueprint)
    return folder


def read_blueprint(folder: Path) -> Blueprint:
    """Return the blueprint of the run in a folder; raise CheckpointError if there is none."""
    hint = "give the folder that `metazoo train` made"
    if not folder.exists():
        raise CheckpointError(f"there is no run folder {folder}", hint)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} is not a run folder: it has no {CONFIG}", hint)
    return Blueprint.from_dict(read_json(folder / CONFIG, DAMAGED), str(folder / CONFIG))


def read_result(folder: Path) -> dict[str, Any]:
    """Return the test result of the finished run in a folder; raise CheckpointError if damaged."""
    hint = f"delete it: `metazoo train --resume {shell_word(folder)}` makes it again from the last checkpoint"
    result = read_json(folder / RESULT, hint)
    numbers = ("mean", "interval", "tasks", "shots", "best_step", "steps", "seconds")
    texts = ("metric", "machine", "metazoo")
    if not (
        isinstance(result, dict)
        and all(isinstance(result.get(key), (int, float)) for key in numbers)
        and all(isinstance(result.get(key), str) for key in texts)
        and isinstance(result.get("transductive"), bool)
    ):
        raise CheckpointError(f"{folder / RESULT} is not the result of a run", hint)
    return result


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Reserve a run folder for this process; delete the temporary files of one that was killed.

    Raises CheckpointError if another process trains in it.
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
    """Return the lines of a run's metrics without an incomplete last one.

    Raises CheckpointError if a line is damaged.
    """
    path = folder / METRICS
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [_read_line(path, number, line) for number, line in enumerate(lines, start=1)]


def _cannot_create(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the run folder {folder} cannot be made: {error.strerror}", "choose another --out"
    )


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line)
        if all(isinstance(value, (int, float)) for value in [values["step"], *values.values()]):
            return values
        problem = "a value is not a number"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise CheckpointError(
        f"line {number} of {path} is damaged: {problem}",
        "remove that line; only the learning curve needs it",
    )


class RunLog:
    """Appends to a run's metrics and TensorBoard events.

    It first deletes what was logged after step `step`: a killed run repeats the steps since its
    last checkpoint.
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
