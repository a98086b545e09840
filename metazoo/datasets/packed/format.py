"""Packed data on disk: what `metazoo data pack` writes, and the data set `packed` reads.

index.json     what the data are and come from, and the sha256 of every shard; there when all else is whole, and not before
SPLIT.bin      the examples of a split, values in C order and little-endian, class by class, with nothing between them
journal.jsonl  only while packing: what is being packed, and then a line for every shard that is on disk
.lock          what keeps two processes from packing here at once

A shard is a range of a data file: so many whole examples, the last one's shard being shorter.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from metazoo.errors import DataError
from metazoo.images import check_input_format

FORMAT = 1
INDEX, JOURNAL = "index.json", "journal.jsonl"
SPLITS = ("train", "val", "test")
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
    )
}  # fmt: skip
AGAIN = "copy the folder again, or pack it again into another one"
_BLOCK = 2**20


@dataclass(frozen=True)
class Split:
    """What a data file holds: examples of one type and shape, grouped by class, `shard` of them in a shard."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...]
    shard: int
    sha256: tuple[str, ...]

    @property
    def examples(self) -> int:
        return sum(self.counts)

    @property
    def example_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        return self.examples * self.example_bytes

    def shards(self) -> list[range]:
        """Return the rows of each shard."""
        return [
            range(first, min(first + self.shard, self.examples))
            for first in range(0, self.examples, self.shard)
        ]


@dataclass(frozen=True)
class Index:
    """What a folder of packed data holds."""

    licence: str
    input_format: dict[str, Any]
    splits: dict[str, Split]


@dataclass(frozen=True)
class Damage:
    """A shard that is not what was packed: its number in a data file, and the rows and bytes of that file."""

    file: str
    shard: int
    rows: range
    bytes: range


def data_file(folder: Path, split: str) -> Path:
    """Return the path of a split's data file: it depends on the name of the split alone, whatever an index says."""
    return folder / f"{split}.bin"


def read_index(folder: Path) -> Index:
    """Return what a folder of packed data holds, every data file being there in the size that it should have.

    Raises DataError where the folder, its index or a data file is missing or damaged, or packing is not finished.
    """
    path = folder / INDEX
    if not path.is_file():
        if (folder / JOURNAL).is_file():
            raise DataError(
                f"the packing of {folder} is not finished",
                "give the same `metazoo data pack` again: it goes on",
            )
        what = (
            "has no index.json"
            if folder.is_dir()
            else "is a file"
            if folder.exists()
            else "does not exist"
        )
        raise DataError(f"{folder} {what}", "give a folder that `metazoo data pack` wrote")
    index = parse_index(load_json(path), str(path))
    for name, split in index.splits.items():
        file = data_file(folder, name)
        if not file.is_file():
            raise DataError(f"{folder} has no file {file.name}", AGAIN)
        if (size := file.stat().st_size) != split.bytes:
            wrong = "truncated" if size < split.bytes else "too long"
            raise DataError(
                f"{file} is {wrong}: it has {size} bytes, and should have {split.bytes}", AGAIN
            )
    return index


def load_json(path: Path) -> Any:
    """Return what a JSON file holds, or raise DataError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}", AGAIN) from error


def parse_index(values: Any, where: str) -> Index:
    """Return the Index that JSON describes, or raise DataError naming `where` it came from."""
    try:
        if values["format"] != FORMAT:
            raise DataError(
                f"{where} has format {values['format']!r}, this metazoo reads {FORMAT}",
                "`pip install -U metazoo`",
            )
        licence, splits = values["licence"], values["splits"]
        _require(isinstance(licence, str), "'licence' is no text")
        _require(
            isinstance(splits, dict) and set(splits) <= set(SPLITS),
            f"its splits are not {', '.join(SPLITS)}",
        )
        input_format = check_input_format(values["input_format"])
        return Index(
            licence, input_format, {name: _split(splits[name]) for name in SPLITS if name in splits}
        )
    except KeyError as error:
        raise DataError(
            f"{where} does not describe packed data: it has no {error}", AGAIN
        ) from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} does not describe packed data: {error}", AGAIN) from error


def _split(values: Any) -> Split:
    dtype, shape, names, counts, shard, sha256 = (
        values[key] for key in ("dtype", "shape", "names", "counts", "shard", "sha256")
    )
    _require(isinstance(dtype, str) and dtype in TYPES, f"'dtype' is not one of {', '.join(TYPES)}")
    _require(_whole_numbers(shape, 1), "'shape' is no list of whole numbers above 0")
    _require(_whole_numbers(counts, 0), "'counts' is no list of whole numbers of at least 0")
    _require(_whole_numbers([shard], 1), "'shard' is no whole number above 0")
    _require(
        isinstance(names, list) and all(isinstance(name, str) for name in names),
        "'names' is no list of texts",
    )
    _require(
        isinstance(sha256, list) and all(isinstance(sha, str) for sha in sha256),
        "'sha256' is no list of texts",
    )
    _require(
        len(names) == len(counts),
        f"there are {len(names)} names of classes and {len(counts)} counts",
    )
    split = Split(TYPES[dtype], tuple(shape), tuple(names), tuple(counts), shard, tuple(sha256))
    expected = -(-split.examples // shard)
    _require(len(sha256) == expected, f"there are {len(sha256)} checksums of {expected} shards")
    return split


def _whole_numbers(values: Any, low: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= low for value in values)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def damaged(folder: Path, index: Index, watch: Callable[[int, int], None]) -> Iterator[Damage]:
    """Yield every shard whose sha256 is not that of the index; `watch` is told how many bytes of how many are read."""
    done, total = 0, sum(split.bytes for split in index.splits.values())
    for name, split in index.splits.items():
        with data_file(folder, name).open("rb") as file:
            for number, rows in enumerate(split.shards()):
                part = byte_range(split, rows)
                if hash_range(file, part) != split.sha256[number]:
                    yield Damage(f"{name}.bin", number, rows, part)
                done += len(part)
                watch(done, total)


def byte_range(split: Split, rows: range) -> range:
    """Return where rows lie in a data file."""
    return range(rows.start * split.example_bytes, rows.stop * split.example_bytes)


def hash_range(file: BinaryIO, part: range) -> str:
    """Return the sha256 of these bytes of a file, or of as many of them as there are."""
    sha, left = hashlib.sha256(), len(part)
    file.seek(part.start)
    while left and (block := file.read(min(_BLOCK, left))):
        sha.update(block)
        left -= len(block)
    return sha.hexdigest()
