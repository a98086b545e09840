"""Data larger than memory: what `metazoo data pack` wrote, mapped from disk."""

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
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples

RESIDENT = 128 * 2**20  # bytes of a data file that may count to this process, about
_ADVISED = hasattr(mmap, "MADV_WILLNEED")  # not on Windows
_AROUND = (
    2**16
)  # bytes that Linux maps around one that is touched, where they are in memory already


class Packed(ClassDataset):
    """Examples in a folder that `metazoo data pack` wrote, read from disk as tasks are drawn.

    Splits, classes, tasks and `input_format` are those of the data that were packed; only official protocols are not
    packed. A task reads its own examples and no others, so the data may be larger than memory. They stay on disk whatever the
    device: each task is copied to it.

    Raises DataError where the folder, its index or a data file is missing, damaged or has not the size that it should have;
    `metazoo data verify` reads every byte.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[str, "the folder that `metazoo data pack` wrote"] = ""

    config: Config
    local_options = ("root",)

    @functools.cached_property
    def index(self) -> Index:
        """What the folder holds, read when first asked for."""
        if not self.config.root:
            raise OptionError(
                "the data set 'packed' needs to know which folder", "give it with --data-root"
            )
        return read_index(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.config.root).expanduser()

    @property
    def licence(self) -> str:  # type: ignore[override]
        return self.index.licence

    @property
    def input_format(self) -> dict[str, Any]:
        return dict(self.index.input_format)

    def load(self) -> dict[str, Examples]:
        return {
            name: _mapped(self._folder.absolute(), name, split, f"{self._folder} ({name})")
            for name, split in self.index.splits.items()
        }

    def move(self, device: torch.device | str) -> None:
        """Do nothing: the whole of the data may fit no device."""


@dataclass(frozen=True)
class Mapped(Examples):
    """Examples in a file that is mapped into memory: taking some reads the pages that they lie on, and no others.

    A process that they are pickled for maps the file itself, which raises DataError where the folder holds other data by then.
    """

    pages: Pages = field(kw_only=True)
    source: tuple[Path, str, Split] = field(kw_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (*self.source, self.title)

    def to(self, device: torch.device | str) -> Examples:
        return self if torch.device(device).type == "cpu" else self.with_values(self.x.to(device))

    def with_values(self, x: Tensor) -> Examples:
        return Examples(x, self.counts, self.names, self.title)

    def take(self, rows: Tensor) -> Tensor:
        self.pages.expect(rows)
        return super().take(rows)


class Pages:
    """The pages of a mapped file: asked for before they are touched, given back when RESIDENT bytes of them may be held."""

    def __init__(self, file: mmap.mmap, example_bytes: int):
        self._file, self._example_bytes, self._resident = file, example_bytes, 0
        if _ADVISED:
            # Else a page that is read brings those behind it, which are of other classes.
            file.madvise(mmap.MADV_RANDOM)

    def expect(self, rows: Tensor) -> None:
        """Prepare for these rows of examples to be read."""
        if not _ADVISED:
            return
        if self._resident > RESIDENT:
            # They stay in the system's cache for as long as it has room: touching them again reads no disk.
            self._file.madvise(mmap.MADV_DONTNEED)
            self._resident = 0
        self._resident += rows.numel() * (self._example_bytes + _AROUND)
        # All at once: a page that is read when it is touched keeps the next one waiting.
        length = self._example_bytes + mmap.PAGESIZE
        for start in (rows.flatten() * self._example_bytes & -mmap.PAGESIZE).tolist():
            self._file.madvise(mmap.MADV_WILLNEED, start, length)


def _reopened(folder: Path, name: str, split: Split, title: str) -> Examples:
    if read_index(folder).splits.get(name) != split:
        raise DataError(f"{title} holds other data than when it was opened", "start again")
    return _mapped(folder, name, split, title)


def _mapped(folder: Path, name: str, split: Split, title: str) -> Examples:
    path = data_file(folder, name)
    if not split.examples:
        return Examples(
            torch.empty(0, *split.shape, dtype=split.dtype), split.counts, split.names, title
        )
    try:
        with path.open("rb") as file:
            # For reading alone: Linux refuses a map that could be written if the file is larger than memory.
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be mapped: {error}", "check its permissions") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written is what is wanted
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
