"""The data set `packed`: examples on disk, mapped into memory as tasks are drawn."""

from __future__ import annotations

import functools
import mmap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.packed.format import Index, Split, data_file, read_index
from metazoo.errors import DataError, OptionError
from metazoo.io.files import expand_user
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples

RESIDENT = 128 * 2**20  # bytes of a data file that stay mapped in memory, approximately
_HAS_MADVISE = hasattr(mmap, "MADV_WILLNEED")  # not on Windows
_FAULT_AROUND = 2**16  # bytes that Linux maps around a touched byte if they are in its cache


class Packed(ClassDataset):
    """Examples in a folder written by `metazoo data pack`, read from disk as tasks are drawn.

    Splits, classes, tasks and `input_format` are those of the packed data; official protocols are
    not packed. A task reads only its own examples, so the data may be larger than memory. On a GPU,
    the data stay on disk and each task is copied to the device.

    Raises DataError if the folder, its index or a data file is missing, damaged or has the wrong
    size. `metazoo data verify` checks every byte.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[str, "the folder written by `metazoo data pack`"] = ""

    config: Config
    local_options = ("root",)

    @functools.cached_property
    def index(self) -> Index:
        """The contents of the folder, read on first access."""
        if not self.config.root:
            raise OptionError(
                "the data set 'packed' needs a folder of packed data", "name it with --data-root"
            )
        return read_index(self._folder)

    @property
    def _folder(self) -> Path:
        return expand_user(self.config.root, "--data-root")

    @property
    def licence(self) -> str:  # type: ignore[override]
        return self.index.licence

    @property
    def input_format(self) -> dict[str, Any]:
        return dict(self.index.input_format)

    def load(self) -> dict[str, Examples]:
        return {
            name: _map(self._folder.absolute(), name, split, f"{self._folder} ({name})")
            for name, split in self.index.splits.items()
        }

    def move(self, device: torch.device | str) -> None:
        """Do nothing: the data may be too large for the device."""


@dataclass(frozen=True)
class Mapped(Examples):
    """Examples in a file that is mapped into memory; only the pages of taken examples are read.

    When unpickled, they are mapped again. This raises DataError if the folder holds other data by
    then.

    Attributes:
        pages: the pages of the mapped file.
        source: folder, split name and split, to open the file again.
    """

    pages: Pages = field(kw_only=True)
    source: tuple[Path, str, Split] = field(kw_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (*self.source, self.title)

    def to(self, device: torch.device | str) -> Examples:
        return self if torch.device(device).type == "cpu" else self.with_values(self.x.to(device))

    def digest(self) -> str:
        """Return the checksums in the index: the data may be larger than memory."""
        return " ".join(self.source[2].sha256)

    def with_values(self, x: Tensor) -> Examples:
        return Examples(x, self.counts, self.names, self.title)

    def take(self, rows: Tensor) -> Tensor:
        self.pages.prefetch(rows)
        return super().take(rows)


class Pages:
    """The pages of a mapped file: requested ahead of use, released beyond RESIDENT bytes."""

    def __init__(self, file: mmap.mmap, example_bytes: int):
        self._file, self._example_bytes, self._resident = file, example_bytes, 0
        if _HAS_MADVISE:
            # Without this, reading a page also reads the pages after it, which hold other classes.
            file.madvise(mmap.MADV_RANDOM)

    def prefetch(self, rows: Tensor) -> None:
        """Request the pages of these rows of examples."""
        if not _HAS_MADVISE:
            return
        if self._resident > RESIDENT:
            # The system keeps the pages in its cache while there is room; touching them again does
            # not read the disk.
            self._file.madvise(mmap.MADV_DONTNEED)
            self._resident = 0
        self._resident += rows.numel() * (self._example_bytes + _FAULT_AROUND)
        # Requested together, the pages are read in parallel; on first touch, one after the other.
        length = self._example_bytes + mmap.PAGESIZE
        for start in (rows.flatten() * self._example_bytes & -mmap.PAGESIZE).tolist():
            self._file.madvise(mmap.MADV_WILLNEED, start, length)


def _reopen(folder: Path, name: str, split: Split, title: str) -> Examples:
    if read_index(folder).splits.get(name) != split:
        raise DataError(f"{title} has changed since it was opened", "start again")
    return _map(folder, name, split, title)


def _map(folder: Path, name: str, split: Split, title: str) -> Examples:
    path = data_file(folder, name)
    if not split.examples:
        return Examples(
            torch.empty(0, *split.shape, dtype=split.dtype), split.counts, split.names, title
        )
    try:
        with path.open("rb") as file:
            # Read-only: Linux refuses a writable map of a file that is larger than memory.
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be mapped: {error}", "check its permissions") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the buffer is not writable
        x = torch.frombuffer(pages, dtype=split.dtype).view(-1, *split.shape)
    return Mapped(
        x,
        split.counts,
        split.names,
        title,
        pages=Pages(pages, split.example_bytes),
        source=(folder, name, split),
    )


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"packed": Packed}
