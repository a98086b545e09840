"""Checked downloads: resumable, with limits on their size and on redirects."""

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
class DownloadMessages:
    """How a failed download is reported.

    `error` is the exception to raise. `by_hand` is the hint on how to get the file without a
    download, `wrong_file` the hint on what to do if the server offers another file.
    """

    error: type[MetazooError]
    by_hand: str
    wrong_file: str


def fetch(
    url: str,
    destination: Path,
    algorithm: str,
    checksum: str,
    messages: DownloadMessages,
    size: int | None = None,
) -> None:
    """Download a file to `destination`, which appears only when it is complete and checked.

    `algorithm` is "md5" or "sha256". An interrupted download stays in `*.part`, and the next call
    resumes it. A file at the destination with another checksum is replaced. Downloads of more than
    `size` bytes are refused.

    Raises `messages.error` if the download fails or the checksum is wrong.
    """
    part = destination.with_name(destination.name + ".part")
    with _reported(url, destination.parent, messages):
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Two processes of a distributed run must not write into one part.
        with locked(destination.parent, wait=True):
            if destination.exists() and digest(destination, algorithm) == checksum:
                return
            _complete(url, part, algorithm, checksum, messages, size)
            os.replace(part, destination)


def wrong_checksum(
    file: str, algorithm: str, found: str, checksum: str, messages: DownloadMessages
) -> MetazooError:
    """Return the error for a downloaded file with the wrong checksum."""
    kind = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
    return messages.error(
        f"{file} has the {kind} {found}, but should have {checksum}: nothing was read from it",
        f"{messages.wrong_file}, or {messages.by_hand}",
    )


def read(url: str, limit: int, messages: DownloadMessages) -> bytes:
    """Return the contents of a URL. Raises `messages.error` on failure or above `limit` bytes."""
    with _reported(url, None, messages), _open(urllib.request.Request(url)) as response:
        expected = response.headers.get("Content-Length")
        data: bytes = response.read(limit + 1)
        if len(data) > limit:
            raise messages.error(f"{url} has more than {limit} bytes", messages.wrong_file)
        if expected is not None and len(data) < int(expected):
            raise OSError(f"the connection broke after {len(data)} of {expected} bytes")
        return data


def _complete(
    url: str,
    part: Path,
    algorithm: str,
    checksum: str,
    messages: DownloadMessages,
    size: int | None,
) -> None:
    """Download the rest of a part and check it; if a resumed part is wrong, start again once."""
    if size is not None and part.exists() and part.stat().st_size > size:
        part.unlink()
    while True:
        resumed = part.exists()
        _download(url, part, messages, size)
        found = digest(part, algorithm)
        if found == checksum:
            return
        part.unlink()
        if not resumed:
            raise wrong_checksum(url, algorithm, found, checksum, messages)


def _download(url: str, part: Path, messages: DownloadMessages, size: int | None) -> None:
    for _ in range(ATTEMPTS):
        if _append(url, part, messages, size):
            return
    received = part.stat().st_size
    raise OSError(f"the connection broke {ATTEMPTS} times, after {received} bytes")


def _append(url: str, part: Path, messages: DownloadMessages, size: int | None) -> bool:
    """Request the missing bytes of a part and return whether it is complete."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        # No bytes are missing.
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return True
        raise
    received = 0
    with response:
        expected = response.headers.get("Content-Length")
        # A server may ignore the range and send the whole file with status 200.
        resumes = response.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if resumes else "wb") as file:
            while block := response.read(2**16):
                file.write(block)
                received += len(block)
                if size is not None and file.tell() > size:
                    break
    if size is not None and part.stat().st_size > size:
        part.unlink()
        raise messages.error(
            f"{url} has more than the {size} bytes it should have", messages.wrong_file
        )
    return expected is None or received == int(expected)


@contextlib.contextmanager
def _reported(url: str, folder: Path | None, messages: DownloadMessages) -> Iterator[None]:
    """Turn exceptions of the network and the disk into `messages.error`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise messages.error(
            f"cannot download {url}: HTTP status {error.code} {error.reason}", messages.by_hand
        ) from error
    except urllib.error.URLError as error:
        raise messages.error(
            f"cannot download {url}: {error.reason}", f"{_advice(url, error)} {messages.by_hand}"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if folder is None:
            message, hint = f"cannot download {url}", f"try again; or {messages.by_hand}"
        else:
            message = f"cannot download {url} to {folder}"
            hint = (
                f"try again, which resumes the download; or {messages.by_hand}; "
                "METAZOO_CACHE moves the cache"
            )
        raise messages.error(f"{message}: {error}", hint) from error


def _advice(url: str, error: urllib.error.URLError) -> str:
    if urlsplit(url).scheme == "file":
        return "is the path right?"
    if isinstance(error.reason, ssl.SSLError):
        return "set SSL_CERT_FILE to a file of trusted certificates;"
    return "are you offline?"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but from https only to https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("https", "http")
        if urlsplit(newurl).scheme not in allowed:
            raise urllib.error.HTTPError(
                newurl, code, f"(its redirect to {newurl} is not followed)", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    if "@" in urlsplit(request.full_url).netloc:
        # urllib would take the password for a port, and name it in its error.
        raise ValueError("a user name or password in an address is not supported")
    # A new opener each time, because it reads proxies and certificates from the environment.
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
