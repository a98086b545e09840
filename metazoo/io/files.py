"""Atomic file writes, checksums, locks between processes, and the cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metazoo.errors import CheckpointError

try:
    import fcntl
except ImportError:  # on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]


def cache_directory() -> Path:
    """Return $METAZOO_CACHE, else $XDG_CACHE_HOME/metazoo, else ~/.cache/metazoo.

    The directory may not exist yet.
    """
    if chosen := os.environ.get("METAZOO_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "metazoo"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def digest(path: Path, algorithm: str) -> str:
    """Return the checksum of a file in hexadecimal; `algorithm` is a name in hashlib ("sha256")."""
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            checksum.update(block)
    return checksum.hexdigest()


def read_verified(path: Path, sha256: str) -> bytes | None:
    """Return the contents of a file, or None if their sha256 is another."""
    data = path.read_bytes()
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock a folder for this process.

    If another process holds the lock, wait for it, or raise BlockingIOError if `wait` is false. The
    operating system locks the file `.lock` and releases it when the process ends. On Windows, and
    on network file systems without locks, nothing is locked.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass
        yield
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, hint: str) -> Any:
    """Return the value in a JSON file. Raises CheckpointError; `hint` is for a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint) from error
