"""A run folder: the files of one training run.

config.json         what the run is made from, and the versions that made it
metrics.jsonl       one JSON object a line: training loss and rate, or a validation
events.out.*        the same for TensorBoard
curve.png           the learning curve
best.safetensors    the model with the best validation
last.safetensors    model, optimizer and state of the last checkpoint, which --resume reads
result.json         the test of the best model
.lock               while a process trains here: keeps others from doing so at the same time
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import (
    json_text,
    locked,
    naming,
    parse_json,
    read_json,
    write_atomically,
    write_json,
)
from metazoo.quoting import shell_word
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.card import check_result

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CURVE = "curve.png"
BEST = "best.safetensors"
LAST = "last.safetensors"
RESULT = "result.json"
LOCK = ".lock"
LONGEST_LINE = 2**16  # bytes of metrics.jsonl; metazoo writes a few hundred
LARGEST = 1e100  # no value that metazoo writes is as large, and no plot could show it
LAST_STEP = 2**53

# What every result says.
IN_RESULT = {"metric", "mean", "interval", "tasks", "shots", "transductive", "best_step", "steps"}
IN_RESULT |= {"seconds", "machine", "metazoo"}
# The hint for a file of a run folder that cannot be read.
DAMAGED = "it is damaged or was edited: restore it from a copy, or train again in another folder"


def create(folder: Path, blueprint: Blueprint) -> None:
    """Create a run folder.

    Raises OptionError if the folder has files already, CheckpointError if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Of two processes that create the same run, one finds the other's.
        with locked(folder, wait=False):
            names = {entry.name for entry in folder.iterdir()} - {LOCK}
            if any(not name.startswith(f".{CONFIG}.") for name in names):
                raise FileExistsError
            write_json(folder / CONFIG, blueprint.as_dict())
    except (FileExistsError, BlockingIOError):
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
    if not (isinstance(result, dict) and set(result) >= IN_RESULT):
        raise CheckpointError(f"{folder / RESULT} is not the result of a run", hint)
    check_result(result, str(folder / RESULT), hint)
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
    """Return the lines of a run's metrics, without damaged ones and an incomplete last one."""
    return [line for line in _read_lines(folder) if line is not None]


def damaged_metrics(folder: Path) -> int:
    """Return how many lines of a run's metrics are damaged."""
    return sum(line is None for line in _read_lines(folder))


def _cannot_create(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the run folder {folder} cannot be made: {error.strerror}", "choose another --out"
    )


def _read_lines(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the complete lines of a run's metrics, and None for a damaged one."""
    path = folder / METRICS
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            if line.endswith(b"\n"):
                yield _read_line(line)
            elif len(line) == LONGEST_LINE:
                yield None
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = parse_json(line)
        valid = type(values["step"]) is int and all(
            type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST
            for value in values.values()
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return values if valid and 0 <= values["step"] <= LAST_STEP else None


class RunLog:
    """Appends to a run's metrics and TensorBoard events.

    It first deletes what was logged after step `step`: a killed run repeats the steps since its
    last checkpoint. An OSError names the metrics.
    """

    def __init__(self, folder: Path, step: int):
        kept = [line for line in read_metrics(folder) if line["step"] <= step]
        self._path = folder / METRICS
        write_atomically(self._path, "".join(json_text(line) + "\n" for line in kept).encode())
        self._events = _Events(folder, step + 1 if step else None)
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error of the disk both may fail to write the rest, which is not the first error.
        with contextlib.suppress(OSError) if error else naming(self._path):
            try:
                self._file.close()
            finally:
                self._events.close()

    def write(self, step: int, **values: float) -> None:
        """Log values at a step."""
        with naming(self._path):
            self._file.write(json_text({"step": step, **values}) + "\n")
            self._file.flush()
            self._events.write(step, values)


class _Events:
    """Appends to a file of TensorBoard events.

    torch's SummaryWriter writes in a thread, which prints a traceback if the disk is full, and only
    to folders whose names are UTF-8.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer import record_writer  # type: ignore[import-untyped]

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        with naming(folder / name):
            self._records = record_writer.RecordWriter((folder / name).open("ab"))
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(step=purge_step, session_log=start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values at a step."""
        scalars = [self._summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]
        self._add(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        """Write the rest and close the file."""
        self._records.close()

    def _add(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()
