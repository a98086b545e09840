"""A server that lies: the model arrives as its card says, or there is one error and nothing is kept."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from servers import Answer, FileHandler, Server

from metazoo.io import download

from . import mutations
from .material import NAME, Material
from .readers import predict
from .subject import Case, Subject, must

SILENCE = 0.3  # seconds that a silent server is given


def subjects(material: Material) -> list[Subject]:
    files = {
        f"/{NAME}.{kind}": (material.model / f"{NAME}.{kind}").read_bytes()
        for kind in ("json", "safetensors")
    }
    pin = json.loads(files[f"/{NAME}.json"])["sha256"]
    sound: list[Any] = []

    def warm() -> None:
        download.TIMEOUT = SILENCE
        with serving(files) as server:
            sound[:] = [predict(material, f"{server.url}/{NAME}.json#sha256={pin}")]

    def run(case: Case) -> Any:
        path = case.rng.choice(list(files))
        name = list(LIES)[case.number % len(LIES)]
        case.note(f"{name}, {path.rpartition('.')[2]}")
        with serving(files) as server:
            server.answers[path] = LIES[name](case.rng, server)
            try:
                found = predict(material, f"{server.url}/{NAME}.json#sha256={pin}")
                must(found == sound[0], "another answer, unsaid")
                return found
            finally:
                server.stopped.set()
                kept = list(Path(os.environ["METAZOO_CACHE"]).rglob("*"))
                check_kept([path for path in kept if path.is_file()], pin, files)
                must(server.sent <= 8 * 2**20, f"it takes {server.sent} bytes of an endless file")

    return [Subject("server", "a server that lies", run, 400, len(LIES), together=60, warm=warm)]


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    server = _Quiet(files)
    try:
        yield server
    finally:
        server.stop()


def check_kept(kept: list[Path], pin: str, files: dict[str, bytes]) -> None:
    """Raise Fault if anything but the right weights has a final name, or a part is too long."""
    for path in kept:
        size = path.stat().st_size
        if path.suffix == ".part":
            must(size <= len(files[f"/{NAME}.safetensors"]), f"a part of {size} bytes is kept")
        elif path.suffix == ".safetensors":
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            must(found == pin, f"other weights are kept as {path.name}")


class _Quiet(Server):
    """Says nothing of clients that hang up: they are right to."""

    def handle_error(self, *_: Any) -> None:
        pass


# What the server may do instead of handing over a file.


def _damaged(rng: random.Random, server: Server) -> Answer:
    return lambda handler, body, start: handler.send(
        206 if start else 200, mutations.some_bytes(rng, body)[start:]
    )


def _length(rng: random.Random, server: Server) -> Answer:
    lie = rng.choice((0, 1, 10**6, 10**12, 2**64, -1, "x", "", "1, 2", "1e3", "٣"))

    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        handler.head(206 if start else 200, Content_Length=str(lie).encode().decode("latin-1"))
        handler.wfile.write(body[start:])

    return answer


def _cut(rng: random.Random, server: Server) -> Answer:
    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        handler.head(206 if start else 200, Content_Length=len(body) - start)
        handler.wfile.write(body[start : start + rng.randrange(len(body))])

    return answer


def _part(rng: random.Random, server: Server) -> Answer:
    """Another part than was asked for."""
    status, at = rng.choice((200, 206)), rng.choice((0, 1, 100))
    return lambda handler, body, start: handler.send(
        status, body[at:], Content_Range=f"bytes {at}-{rng.choice((5, len(body) - 1, -1))}/9"
    )


def _silent(rng: random.Random, server: Server) -> Answer:
    first = rng.choice((0, 1, 1000))

    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        if first:
            handler.head(200, Content_Length=len(body))
            handler.wfile.write(body[:first])
        server.stopped.wait(20)

    return answer


def _slow(rng: random.Random, server: Server) -> Answer:
    """A few bytes at a time, but always before it is taken for silent; in the end it hangs up."""

    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        handler.head(206 if start else 200, Content_Length=len(body) - start)
        for at in range(start, start + 5):
            time.sleep(SILENCE / 3)
            handler.wfile.write(body[at : at + 1])

    return answer


def _redirect(rng: random.Random, server: Server) -> Answer:
    to = rng.choice(
        (
            *(
                "file:///etc/passwd",
                "FILE:///etc/passwd",
                "ftp://127.0.0.1:9/x",
                "data:,x",
                "//",
                "",
            ),
            *(
                "http://",
                "http://[",
                "http://127.0.0.1:9/",
                "javascript:x",
                "x" * 60_000,
                "/é",
                "\x1b[2J",
            ),
            *(
                "gopher://127.0.0.1:9/",
                "http://user:hunter2@127.0.0.1:9/",
                "http://127.0.0.1:99999/",
            ),
        )
    )
    status = rng.choice((301, 302, 303, 307, 308))
    location = to.encode().decode("latin-1")
    return lambda handler, body, start: handler.send(status, Location=location)


def _circle(rng: random.Random, server: Server) -> Answer:
    longer = rng.random() < 0.5

    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        path = f"{handler.path}?{len(server.asked)}" if longer else handler.path
        server.files.setdefault(path, body)
        server.answers[path] = answer
        handler.send(302, Location=path)

    return answer


def _status(rng: random.Random, server: Server) -> Answer:
    status = rng.choice((204, 205, 206, 304, 400, 401, 403, 404, 407, 416, 429, 500, 503, 600, 999))
    return lambda handler, body, start: handler.send(status, body)


def _garbage(rng: random.Random, server: Server) -> Answer:
    lines = (
        *(
            b"",
            b"\r\n\r\n",
            b"HTTP/9.9 xx\r\n\r\n",
            b"HTTP/1.1 200\r\n" + b"A: b\r\n" * 5000,
            b"\xff" * 99,
        ),
        *(
            b"HTTP/1.1 404 \x1b[2Jcleared\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**6,
            b"HTTP/1.1 -1 x\r\n\r\n",
        ),
        *(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\nx",),
        *(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx",),
        *(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nx", b"HTTP/1.1 301 Moved\r\n\r\n", b"SSH-2.0-x\r\n"),
    )
    told = rng.choice(lines)
    return lambda handler, body, start: handler.wfile.write(told)


def _bomb(rng: random.Random, server: Server) -> Answer:
    """A gzip of 64 MiB of zeros, which is named as the encoding, or is the file."""
    bomb = gzip.compress(bytes(2**26), 6)
    named = {"Content_Encoding": "gzip"} if rng.random() < 0.7 else {}
    return lambda handler, body, start: handler.send(200, bomb, **named)


def _gzipped(rng: random.Random, server: Server) -> Answer:
    return lambda handler, body, start: handler.send(
        200, gzip.compress(body), Content_Encoding="gzip"
    )


def _endless(rng: random.Random, server: Server) -> Answer:
    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        handler.head(200)
        try:
            for _ in range(1000):
                handler.wfile.write(bytes(2**16))
                server.sent += 2**16
        except OSError:  # nobody listens any more
            pass

    return answer


def _hangs_up(rng: random.Random, server: Server) -> Answer:
    return lambda handler, body, start: handler.connection.close()


def _json(rng: random.Random, server: Server) -> Answer:
    return lambda handler, body, start: handler.send(
        200, mutations.json_bytes(rng, server.files[f"/{NAME}.json"])
    )


LIES: dict[str, Callable[[random.Random, Server], Answer]] = {
    "damaged": _damaged,
    "a wrong length": _length,
    "cut off": _cut,
    "another part": _part,
    "silent": _silent,
    "slow": _slow,
    "redirects": _redirect,
    "redirects for ever": _circle,
    "a status": _status,
    "garbage": _garbage,
    "a bomb": _bomb,
    "gzipped": _gzipped,
    "endless": _endless,
    "hangs up": _hangs_up,
    "another card": _json,
}
