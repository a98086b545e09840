"""Atomic file writes, JSON, checksums, locks between processes, and the cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metazoo.errors import CheckpointError, OptionError

try:
    import fcntl
except ImportError:  # on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

LARGEST_JSON = 2**24  # bytes
DEEPEST_JSON = 100  # Python functions that follow a value need a frame for each level


def cache_directory() -> Path:
    """Return $METAZOO_CACHE, else $XDG_CACHE_HOME/metazoo, else ~/.cache/metazoo.

    The directory may not exist yet. Raises OptionError if METAZOO_CACHE begins with the home of an
    unknown user.
    """
    if chosen := os.environ.get("METAZOO_CACHE"):
        return expand_user(chosen, "METAZOO_CACHE")
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "metazoo"


def is_same_place(one: str | Path, other: str | Path | None) -> bool:
    """Return whether two paths name the same place, after links and ~ are followed."""
    if other is None:
        return False
    return expand_user(one, "a path").resolve() == expand_user(other, "a path").resolve()


def expand_user(path: str | Path, what: str) -> Path:
    """Return a path with ~ or ~USER replaced; raise OptionError, naming `what`, for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OptionError(
            f"{what} is '{path}', and there is no such home directory", "give a full path"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all. An OSError names the file."""
    with naming(path):
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


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError name this file: a full disk names none, other errors the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
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
    operating system locks the file `.lock` and releases it when the process ends; the file is
    removed afterwards. On Windows, and on network file systems without locks, nothing is locked.
    """
    path = folder / ".lock"
    handle = _lock(path, wait)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is still locked
        os.close(handle)


def _lock(path: Path, wait: bool) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            return handle
        # Whoever held the lock removed the file: the lock on it keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON; NaN and infinity, which JSON cannot hold, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; raise ValueError if it is malformed or repeats a key."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    layer = [value]
    for _ in range(DEEPEST_JSON):
        if not layer:
            return value
        inner = [
            each.values() if isinstance(each, dict) else each for each in layer if _holds(each)
        ]
        layer = list(itertools.chain.from_iterable(inner))
    raise ValueError("it is nested too deeply")


def _holds(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has a key twice")
    return values


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all."""
    write_atomically(path, (json_text(value, indent=2) + "\n").encode())


def read_json(path: Path, hint: str) -> Any:
    """Return the value in a JSON file. Raises CheckpointError; `hint` is for a damaged file."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_JSON + 1)
        if len(text) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        return parse_json(text)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint) from error
