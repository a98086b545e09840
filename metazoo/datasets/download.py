"""Finding the files of a data set in a data root, or fetching them into the cache."""

from __future__ import annotations

import os
from pathlib import Path

from metazoo.errors import DataError
from metazoo.io.download import DownloadMessages, fetch
from metazoo.io.files import cache_directory


def find_or_fetch(root: str | None, folder: str, name: str, url: str, md5: str) -> Path:
    """Return the path of a file of a data set, or of its unpacked form (the name without its suffix).

    It is looked for in `folder` below the root, then in the root itself. The root is `root`, else the environment
    variable METAZOO_DATA, else the cache, into which what is missing is fetched from `url`/`name`.
    A file in a root of the user's own is not checked against the MD5: repacked copies are legitimate.

    Raises DataError, saying where to put the file, where it is not to be had.
    """
    chosen = root or os.environ.get("METAZOO_DATA")
    base = Path(chosen).expanduser() if chosen else cache_directory()
    stem = Path(name).stem
    for path in (base / folder / name, base / folder / stem, base / name, base / stem):
        if path.exists():
            return path
    if chosen:
        raise DataError(
            f"{name} is not in the data root {base}"
            + ("" if base.is_dir() else ", which is no directory"),
            f"put it into {base / folder}, or leave out --data-root (and METAZOO_DATA) to have it downloaded from {url}",
        )
    destination = base / folder / name
    by_hand = f"put {name} (MD5 {md5}) into {destination.parent} by hand, or give a folder that has it with --data-root"
    fetch(
        f"{url.rstrip('/')}/{name}",
        destination,
        "md5",
        md5,
        DownloadMessages(DataError, by_hand, "try another --data-url"),
    )
    return destination
