"""Writing packed data: piece by piece, and on from where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.packed.format import (
    FORMAT,
    INDEX,
    JOURNAL,
    SPLITS,
    TYPES,
    Index,
    Split,
    byte_range,
    data_file,
    hash_range,
    load_json,
    read_index,
)
from metazoo.errors import DataError, OptionError
from metazoo.io.files import locked, write_atomically
from metazoo.tasks.examples import Stream, as_bytes
from metazoo.tasks.sampler import EpisodeSampler
from metazoo.version import VERSION

SHARD = (
    64 * 2**20
)  # bytes of a shard, about: what a packing that is killed may have to do again; fixed with FORMAT
PIECE = 4 * 2**20  # bytes of examples that are in memory at a time, about


@dataclass(frozen=True)
class Outcome:
    """What a folder holds after packing, and how many examples were in it before."""

    index: Index
    found: int


def pack(
    data: Dataset,
    name: str,
    folder: Path,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Write a data set, called `name`, into a folder for the data set `packed`, or go on where that was stopped.

    Whatever stops it, a folder that has an index is whole, and the next call goes on from the last whole shard. Examples
    are read PIECE bytes at a time. `watch` is told how many examples of how many are written.

    Raises OptionError where the data set cannot be packed, or the folder holds something else; DataError where the data have
    changed since the packing began, cannot be read, or the disk is full.
    """
    if not isinstance(data, ClassDataset):
        raise OptionError(
            f"data set '{name}' has no examples to pack: it makes its tasks", "use it as it is"
        )
    if type(data).tasks is not ClassDataset.tasks or data.sampler is not EpisodeSampler:
        raise OptionError(
            f"data set '{name}' draws its tasks in its own way with these options, which packed data could not",
            "leave the option for that out, or use the data set as it is",
        )
    _check_free(folder)
    with data.streams() as streams:
        plan = _plan(data, name, streams)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, wait=False):
                return _pack(plan, streams, folder, watch)
        except BlockingIOError:
            raise DataError(
                f"another process is packing into {folder}", "wait for it, or stop it first"
            ) from None
        except OSError as error:
            where = error.filename or folder
            raise DataError(
                f"cannot write {where}: {error.strerror or error}",
                "mend that (the disk may be full), and start again: it goes on",
            ) from error


def _check_free(folder: Path) -> None:
    """Raise OptionError where a folder holds what no packing left there."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is a file", "give a new folder")
    if folder.exists() and not (folder / INDEX).exists() and not (folder / JOURNAL).exists():
        foreign = sorted(
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith((".lock", f".{JOURNAL}."))
        )
        if foreign:
            raise OptionError(f"{folder} holds something else ({foreign[0]})", "give a new folder")


def _plan(data: ClassDataset, name: str, streams: Mapping[str, Stream]) -> dict[str, Any]:
    """Return what is to be packed, as the index has it, but for the checksums of the shards."""
    if unknown := [split for split in streams if split not in SPLITS]:
        raise OptionError(
            f"data set '{name}' has a split '{unknown[0]}'", f"packed data have {', '.join(SPLITS)}"
        )
    given = {
        key: value
        for key, value in options.as_dict(data.config).items()
        if key not in data.local_options
    }
    plan = {
        "format": FORMAT,
        "metazoo": VERSION,
        "source": {"dataset": name, "options": given},
        "licence": data.licence,
        "input_format": data.input_format,
        "splits": {split: _outline(streams[split]) for split in SPLITS if split in streams},
    }
    return json.loads(json.dumps(plan))


def _outline(stream: Stream) -> dict[str, Any]:
    x = stream.read(0, 1)
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in TYPES or not all(x.shape[1:]):
        raise OptionError(
            f"{stream.title} cannot be packed: it has examples {tuple(x.shape[1:])} of type {dtype}"
        )
    size = x[0].numel() * x.dtype.itemsize if len(x) else 1
    return {
        "dtype": dtype,
        "shape": list(x.shape[1:]),
        "names": list(stream.names),
        "counts": list(stream.counts),
        "shard": max(1, SHARD // size),
        "digest": stream.digest(),
    }


def _pack(
    plan: dict[str, Any],
    streams: Mapping[str, Stream],
    folder: Path,
    watch: Callable[[int, int], None],
) -> Outcome:
    splits = {name: _split(values) for name, values in plan["splits"].items()}
    total = sum(split.examples for split in splits.values())
    if (folder / INDEX).exists():
        index = read_index(folder)
        _check_same(plan, load_json(folder / INDEX), f"{folder} holds packed data")
        (folder / JOURNAL).unlink(missing_ok=True)
        return Outcome(index, total)
    for leftover in [*folder.glob(f".{INDEX}.*"), *folder.glob(f".{JOURNAL}.*")]:
        leftover.unlink()
    done = _resume(plan, splits, folder)
    found = written = sum(
        min(split.shard * len(done[name]), split.examples) for name, split in splits.items()
    )
    watch(written, total)
    with (folder / JOURNAL).open("ab") as journal:
        for name, split in splits.items():
            path = data_file(folder, name)
            with path.open("r+b" if path.exists() else "w+b") as file:
                rest = split.shards()[len(done[name]) :]
                file.truncate(file.seek(byte_range(split, rest[0]).start if rest else split.bytes))
                for rows in rest:
                    sha = _write(file, streams[name], split, rows)
                    _sync(file)
                    # Only then: what the journal has is on disk.
                    journal.write(_line(name, sha))
                    _sync(journal)
                    done[name].append(sha)
                    written += len(rows)
                    watch(written, total)
    whole = {name: {**values, "sha256": done[name]} for name, values in plan["splits"].items()}
    write_atomically(folder / INDEX, json.dumps({**plan, "splits": whole}).encode() + b"\n")
    (folder / JOURNAL).unlink()
    return Outcome(read_index(folder), found)


def _split(values: Mapping[str, Any]) -> Split:
    shape, names, counts = (tuple(values[key]) for key in ("shape", "names", "counts"))
    return Split(TYPES[values["dtype"]], shape, names, counts, values["shard"], ())


def _line(split: str, sha256: str) -> bytes:
    return json.dumps({"split": split, "sha256": sha256}).encode() + b"\n"


def _resume(
    plan: dict[str, Any], splits: Mapping[str, Split], folder: Path
) -> dict[str, list[str]]:
    """Return the checksums of the shards that an earlier call has put on disk, and begin or mend the journal.

    The journal is believed as far as the bytes on disk agree with it.
    """
    path = folder / JOURNAL
    done: dict[str, list[str]] = {name: [] for name in splits}
    kept = [json.dumps(plan).encode() + b"\n"]
    if path.exists():
        # The last line may have been cut off: what follows the last line end is none.
        first, *lines = [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]] or [b""]
        try:
            before = json.loads(first)
        except ValueError as error:
            raise DataError(
                f"{path} is damaged: {error}", f"remove {folder}, and start again"
            ) from error
        _check_same(plan, before, f"{folder} holds an unfinished packing")
        for line, (name, rows) in zip(
            lines, [(name, rows) for name, split in splits.items() for rows in split.shards()]
        ):
            part = byte_range(splits[name], rows)
            file = data_file(folder, name)
            sha = _hash(file, part) if file.exists() else ""
            if line != _line(name, sha):
                break
            done[name].append(sha)
            kept.append(line)
    write_atomically(path, b"".join(kept))
    return done


def _hash(path: Path, part: range) -> str:
    with path.open("rb") as file:
        return hash_range(file, part)


def _check_same(plan: Mapping[str, Any], found: Any, holder: str) -> None:
    """Raise where a folder was packed, in whole or in part, from something else than is to be packed now.

    OptionError where that was asked for, DataError where it is the data that are no longer what they were.
    """
    if not isinstance(found, dict) or not isinstance(found.get("splits"), dict):
        raise DataError(f"{holder}, but its plan cannot be read", _ELSEWHERE)
    if found.get("source") != plan["source"]:
        raise OptionError(
            f"{holder} of {_source(found.get('source'))}, not of {_source(plan['source'])}",
            _ELSEWHERE,
        )
    same = {key: found.get(key) == plan[key] for key in ("format", "licence", "input_format")}
    same |= {
        name: _outline_of(found["splits"].get(name)) == values
        for name, values in plan["splits"].items()
    }
    same["splits"] = set(found["splits"]) == set(plan["splits"])
    if not all(same.values()):
        raise DataError(
            f"{holder} of {_source(plan['source'])}, but the data have changed since", _ELSEWHERE
        )


_ELSEWHERE = "pack into a new folder, or remove this one first"


def _outline_of(values: Any) -> dict[str, Any] | None:
    return (
        {key: value for key, value in values.items() if key != "sha256"}
        if isinstance(values, dict)
        else None
    )


def _source(values: Any) -> str:
    try:
        return " ".join(
            [
                f"'{values['dataset']}'",
                *(f"{key}={value}" for key, value in values["options"].items()),
            ]
        )
    except (TypeError, KeyError, AttributeError):
        return "unknown data"


def _write(file: BinaryIO, stream: Stream, split: Split, rows: range) -> str:
    """Write rows of a stream at the end of a file, and return their sha256."""
    sha = hashlib.sha256()
    step = max(1, PIECE // split.example_bytes)
    for first in range(rows.start, rows.stop, step):
        last = min(first + step, rows.stop)
        x = stream.read(first, last)
        if x.dtype != split.dtype or x.shape != (last - first, *split.shape):
            raise DataError(
                f"examples {first} to {last - 1} of {stream.title} are not like the first: {x.dtype}, {tuple(x.shape)}"
            )
        data = as_bytes(x)
        sha.update(data)
        file.write(data)
    return sha.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
