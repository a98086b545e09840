"""Directories and zip archives, read file by file in memory; nothing is unpacked to disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from metazoo.errors import DataError
from metazoo.io import files
from metazoo.quoting import printable

Parts = tuple[str, ...]

MAX_FILES = 20_000_000  # and folders in a directory; more suggest that it is the wrong one
MAX_DEPTH = 100  # folders inside each other
MAX_MEMBERS = 500_000  # of an archive
MAX_TOTAL = 8 * 2**30  # bytes of all members of an archive
MAX_MEMBER = 256 * 2**20  # bytes of one member or file

_UTF8_FLAG = 1 << 11
_LOCAL_HEADER = 30  # bytes before a member's name
_END_BYTES = 2**16 + 200  # that the end of an archive takes, with the longest comment

_BOMB_HINT = (
    "it does not look like a data set; unpack it yourself if you trust it, and give the folder"
)
_UNSAFE_HINT = "do not trust this archive; get it from its publisher"


class Tree:
    """The files in a directory or a zip archive, as sorted tuples of the parts of their paths.

    `folders` holds every folder, also empty ones. Hidden files and macOS's `__MACOSX` are left out.
    Links in a directory are followed. Open one with `open_tree`, in a `with` statement.
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
        """Return the name of a file for a message, on one line."""
        return printable(str(self.path.joinpath(*parts)))

    def read(self, parts: Parts) -> bytes:
        """Return the contents of a file. Raises DataError if it is damaged or too large."""
        raise NotImplementedError

    def stamp(self, parts: Parts) -> str:
        """Return a text that changes with a file: its size and time, or in an archive its CRC."""
        raise NotImplementedError


def open_tree(path: Path) -> Tree:
    """Return the files of a directory or zip archive.

    Raises DataError if the path is neither, or if the archive is truncated, has lost a member, is
    larger than MAX_MEMBERS members or MAX_TOTAL bytes, or has an unsafe member: a path outside of
    the archive, a link, or an encrypted file.
    """
    if path.is_dir():
        return _Directory(path)
    if not path.is_file():
        raise DataError(f"there is no directory or zip archive {path}", "check the path")
    return _Zip(path)


def digest(path: Path) -> str:
    """Return a sha256 of an archive's bytes, or of the names and sizes of a directory's files."""
    try:
        if not path.is_dir():
            return files.digest(path, "sha256")
        sha = hashlib.sha256()
        tree = _Directory(path)
        for parts in tree.files:
            line = f"{'/'.join(parts)}\0{tree.sizes[parts]}\0"
            sha.update(line.encode("utf-8", "surrogateescape"))
        return sha.hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error}", "check the path and its permissions"
        ) from error


def _check_depth(parts: Parts, where: str) -> None:
    if len(parts) > MAX_DEPTH:
        raise DataError(
            f"{where} has folders more than {MAX_DEPTH} deep", "is it the data set you mean?"
        )


def _hidden(parts: Parts) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


class _Directory(Tree):
    def __init__(self, path: Path):
        self.sizes: dict[Parts, int] = {}
        self._folders: set[Parts] = set()
        self._root = path
        try:
            self._walk(path, (), (os.path.realpath(path),))
        except OSError as error:
            raise DataError(
                f"cannot list {error.filename or path}: {error.strerror}", "check its permissions"
            ) from error
        super().__init__(path, list(self.sizes), self._folders)

    def _walk(self, path: Path, parts: Parts, above: tuple[str, ...]) -> None:
        """Record the files below a folder; `above` are the real paths of its parents."""
        _check_depth(parts, str(self._root))
        with os.scandir(path) as entries:
            for entry in entries:
                inner = (*parts, entry.name)
                if _hidden((entry.name,)):
                    continue
                if entry.is_symlink() and not os.path.exists(entry.path):
                    raise DataError(
                        f"{entry.path} is a link to nothing", "remove it or repair its target"
                    )
                if len(self.sizes) + len(self._folders) >= MAX_FILES:
                    raise DataError(
                        f"{self._root} has more than {MAX_FILES} files and folders",
                        "is it the folder you mean?",
                    )
                if entry.is_file():
                    self.sizes[inner] = entry.stat().st_size
                elif entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real in above:
                        raise DataError(
                            f"{entry.path} is a link to a folder that it lies in", "remove it"
                        )
                    self._folders.add(inner)
                    self._walk(Path(entry.path), inner, (*above, real))
                else:
                    raise DataError(
                        f"{entry.path} is neither a file nor a folder", "remove it, or move it away"
                    )

    def read(self, parts: Parts) -> bytes:
        name, path = self.name(parts), self.path.joinpath(*parts)
        with _readable(name, "check its permissions"), path.open("rb") as file:
            data = file.read(MAX_MEMBER + 1)
        if len(data) > MAX_MEMBER:
            raise DataError(
                f"{name} has more than {MAX_MEMBER} bytes", "is it part of the data set?"
            )
        return data

    def stamp(self, parts: Parts) -> str:
        name = self.name(parts)
        with _readable(name, "it has changed since the folder was listed; start again"):
            found = os.stat(self.path.joinpath(*parts))
        return f"{found.st_size} {found.st_mtime_ns}"


@contextlib.contextmanager
def _readable(name: str, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}", hint) from error


class _Zip(Tree):
    def __init__(self, path: Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} names a member in bytes that are not UTF-8: {error.object!r}",
                "pack it again",
            ) from error
        except Exception as error:  # a damaged archive makes zipfile raise anything
            raise DataError(
                f"{path} is not a zip archive, or a truncated one: {error}",
                "get it again; unpack other kinds of archive, and give the folder",
            ) from error
        try:
            self._members, folders = self._checked(self._zip.infolist())
        except DataError:
            self._zip.close()
            raise
        self._bytes_read = 0
        super().__init__(path, list(self._members), folders)

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _checked(
        self, infos: list[zipfile.ZipInfo]
    ) -> tuple[dict[Parts, zipfile.ZipInfo], set[Parts]]:
        """Return the members of an archive and its folders, after all checks but the contents'."""
        archive = str(self._zip.filename)
        if len(infos) > MAX_MEMBERS:
            raise DataError(
                f"{archive} has {len(infos)} members; the limit is {MAX_MEMBERS}", _BOMB_HINT
            )
        total = sum(info.file_size for info in infos)
        if total > MAX_TOTAL:
            raise DataError(
                f"{archive} unpacks to {total} bytes; the limit is {MAX_TOTAL}", _BOMB_HINT
            )
        with _readable(archive, "check its permissions"), open(archive, "rb", 0) as file:
            _check_complete(file, archive, infos)
        members: dict[Parts, zipfile.ZipInfo] = {}
        folders: set[Parts] = set()
        for info in infos:
            where = f"{archive}: member '{info.filename}'"
            parts, is_folder = _safe_parts(info, where)
            if is_folder:
                folders |= {parts} - {()}
                continue
            if parts in members:
                raise DataError(f"{where} is there twice", "pack it again")
            members[parts] = info
        return members, folders

    def name(self, parts: Parts) -> str:
        return printable(f"{self.path}: member '{'/'.join(parts)}'")

    def read(self, parts: Parts) -> bytes:
        name = self.name(parts)
        try:
            with self._zip.open(self._members[parts]) as file:
                data = file.read(MAX_MEMBER + 1)
        except Exception as error:  # a damaged archive makes zipfile raise anything
            raise DataError(f"{name} is damaged: {error}", "get the archive again") from error
        # An archive may declare false sizes, so the bytes that were read are counted.
        self._bytes_read += len(data)
        if len(data) > MAX_MEMBER or self._bytes_read > MAX_TOTAL:
            limit = MAX_MEMBER if len(data) > MAX_MEMBER else MAX_TOTAL
            raise DataError(f"{name} exceeds the limit of {limit} bytes", _BOMB_HINT)
        return data

    def stamp(self, parts: Parts) -> str:
        info = self._members[parts]
        return f"{info.file_size} {info.CRC}"


def _check_complete(file: BinaryIO, archive: str, infos: list[zipfile.ZipInfo]) -> None:
    """Raise DataError unless the members are as many as the end of the archive says, and each is
    named as in its own header. One wrong bit can hide a member, or move it to another class.
    """
    try:
        counted = _counted(file)
    except struct.error:
        raise DataError(f"{archive} is damaged: its end is not complete", "get it again") from None
    if (len(infos) - counted) % 2**16:  # an archive without zip64 counts only so far
        raise DataError(
            f"{archive} is damaged: it lists {len(infos)} of {counted} members",
            "get the archive again",
        )
    for info in infos:
        name = _bytes_of_name(info)
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER + len(name))
        length = header[_LOCAL_HEADER - 4 : _LOCAL_HEADER - 2]
        if header[_LOCAL_HEADER:] != name or length != struct.pack("<H", len(name)):
            raise DataError(
                f"{archive}: member '{info.filename}' is damaged: it is named otherwise in its "
                "own header",
                "get the archive again",
            )


def _counted(file: BinaryIO) -> int:
    """Return how many members an archive's end record declares."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
    last = file.read()
    end = last.rfind(b"PK\5\6")
    count: int = struct.unpack_from("<H", last, end + 10)[0]
    if count == 0xFFFF and (end64 := last.rfind(b"PK\6\6", 0, end)) >= 0:
        count = struct.unpack_from("<Q", last, end64 + 32)[0]
    return count


def _bytes_of_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8_FLAG else "cp437")


def _safe_parts(info: zipfile.ZipInfo, where: str) -> tuple[Parts, bool]:
    """Return the parts of a member's path and whether it is a folder.

    Raises DataError if the member is unsafe to read.
    """
    name = info.filename
    if not info.flag_bits & _UTF8_FLAG:
        with contextlib.suppress(UnicodeDecodeError):  # packed on macOS, which does not say so
            name = _bytes_of_name(info).decode()
    name = name.replace("\\", "/")  # packed on Windows
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    is_folder = name.endswith(("/", "/.")) or name == "."
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in parts:
        raise DataError(f"{where} has an unsafe path", _UNSAFE_HINT)
    if not parts and not is_folder:
        raise DataError(f"{where} has no name", _UNSAFE_HINT)
    _check_depth(parts, where)
    if stat.S_ISLNK(info.external_attr >> 16):
        raise DataError(f"{where} is a link", _UNSAFE_HINT)
    if info.flag_bits & 1:
        raise DataError(f"{where} is encrypted", "pack it again without a password")
    # Python's bzip2 and LZMA readers inflate a whole block at once, beyond any limit.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is compressed by another method than deflate", "pack it again")
    return parts, is_folder
