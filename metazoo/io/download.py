"""Checked downloads: resumable, with limits on their size and on redirects."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from metazoo.errors import MetazooError
from metazoo.io.files import digest, locked
from metazoo.quoting import shown_address

TIMEOUT = 30.0  # seconds without a byte
SLOWEST = 100  # bytes a second, on average after TIMEOUT
ATTEMPTS = 3
_NOT_QUOTED = "!$%&'()*+,/:;=?@[]~"  # in an address


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
    with _reported(url, None, messages), _open(url) as response:
        expected, data = _length(response), b""
        for block in _blocks(response):
            data += block
            if len(data) > limit:
                raise messages.error(
                    f"{shown_address(url)} has more than {limit} bytes", messages.wrong_file
                )
        if expected is not None and len(data) < expected:
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
            raise wrong_checksum(shown_address(url), algorithm, found, checksum, messages)


def _download(url: str, part: Path, messages: DownloadMessages, size: int | None) -> None:
    for _ in range(ATTEMPTS):
        if _append(url, part, messages, size):
            return
    received = part.stat().st_size
    raise OSError(f"the connection broke {ATTEMPTS} times, after {received} bytes")


def _append(url: str, part: Path, messages: DownloadMessages, size: int | None) -> bool:
    """Request the missing bytes of a part and return whether it is complete."""
    start = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, start)
    except urllib.error.HTTPError as error:
        # No bytes are missing.
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            error.close()
            return True
        raise
    received = 0
    with response:
        expected = _length(response)
        # A server may ignore the range and send the whole file with status 200.
        resumes = response.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if resumes else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                received += len(block)
                if size is not None and file.tell() > size:
                    break
    if size is not None and part.stat().st_size > size:
        part.unlink()
        raise messages.error(
            f"{shown_address(url)} has more than the {size} bytes it should have",
            messages.wrong_file,
        )
    return expected is None or received == expected


def _length(response: Any) -> int | None:
    """Return the number of bytes that a server says it will send."""
    said = response.headers.get("Content-Length") or ""
    return int(said) if said.isdecimal() else None


def _blocks(response: Any) -> Iterator[bytes]:
    """Yield the bytes of a response as they arrive. Raises TimeoutError if they hardly do."""
    begin, received = time.monotonic(), 0
    while block := response.read1(2**16):
        yield block
        received += len(block)
        elapsed = time.monotonic() - begin
        if elapsed > TIMEOUT and received < SLOWEST * elapsed:
            raise TimeoutError(f"the server sends fewer than {SLOWEST} bytes a second")


@contextlib.contextmanager
def _reported(url: str, folder: Path | None, messages: DownloadMessages) -> Iterator[None]:
    """Turn exceptions of the network and the disk into `messages.error`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise messages.error(
            f"cannot download {shown_address(url)}: HTTP status {error.code} "
            + " ".join(str(error.reason).split()),
            messages.by_hand,
        ) from error
    except urllib.error.URLError as error:
        raise messages.error(
            f"cannot download {shown_address(url)}: {error.reason}",
            f"{_advice(url, error)} {messages.by_hand}",
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if folder is None:
            message, hint = (
                f"cannot download {shown_address(url)}",
                f"try again; or {messages.by_hand}",
            )
        else:
            message = f"cannot download {shown_address(url)} to {folder}"
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
    """Follows redirects to http and https, but from https only to https, and with no password."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("https", "http")
        target = urlsplit(newurl)
        if target.scheme not in allowed or "@" in target.netloc:
            raise urllib.error.HTTPError(
                newurl,
                code,
                f"(its redirect to {shown_address(newurl)} is not followed)",
                headers,
                fp,
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int = 0) -> Any:
    # A new opener each time, because it reads proxies and certificates from the environment.
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(_request(url, start), timeout=TIMEOUT)


def _request(url: str, start: int) -> urllib.request.Request:
    """Return a request for the bytes from `start` on.

    The address may have a user and a password, and letters outside of ASCII.
    """
    parts = urlsplit(url)
    if not parts.scheme:
        raise ValueError("the address does not begin with https:// or the like")
    if parts.scheme == "file":
        path = urllib.request.url2pathname(parts.path)
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(f"{path} is not a file")  # a pipe would wait for a writer
    login, _, host = parts.netloc.rpartition("@")
    path, query = (quote(part, safe=_NOT_QUOTED) for part in (parts.path, parts.query))
    ascii_url = urlunsplit((parts.scheme, host.encode("idna").decode(), path, query, ""))
    request = urllib.request.Request(ascii_url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if login:
        token = base64.b64encode(unquote(login).encode()).decode()
        # A redirect to another server does not get it.
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request
