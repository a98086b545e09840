"""A cache of embeddings on disk, so that a second run of an encoder computes nothing.

It lies in the folder `embeddings` of the cache directory, in one SQLite file for each encoder, and
is keyed by the values of an example as the encoder reads it. METAZOO_EMBEDDINGS=off switches it
off; deleting the folder empties it. The examples themselves are not stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metazoo.errors import OptionError
from metazoo.io.files import cache_directory

# Increase this number when the same key gives other embeddings than before.
_VERSION = 1
LARGEST = 2**32  # bytes of one file; nothing is added to a larger one
_AT_ONCE = 500  # keys in a query; SQLite takes at least 999


def remembered(
    identity: str, x: Tensor, compute: Callable[[Tensor], Tensor], features: int
) -> Tensor:
    """Return `compute(x)` for examples (N, *), float32 (N, features), computing only new examples.

    `identity` changes with everything but the example that an embedding depends on.
    """
    if not len(x) or not _enabled():
        return compute(x) if len(x) else x.new_zeros(0, features, dtype=torch.float32)
    name = hashlib.sha256(f"{_VERSION}\0{identity}".encode()).hexdigest()[:32]
    path = cache_directory() / "embeddings" / f"{name}.sqlite"
    keys = _keys(x)
    found = _read(path, keys, features)
    new = torch.tensor([i for i, key in enumerate(keys) if key not in found], dtype=torch.long)
    z = torch.empty(len(x), features)
    if len(new):
        z[new] = compute(x[new.to(x.device)]).cpu()
        _write(path, {keys[i]: z[i].numpy().tobytes() for i in new.tolist()})
    for i, key in enumerate(keys):
        if key in found:
            z[i] = torch.from_numpy(np.frombuffer(found[key], np.float32).copy())
    return z.to(x.device)


def _enabled() -> bool:
    value = os.environ.get("METAZOO_EMBEDDINGS", "")
    if value not in ("", "off"):
        raise OptionError(
            f"METAZOO_EMBEDDINGS cannot be '{value}'", "it may be off; or leave it unset"
        )
    return not value


def _keys(x: Tensor) -> list[bytes]:
    rows = x.detach().cpu().contiguous().flatten(1).numpy()
    about = f"{rows.dtype.str}{tuple(x.shape[1:])}".encode()
    return [hashlib.sha256(about + row.tobytes()).digest() for row in rows]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, value BLOB)")
        yield database


def _read(path: Path, keys: Sequence[bytes], features: int) -> dict[bytes, bytes]:
    """Return the stored values of keys. A damaged file is deleted, a damaged value left out."""
    found: dict[bytes, bytes] = {}
    if not path.exists():
        return found
    try:
        with _opened(path) as database:
            for first in range(0, len(keys), _AT_ONCE):
                part = keys[first : first + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(
                    f"SELECT key, value FROM embeddings WHERE key IN ({marks})", part
                )
                found.update({key: value for key, value in rows if _whole(key, value, features)})
    except sqlite3.OperationalError:  # locked, or the disk cannot be read: the cache is not needed
        pass
    except sqlite3.DatabaseError:
        with contextlib.suppress(OSError):
            path.unlink()
    except OSError:
        pass
    return {key: value[4:] for key, value in found.items()}


def _whole(key: object, value: object, features: int) -> bool:
    if not isinstance(value, bytes) or not isinstance(key, bytes):
        return False
    return len(value) == 4 + 4 * features and value[:4] == _checksum(key, value[4:])


def _checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(4, "little")


def _write(path: Path, values: dict[bytes, bytes]) -> None:
    """Store values. An error is ignored: the cache is not needed."""
    rows = [(key, _checksum(key, value) + value) for key, value in values.items()]
    with contextlib.suppress(OSError, sqlite3.Error):
        if path.exists() and path.stat().st_size > LARGEST:
            return
        with _opened(path) as database, database:
            database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)
