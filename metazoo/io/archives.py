"""A directory tree or a zip archive, read file by file in memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from metazoo.errors import DataError

Parts = tuple[str, ...]

MAX_FILES = 20_000_000  # below a directory: more are hardly the folder that was meant
MAX_MEMBERS = 500_000  # of an archive
MAX_TOTAL = 8 * 2**30  # bytes in all members together
MAX_MEMBER = 256 * 2**20  # bytes in one member or file

_BOMB_HINT = "it does not look like a data set; unpack it yourself if you trust it, and give the folder instead"


class Tree:
    """The files below a directory or in a zip archive, by the parts of their relative paths, in sorted order.

    `folders` are those that hold them, empty ones included. Hidden files and what macOS adds to its archives are left
    out. Links in a directory are followed. Use it in a `with` statement; `open_tree` makes one.
    """

    def __init__(self, path: Path, files: list[Parts], folders: set[Parts]):
        self.path = path
        self.files = sorted(parts for parts in files if not _hidden(parts))
        self.folders = {parts for parts in folders if not _hidden(parts)}
        self.folders |= {parts[:depth] for parts in self.files for depth in range(1, len(parts))}

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def name(self, parts: Parts) -> str:
        """Return what to call a file in a message."""
        return str(self.path.joinpath(*parts))

    def read(self, parts: Parts) -> bytes:
        """Return the contents of a file, or raise DataError, naming it, where it is damaged or too large."""
        raise NotImplementedError

    def stamp(self, parts: Parts) -> str:
        """Return a text that changes when a file does, without reading it: size and time, or checksum in an archive."""
        raise NotImplementedError


def open_tree(path: Path) -> Tree:
    """Return the tree at a path: a directory, or a zip archive.

    Raises DataError where it is neither, is truncated, has a member that would leave the directory it is unpacked in,
    a link or an encrypted member, or more than MAX_MEMBERS members or MAX_TOTAL bytes.
    """
    if path.is_dir():
        return _Directory(path)
    if not path.is_file():
        raise DataError(f"there is no directory or zip archive {path}", "check the path")
    return _Zip(path)


def digest(path: Path) -> str:
    """Return a sha256 that changes when the data do: of an archive's bytes, of the names and sizes in a directory."""
    sha = hashlib.sha256()
    try:
        if path.is_dir():
            tree = _Directory(path)
            for parts in tree.files:
                sha.update(
                    f"{'/'.join(parts)}\0{tree.sizes[parts]}\0".encode("utf-8", "surrogateescape")
                )
        else:
            with path.open("rb") as file:
                for block in iter(lambda: file.read(2**20), b""):
                    sha.update(block)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error}", "check the path and its permissions"
        ) from error
    return sha.hexdigest()


def _hidden(parts: Parts) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


class _Directory(Tree):
    def __init__(self, path: Path):
        self.sizes: dict[Parts, int] = {}
        self._folders: set[Parts] = set()
        try:
            self._walk(path, (), (os.path.realpath(path),))
        except OSError as error:
            raise DataError(
                f"cannot list {error.filename or path}: {error.strerror}", "check its permissions"
            ) from error
        super().__init__(path, list(self.sizes), self._folders)

    def _walk(self, path: Path, parts: Parts, above: tuple[str, ...]) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                inner = (*parts, entry.name)
                if _hidden((entry.name,)):
                    continue
                if entry.is_symlink() and not os.path.exists(entry.path):
                    raise DataError(
                        f"{entry.path} is a link to nothing", "remove it, or mend what it points to"
                    )
                if entry.is_file():
                    self.sizes[inner] = entry.stat().st_size
                    if len(self.sizes) > MAX_FILES:
                        raise DataError(
                            f"{path} lies in a tree of more than {MAX_FILES} files",
                            "is it the folder you mean?",
                        )
                elif entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real in above:
                        raise DataError(
                            f"{entry.path} is a link to a folder that it lies in", "remove it"
                        )
                    self._folders.add(inner)
                    self._walk(Path(entry.path), inner, (*above, real))

    def read(self, parts: Parts) -> bytes:
        name = self.name(parts)
        try:
            with open(name, "rb") as file:
                data = file.read(MAX_MEMBER + 1)
        except OSError as error:
            raise DataError(
                f"cannot read {name}: {error.strerror}", "check its permissions"
            ) from error
        if len(data) > MAX_MEMBER:
            raise DataError(
                f"{name} has more than {MAX_MEMBER} bytes", "is it part of the data set?"
            )
        return data

    def stamp(self, parts: Parts) -> str:
        name = self.name(parts)
        try:
            found = os.stat(name)
        except OSError as error:
            raise DataError(
                f"cannot read {name}: {error.strerror}", "it was there a moment ago; start again"
            ) from error
        return f"{found.st_size} {found.st_mtime_ns}"


class _Zip(Tree):
    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{path} is not a zip archive, or a truncated one: {error}",
                "get it again; other archives must be unpacked first, and the folder given instead",
            ) from error
        try:
            self._members = dict(self._check(self._zip.infolist()))
        except DataError:
            self._zip.close()
            raise
        self._bytes_read = 0
        folders = {parts for parts, info in self._members.items() if info.is_dir()}
        super().__init__(path, [parts for parts in self._members if parts not in folders], folders)

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _check(self, infos: list[zipfile.ZipInfo]) -> Iterator[tuple[Parts, zipfile.ZipInfo]]:
        archive = self._zip.filename
        if len(infos) > MAX_MEMBERS:
            raise DataError(
                f"{archive} has {len(infos)} members; the limit is {MAX_MEMBERS}", _BOMB_HINT
            )
        total = sum(info.file_size for info in infos)
        if total > MAX_TOTAL:
            raise DataError(
                f"{archive} unpacks to {total} bytes; the limit is {MAX_TOTAL}", _BOMB_HINT
            )
        seen = set()
        for info in infos:
            where = f"{archive}: member '{info.filename}'"
            parts = tuple(info.filename.removesuffix("/").split("/"))
            if (
                "\\" in info.filename
                or ":" in parts[0]
                or any(part in ("", ".", "..") for part in parts)
            ):
                raise DataError(
                    f"{where} has an unsafe path",
                    "do not trust this archive; get it from its publisher",
                )
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(
                    f"{where} is a link", "do not trust this archive; get it from its publisher"
                )
            if info.flag_bits & 1 or info.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                # Python's bzip2 and LZMA readers inflate a whole block before anyone can stop them.
                raise DataError(
                    f"{where} is encrypted, or compressed otherwise than by deflate",
                    "pack it again",
                )
            if parts in seen:
                raise DataError(f"{where} is there twice", "pack it again")
            seen.add(parts)
            yield parts, info

    def name(self, parts: Parts) -> str:
        return f"{self.path}: member '{'/'.join(parts)}'"

    def read(self, parts: Parts) -> bytes:
        try:
            with self._zip.open(self._members[parts]) as file:
                data = file.read(MAX_MEMBER + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise DataError(
                f"{self.name(parts)} is damaged: {error}", "get the archive again"
            ) from error
        # The sizes that an archive declares are only a claim: what comes out is what counts.
        self._bytes_read += len(data)
        if len(data) > MAX_MEMBER or self._bytes_read > MAX_TOTAL:
            limit = MAX_MEMBER if len(data) > MAX_MEMBER else MAX_TOTAL
            raise DataError(f"{self.name(parts)} exceeds the limit of {limit} bytes", _BOMB_HINT)
        return data

    def stamp(self, parts: Parts) -> str:
        info = self._members[parts]
        return f"{info.file_size} {info.CRC}"
