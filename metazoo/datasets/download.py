"""The files of a data set: found in a data root, or downloaded into the cache."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from metazoo.errors import DataError
from metazoo.io.download import DownloadMessages, fetch
from metazoo.io.files import cache_directory, expand_user
from metazoo.quoting import shown_address

LARGEST = 2**30  # bytes of a downloaded file; a server may send without end


def find_or_fetch(
    root: str | None,
    folder: str,
    name: str,
    url: str,
    checksum: str,
    algorithm: Literal["md5", "sha256"] = "md5",
    also: Sequence[str] = (),
) -> Path:
    """Return the path of a file of a data set, or of the folder that it was unpacked to.

    The data root is `root`, else the environment variable METAZOO_DATA. A file there is not checked
    against `checksum`, because a repacked copy is legitimate. Without a data root, the file is taken
    from the cache or downloaded into it.

    Args:
        root: the data root, if the user names one.
        folder: folder of the data set below the root; files may also lie in the root itself.
        name: name of the file. If it is packed, what has that name without its suffix counts too.
        url: address of the folder to download from.
        checksum, algorithm: of a downloaded file.
        also: other paths below the root where the file may lie, perhaps packed.

    Raises DataError if the file is not in the data root or cannot be downloaded.
    """
    data_root = root or os.environ.get("METAZOO_DATA")
    base = expand_user(data_root, "the data root") if data_root else cache_directory()
    unpacked = [Path(name).stem] if Path(name).suffix in (".zip", ".gz") else []
    names = [f"{place}{each}" for place in (f"{folder}/", "") for each in (name, *unpacked)]
    for path in (base / each for each in (*names, *also)):
        if path.is_file() or path.is_dir():  # a pipe would wait for a writer
            return path
    if data_root:
        raise DataError(
            f"{name} is not in the data root {base}"
            + ("" if base.is_dir() else ", which is not a directory"),
            f"put it into {base / folder}, or leave out --data-root and unset METAZOO_DATA to "
            f"download it from {shown_address(url)}",
        )
    destination = base / folder / name
    by_hand = (
        f"put {name} ({algorithm.upper()} {checksum}) into {destination.parent} by hand, or name a folder that has it "
        "with --data-root"
    )
    messages = DownloadMessages(DataError, by_hand, "try another --data-url")
    fetch(f"{url.rstrip('/')}/{name}", destination, algorithm, checksum, messages, LARGEST)
    return destination


def read_whole(path: Path, limit: int) -> bytes:
    """Return the contents of a file, unpacked if it is a .gz.

    Raises DataError if it is missing, damaged, or has more than `limit` bytes.
    """
    hint = "remove it, and get it again"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data: bytes = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", hint) from error
    if len(data) > limit:
        raise DataError(f"{path} has more than {limit} bytes", hint)
    return data
