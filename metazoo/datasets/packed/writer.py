"""Writes packed data shard by shard, and continues an interrupted packing."""

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
from metazoo.io.files import locked, parse_json, write_atomically
from metazoo.tasks.examples import Stream, as_bytes
from metazoo.tasks.sampler import EpisodeSampler
from metazoo.version import VERSION

# Bytes of a shard, approximately: after an interruption, at most this much is written again. A
# change needs a new FORMAT.
SHARD = 64 * 2**20
PIECE = 4 * 2**20  # bytes of examples in memory at a time, approximately

_NEW_FOLDER = "pack into a new folder, or remove this one first"


@dataclass(frozen=True)
class Outcome:
    """The result of packing: the folder's index, and how many examples were already there."""

    index: Index
    found: int


def pack(
    data: Dataset,
    name: str,
    folder: Path,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Write a data set into a folder for the data set `packed`, or continue an interrupted packing.

    The index is written last, so a folder with an index is complete. After an interruption, the
    next call continues after the last complete shard. Examples are read PIECE bytes at a time.

    Args:
        data: the data set.
        name: its name.
        folder: a new folder, or one with an interrupted packing of the same data.
        watch: called as `watch(done, total)` with the examples written so far and in total.

    Raises:
        OptionError: if the data set cannot be packed, or the folder holds something else.
        DataError: if the data have changed since the packing began, the data cannot be read, or the
            disk is full.
    """
    packable = _packable(data, name)
    _check_free(folder)
    with packable.streams() as streams:
        plan = _plan(packable, name, streams)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder, wait=False):
                return _pack(plan, streams, folder, watch)
        except BlockingIOError:
            raise DataError(
                f"another process is packing into {folder}", "wait for it, or stop it first"
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot write {error.filename or folder}: {error.strerror or error}",
                "solve this (the disk may be full), and run the same command again to continue",
            ) from error


def _packable(data: Dataset, name: str) -> ClassDataset:
    """Return the data set, or raise OptionError if packed data cannot draw the same tasks."""
    if not isinstance(data, ClassDataset):
        raise OptionError(
            f"data set '{name}' has no examples to pack: it generates its tasks",
            "use it without packing",
        )
    if type(data).tasks is not ClassDataset.tasks or data.sampler is not EpisodeSampler:
        raise OptionError(
            f"data set '{name}' draws its tasks in its own way with these options, which packed "
            "data cannot do",
            "leave out the option that causes this, or use the data set without packing",
        )
    return data


def _check_free(folder: Path) -> None:
    """Raise OptionError if a folder holds files that no packing wrote."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder} is a file", "give a new folder")
    if not folder.exists() or (folder / INDEX).exists() or (folder / JOURNAL).exists():
        return
    left_by_packing = (".lock", f".{JOURNAL}.")
    others = sorted(
        entry.name for entry in folder.iterdir() if not entry.name.startswith(left_by_packing)
    )
    if others:
        raise OptionError(f"{folder} holds something else ({others[0]})", "give a new folder")


def _plan(data: ClassDataset, name: str, streams: Mapping[str, Stream]) -> dict[str, Any]:
    """Return the index of the packed data, without the checksums of the shards."""
    if unknown := [split for split in streams if split not in SPLITS]:
        raise OptionError(
            f"data set '{name}' has a split '{unknown[0]}'",
            f"packed data can have {', '.join(SPLITS)}",
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
    # As it reads from a file, to be compared with one: lists instead of tuples.
    return json.loads(json.dumps(plan))


def _outline(stream: Stream) -> dict[str, Any]:
    """Return the entry of a split in the index, without the checksums of its shards."""
    x = stream.read(0, 1)
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in TYPES or not all(x.shape[1:]):
        raise OptionError(
            f"{stream.title} cannot be packed: it has examples of shape {tuple(x.shape[1:])} and "
            f"type {dtype}"
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
        return Outcome(_finished(plan, folder), total)
    for leftover in [*folder.glob(f".{INDEX}.*"), *folder.glob(f".{JOURNAL}.*")]:
        leftover.unlink()
    done = _resume(plan, splits, folder)
    found = sum(
        min(split.shard * len(done[name]), split.examples) for name, split in splits.items()
    )
    watch(found, total)
    _write_shards(splits, streams, folder, done, lambda written: watch(found + written, total))
    whole = {name: {**values, "sha256": done[name]} for name, values in plan["splits"].items()}
    write_atomically(folder / INDEX, json.dumps({**plan, "splits": whole}).encode() + b"\n")
    (folder / JOURNAL).unlink()
    return Outcome(read_index(folder), found)


def _finished(plan: dict[str, Any], folder: Path) -> Index:
    """Return the index of a finished folder, or raise an error if it holds other data."""
    index = read_index(folder)
    _check_same(plan, load_json(folder / INDEX), f"{folder} holds packed data")
    (folder / JOURNAL).unlink(missing_ok=True)
    return index


def _write_shards(
    splits: Mapping[str, Split],
    streams: Mapping[str, Stream],
    folder: Path,
    done: dict[str, list[str]],
    watch: Callable[[int], None],
) -> None:
    """Write the missing shards and append their checksums to `done` and to the journal.

    `watch` is called with the number of examples written so far.
    """
    written = 0
    with (folder / JOURNAL).open("ab") as journal:
        for name, split in splits.items():
            path = data_file(folder, name)
            with path.open("r+b" if path.exists() else "w+b") as file:
                missing = split.shards()[len(done[name]) :]
                start = byte_range(split, missing[0]).start if missing else split.bytes
                file.truncate(file.seek(start))
                for rows in missing:
                    sha256 = _write_rows(file, streams[name], split, rows)
                    # The shard must be on disk before the journal says so.
                    _sync(file)
                    journal.write(_journal_line(name, sha256))
                    _sync(journal)
                    done[name].append(sha256)
                    written += len(rows)
                    watch(written)


def _split(values: Mapping[str, Any]) -> Split:
    shape, names, counts = (tuple(values[key]) for key in ("shape", "names", "counts"))
    return Split(TYPES[values["dtype"]], shape, names, counts, values["shard"], ())


def _journal_line(split: str, sha256: str) -> bytes:
    return json.dumps({"split": split, "sha256": sha256}).encode() + b"\n"


def _resume(
    plan: dict[str, Any], splits: Mapping[str, Split], folder: Path
) -> dict[str, list[str]]:
    """Return the checksums of the shards that are on disk, and rewrite the journal with them.

    A journal line counts only if the bytes on disk have its checksum. The first line that fails
    ends the list.
    """
    path = folder / JOURNAL
    done: dict[str, list[str]] = {name: [] for name in splits}
    kept = [json.dumps(plan).encode() + b"\n"]
    shards = [(name, rows) for name, split in splits.items() for rows in split.shards()]
    for line, (name, rows) in zip(_journal_lines(plan, folder), shards):
        sha256 = _sha256_on_disk(data_file(folder, name), byte_range(splits[name], rows))
        if line != _journal_line(name, sha256):
            break
        done[name].append(sha256)
        kept.append(line)
    write_atomically(path, b"".join(kept))
    return done


def _journal_lines(plan: dict[str, Any], folder: Path) -> list[bytes]:
    """Return the lines of the journal's shards, or raise an error if it belongs to other data."""
    path = folder / JOURNAL
    if not path.exists():
        return []
    # Without a line end, the last line was cut off and does not count.
    first, *lines = [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]] or [b""]
    try:
        before = parse_json(first)
    except ValueError as error:
        raise DataError(
            f"{path} is damaged: {error}", f"remove {folder}, and start again"
        ) from error
    _check_same(plan, before, f"{folder} holds an unfinished packing")
    return lines


def _sha256_on_disk(path: Path, part: range) -> str:
    """Return the sha256 of a range of bytes in a file, or an empty string if there is no file."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hash_range(file, part)


def _check_same(plan: Mapping[str, Any], found: Any, holder: str) -> None:
    """Raise an error if a folder was packed from other data than the plan's.

    OptionError if the user asks for other data, DataError if the data have changed. `holder` begins
    the message.
    """
    if not isinstance(found, dict) or not isinstance(found.get("splits"), dict):
        raise DataError(f"{holder}, but its plan cannot be read", _NEW_FOLDER)
    if found.get("source") != plan["source"]:
        raise OptionError(
            f"{holder} of {_source(found.get('source'))}, not of {_source(plan['source'])}",
            _NEW_FOLDER,
        )
    splits = {name: _without_checksums(values) for name, values in found["splits"].items()}
    unchanged = splits == plan["splits"] and all(
        found.get(key) == plan[key] for key in ("format", "licence", "input_format")
    )
    if not unchanged:
        raise DataError(
            f"{holder} of {_source(plan['source'])}, but the data have changed since", _NEW_FOLDER
        )


def _without_checksums(values: Any) -> Any:
    if not isinstance(values, dict):
        return None
    return {key: value for key, value in values.items() if key != "sha256"}


def _source(values: Any) -> str:
    """Return the name and options of a data set, for a message."""
    try:
        given = [f"{key}={value}" for key, value in values["options"].items()]
        return " ".join([f"'{values['dataset']}'", *given])
    except (TypeError, KeyError, AttributeError):
        return "unknown data"


def _write_rows(file: BinaryIO, stream: Stream, split: Split, rows: range) -> str:
    """Write rows of a stream to a file, and return their sha256."""
    sha = hashlib.sha256()
    step = max(1, PIECE // split.example_bytes)
    for first in range(rows.start, rows.stop, step):
        last = min(first + step, rows.stop)
        x = stream.read(first, last)
        if x.dtype != split.dtype or x.shape != (last - first, *split.shape):
            raise DataError(
                f"examples {first} to {last - 1} of {stream.title} are unlike the first: "
                f"{x.dtype}, {tuple(x.shape)}"
            )
        data = as_bytes(x)
        sha.update(data)
        file.write(data)
    return sha.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
