"""Raw examples of each class as a stream of tensors."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from metazoo.errors import DataError
from metazoo.inputs import LONGEST, kind_of, read
from metazoo.options import Range
from metazoo.tasks.examples import Stream

# Options of data sets of texts.
Tokenizer = Annotated[
    str, "ngrams (hashed words and n-grams), or that of an encoder: BACKBONE[:NAME]"
]
Length = Annotated[int, "tokens of a text; the rest is left out", Range(1, LONGEST)]


def raw_stream(
    classes: Mapping[str, Sequence[Any]], input_format: Mapping[str, Any], title: str
) -> Stream:
    """Return the texts, image files or rows of numbers of each class as a stream of tensors."""
    raw = list(itertools.chain.from_iterable(classes.values()))

    def read_rows(first: int, last: int) -> Tensor:
        if kind_of(input_format) == "numbers":
            return torch.tensor(raw[first:last], dtype=torch.float32)
        return read(raw[first:last], input_format)

    def digest() -> str:
        sha = hashlib.sha256(repr(sorted(input_format.items())).encode())
        for each in raw:
            line = f"{each}\0{_stamp(each)}" if isinstance(each, Path) else repr(each)
            sha.update(f"{line}\0".encode("utf-8", "surrogatepass"))
        return sha.hexdigest()

    return Stream(read_rows, tuple(map(len, classes.values())), tuple(classes), title, digest)


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "restore it") from error
    return f"{found.st_size} {found.st_mtime_ns}"
