"""Downloads that are whole and checked, or not there: parts that go on, limits on size and on where a redirect may lead."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from metazoo.errors import MetazooError
from metazoo.io.files import digest, locked

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3


@dataclass(frozen=True)
class Words:
    """How to say that a download failed: which error, what to do without it, and what to do about a wrong file."""

    error: type[MetazooError]
    by_hand: str
    mend: str


def fetch(
    url: str,
    destination: Path,
    algorithm: str,
    checksum: str,
    words: Words,
    size: int | None = None,
) -> None:
    """Download a file to `destination`, which appears only when it is whole and has that checksum ("md5" or "sha256").

    What has come so far is kept as `*.part`, from which the next call goes on; a part with a wrong checksum is removed.
    No more than `size` bytes are taken, where it is given. What lies at the destination with another checksum is replaced.

    Raises `words.error`, with what to do, where there is no connection, no such file, no room or a wrong checksum.
    """
    part = destination.with_name(destination.name + ".part")
    with _explained(url, destination.parent, words):
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            destination.parent, wait=True
        ):  # the processes of a distributed run must not write into one part
            if (
                destination.exists() and digest(destination, algorithm) == checksum
            ):  # another process was faster
                return
            if size is not None and part.exists() and part.stat().st_size > size:
                part.unlink()
            resumed = part.exists()
            _download(url, part, words, size)
            found = digest(part, algorithm)
            if found != checksum and resumed:  # the part may have been of another file
                part.unlink()
                _download(url, part, words, size)
                found = digest(part, algorithm)
            if found != checksum:
                part.unlink()
                raise wrong_checksum(url, algorithm, found, checksum, words)
            os.replace(part, destination)


def wrong_checksum(
    what: str, algorithm: str, found: str, checksum: str, words: Words
) -> MetazooError:
    """Return the error that says that a download is another file than the one that was wanted."""
    kind = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
    return words.error(
        f"{what} has the {kind} {found}, but should have {checksum}: nothing was read from it",
        f"{words.mend}, or {words.by_hand}",
    )


def read(url: str, most: int, words: Words) -> bytes:
    """Return what is at an address, of at most `most` bytes, or raise `words.error`."""
    with _explained(url, None, words), _open(urllib.request.Request(url)) as response:
        expected = response.headers.get("Content-Length")
        data: bytes = response.read(most + 1)
        if len(data) > most:
            raise words.error(
                f"{url} has more than {most} bytes, which is too much for what it should be",
                words.mend,
            )
        if expected is not None and len(data) < int(expected):
            raise OSError(f"the connection broke, {len(data)} of {expected} bytes came")
        return data


@contextlib.contextmanager
def _explained(url: str, folder: Path | None, words: Words) -> Iterator[None]:
    """Turn what the network and the disk raise into `words.error`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise words.error(
            f"cannot download {url}: HTTP status {error.code} {error.reason}", words.by_hand
        ) from error
    except urllib.error.URLError as error:
        if urlsplit(url).scheme == "file":
            ask = "is the path right?"
        elif isinstance(error.reason, ssl.SSLError):
            ask = "SSL_CERT_FILE names a file of certificates to trust;"
        else:
            ask = "are you offline?"
        raise words.error(
            f"cannot download {url}: {error.reason}", f"{ask} {words.by_hand}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        again = "try again" if folder is None else "try again: it goes on where it stopped"
        raise words.error(
            f"cannot download {url}{'' if folder is None else f' to {folder}'}: {error}",
            f"{again}; or {words.by_hand}"
            + ("" if folder is None else "; METAZOO_CACHE moves the cache"),
        ) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http or https alone, and from https to https alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in (
            ("https",) if req.type == "https" else ("https", "http")
        ):
            raise urllib.error.HTTPError(
                newurl, code, f"(its redirect to {newurl} is not followed)", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    # Made anew each time: it reads the proxies and the trusted certificates from the environment.
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _download(url: str, part: Path, words: Words, size: int | None) -> None:
    for attempt in range(ATTEMPTS):
        if _append(url, part, words, size):
            return
        if attempt == ATTEMPTS - 1:
            raise OSError(
                f"the connection broke {ATTEMPTS} times, {part.stat().st_size} bytes came"
            )


def _append(url: str, part: Path, words: Words, size: int | None) -> bool:
    """Fetch what is missing from a part, and return whether it is whole now."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        if (
            have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        ):  # nothing is missing
            error.close()
            return True
        raise
    with response:
        # A server may ignore the range and send everything, with status 200.
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        room = None if size is None else size - (have if goes_on else 0)
        expected = response.headers.get("Content-Length")
        came = 0
        with part.open("ab" if goes_on else "wb") as file:
            while block := response.read(2**16):
                came += len(block)
                if room is not None and came > room:
                    break
                file.write(block)
    if room is not None and came > room:
        part.unlink()
        raise words.error(f"{url} has more than the {size} bytes that it should have", words.mend)
    return expected is None or came == int(expected)
