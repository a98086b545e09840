"""Finding the files of a data set in a data root, or fetching them into the cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from metazoo.errors import DataError
from metazoo.files import cache_directory, locked

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3


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
            f"{name} is not in the data root {base}" + ("" if base.is_dir() else ", which is no directory"),
            f"put it into {base / folder}, or leave out --data-root (and METAZOO_DATA) to have it downloaded from {url}",
        )
    destination = base / folder / name
    fetch(f"{url.rstrip('/')}/{name}", md5, destination)
    return destination


def fetch(url: str, md5: str, destination: Path) -> None:
    """Download a file to `destination`, which appears only when it is whole and has that MD5.

    What has come so far is kept as `*.part`, from which the next call goes on; a part with a wrong checksum is removed.

    Raises DataError, with what to do, where there is no connection, no such file, no room or a wrong checksum.
    """
    part = destination.with_name(destination.name + ".part")
    by_hand = (
        f"put {destination.name} (MD5 {md5}) into {destination.parent} by hand, or give a folder that has it with --data-root"
    )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination.parent, wait=True):  # the processes of a distributed run must not write into one part
            if destination.exists():  # another process was faster
                return
            resumed = part.exists()
            _download(url, part)
            found = _md5(part)
            if found != md5 and resumed:  # the part may have been of another file
                part.unlink()
                _download(url, part)
                found = _md5(part)
            if found != md5:
                part.unlink()
                raise DataError(f"{url} has the MD5 {found}, but should have {md5}", f"try another --data-url, or {by_hand}")
            os.replace(part, destination)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"cannot download {url}: HTTP status {error.code} {error.reason}", by_hand) from error
    except urllib.error.URLError as error:
        raise DataError(f"cannot download {url}: {error.reason}", f"are you offline? {by_hand}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(
            f"cannot download {url} to {destination.parent}: {error}",
            f"try again: it goes on where it stopped; or {by_hand}; METAZOO_CACHE moves the cache",
        ) from error


def _download(url: str, part: Path) -> None:
    for attempt in range(ATTEMPTS):
        if _append(url, part):
            return
        if attempt == ATTEMPTS - 1:
            raise OSError(f"the connection broke {ATTEMPTS} times, {part.stat().st_size} bytes came")


def _append(url: str, part: Path) -> bool:
    """Fetch what is missing from a part, and return whether it is whole now."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing
            error.close()
            return True
        raise
    with response:
        # A server may ignore the range and send everything, with status 200.
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        expected = response.headers.get("Content-Length")
        came = 0
        with part.open("ab" if goes_on else "wb") as file:
            while block := response.read(2**16):
                file.write(block)
                came += len(block)
    return expected is None or came == int(expected)


def _md5(path: Path) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            md5.update(block)
    return md5.hexdigest()
