"""Packed data on disk: what `metazoo data pack` writes and the data set `packed` reads.

index.json     description of the data and the sha256 of every shard, written last
SPLIT.bin      the examples of a split, class by class, as little-endian values in C order
journal.jsonl  only while packing: the plan, then one line for each finished shard
.lock          keeps two processes from packing into the same folder

A shard is a range of a data file with a fixed number of examples; the last one may have fewer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from metazoo.errors import DataError
from metazoo.inputs import check_input_format, kind_of, shape_of
from metazoo.io.files import parse_json

FORMAT = 1
INDEX, JOURNAL = "index.json", "journal.jsonl"
SPLITS = ("train", "val", "test")
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
AGAIN = "copy the folder again, or pack the data into a new one"
LARGEST = 2**32  # bytes of an example
DIMENSIONS = 16  # of an example
_BLOCK = 2**20  # bytes that are hashed at a time


@dataclass(frozen=True)
class Split:
    """The contents of a data file: examples of one type and shape, grouped by class.

    Attributes:
        dtype: type of the values.
        shape: shape of one example.
        names: name of each class.
        counts: number of examples of each class.
        shard: number of examples in a shard.
        sha256: checksum of each shard.
    """

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
    """The contents of a folder of packed data."""

    licence: str
    input_format: dict[str, Any]
    splits: dict[str, Split]


@dataclass(frozen=True)
class Damage:
    """A damaged shard: its number in a data file, and its rows and bytes there."""

    file: str
    shard: int
    rows: range
    bytes: range


def data_file(folder: Path, split: str) -> Path:
    """Return the path of a split's data file; an index cannot choose another one."""
    return folder / f"{split}.bin"


def read_index(folder: Path) -> Index:
    """Return the contents of a folder of packed data, after checking the sizes of its files.

    Raises DataError if the folder, its index or a data file is missing or damaged, or if the
    packing is not finished.
    """
    path = folder / INDEX
    if not path.is_file():
        raise _no_index(folder)
    index = parse_index(load_json(path), str(path))
    for name, split in index.splits.items():
        file = data_file(folder, name)
        if not file.is_file():
            raise DataError(f"{folder} has no file {file.name}", AGAIN)
        if (size := file.stat().st_size) != split.bytes:
            problem = "truncated" if size < split.bytes else "too long"
            raise DataError(
                f"{file} is {problem}: it has {size} bytes instead of {split.bytes}", AGAIN
            )
    return index


def _no_index(folder: Path) -> DataError:
    """Return the error for a folder without an index."""
    if (folder / JOURNAL).is_file():
        return DataError(
            f"the packing of {folder} is not finished",
            "run the same `metazoo data pack` again to continue",
        )
    if folder.is_dir():
        problem = f"has no {INDEX}"
    elif folder.exists():
        problem = "is a file"
    else:
        problem = "does not exist"
    return DataError(f"{folder} {problem}", "give a folder that `metazoo data pack` wrote")


def load_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raises DataError if it cannot be read."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", AGAIN) from error


def parse_index(values: Any, where: str) -> Index:
    """Return the index described by JSON values. Errors (DataError) name the file `where`."""
    try:
        if values["format"] != FORMAT:
            raise DataError(
                f"{where} has format {values['format']!r}, but this metazoo reads format {FORMAT}",
                "run `pip install -U metazoo`",
            )
        licence, splits = values["licence"], values["splits"]
        _require(isinstance(licence, str), "'licence' is not text")
        _require(
            isinstance(splits, dict) and set(splits) <= set(SPLITS),
            f"'splits' has names other than {', '.join(SPLITS)}",
        )
        input_format = check_input_format(values["input_format"])
        read = {name: _split(splits[name]) for name in SPLITS if name in splits}
        if kind_of(input_format) != "numbers":
            shape = shape_of(input_format)
            _require(
                all(split.shape == shape for split in read.values()),
                "'input_format' and 'shape' do not agree",
            )
        return Index(licence, input_format, read)
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
    _require(_whole_numbers(shape, 1), "'shape' is not a list of whole numbers above 0")
    _require(_whole_numbers(counts, 0), "'counts' is not a list of whole numbers of at least 0")
    _require(_whole_numbers([shard], 1), "'shard' is not a whole number above 0")
    _require(_texts(names), "'names' is not a list of texts")
    _require(_texts(sha256), "'sha256' is not a list of texts")
    _require(
        len(names) == len(counts),
        f"it has {len(names)} names of classes but {len(counts)} counts",
    )
    split = Split(TYPES[dtype], tuple(shape), tuple(names), tuple(counts), shard, tuple(sha256))
    _require(
        len(shape) <= DIMENSIONS and split.example_bytes <= LARGEST,
        f"'shape' has more than {DIMENSIONS} dimensions or {LARGEST} bytes",
    )
    expected = -(-split.examples // shard)
    _require(len(sha256) == expected, f"it has {len(sha256)} checksums for {expected} shards")
    return split


def _whole_numbers(values: Any, low: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= low for value in values)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def damaged(folder: Path, index: Index, watch: Callable[[int, int], None]) -> Iterator[Damage]:
    """Yield every shard whose sha256 differs from the index.

    `watch(done, total)` is called with the bytes read so far and the bytes to read.
    """
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
    """Return the bytes of these rows in a data file."""
    return range(rows.start * split.example_bytes, rows.stop * split.example_bytes)


def hash_range(file: BinaryIO, part: range) -> str:
    """Return the sha256 of a range of bytes in a file. The file may end before the range does."""
    sha, left = hashlib.sha256(), len(part)
    file.seek(part.start)
    while left and (block := file.read(min(_BLOCK, left))):
        sha.update(block)
        left -= len(block)
    return sha.hexdigest()
