"""A cache of decoded examples on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from metazoo.io.files import cache_directory, write_atomically
from metazoo.tasks.examples import Examples

# Increase this number when the same key gives other examples than before, for example after a
# change of `images.decode`.
_VERSION = 2


def load_or_build(folder: str, key: str, build: Callable[[], Examples]) -> Examples:
    """Return examples from the cache; if they are missing or damaged, build them and store them.

    An error in writing to the cache is ignored.

    Args:
        folder: folder inside the cache.
        key: a text that changes with everything that the examples depend on.
        build: makes the examples.
    """
    name = hashlib.sha256(f"{_VERSION}\0{key}".encode()).hexdigest()[:32]
    path = cache_directory() / folder / f"{name}.safetensors"
    examples = _read(path)
    if examples is None:
        examples = build()
        with contextlib.suppress(OSError):
            _write(path, examples)
    return examples


def _checksum(x: Tensor, about: Mapping[str, str]) -> str:
    names = "\0".join(about[key] for key in ("counts", "names", "title")).encode()
    return f"{zlib.crc32(names, zlib.crc32(x.numpy().data)):08x}"


def _read(path: Path) -> Examples | None:
    """Return the examples of a cache file, or None if it is missing or damaged."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about, x = file.metadata(), file.get_tensor("x")
        if about["crc32"] != _checksum(x, about):
            return None
        return Examples(
            x, tuple(json.loads(about["counts"])), tuple(json.loads(about["names"])), about["title"]
        )
    except Exception:  # whatever is wrong with the file, building again repairs it
        return None


def _write(path: Path, examples: Examples) -> None:
    about = {
        "counts": json.dumps(examples.counts),
        "names": json.dumps(examples.names),
        "title": examples.title,
    }
    about["crc32"] = _checksum(examples.x, about)
    write_atomically(path, safetensors.torch.save({"x": examples.x}, about))
