"""Decoded examples that need not be decoded again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from metazoo.io.files import cache_directory, write_atomically
from metazoo.tasks.examples import Examples

# To be raised whenever the same key would give other examples than before: what `images.decode` gives has changed, say.
_LAYOUT = 1


def remember(folder: str, key: str, build: Callable[[], Examples]) -> Examples:
    """Return what `build` gives, from the cache where it is there and whole; else build it and put it there.

    `key` must change with everything that the examples depend on. A cache that cannot be written is passed over.
    """
    name = hashlib.sha256(f"{_LAYOUT}\0{key}".encode()).hexdigest()[:32]
    path = cache_directory() / folder / f"{name}.safetensors"
    examples = _read(path)
    if examples is None:
        examples = build()
        with contextlib.suppress(OSError):
            _write(path, examples)
    return examples


def _checksum(x: Tensor) -> str:
    return f"{zlib.crc32(x.numpy().data):08x}"


def _read(path: Path) -> Examples | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about, x = file.metadata(), file.get_tensor("x")
        if about["crc32"] != _checksum(x):
            return None
        return Examples(
            x, tuple(json.loads(about["counts"])), tuple(json.loads(about["names"])), about["title"]
        )
    except Exception:  # whatever is wrong with a cache file, the cure is to build it again
        return None


def _write(path: Path, examples: Examples) -> None:
    about = {
        "counts": json.dumps(examples.counts),
        "names": json.dumps(examples.names),
        "title": examples.title,
        "crc32": _checksum(examples.x),
    }
    write_atomically(path, safetensors.torch.save({"x": examples.x}, about))
