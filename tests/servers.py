"""Servers on this machine, well- and ill-behaved; the fixture `serve` starts them and stops them when the test ends."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    def send(self, status: int, data: bytes = b"", **headers: Any) -> None:
        """Answer whole; underscores in the names of headers are dashes."""
        self.head(status, **{"Content_Length": len(data), **headers})
        if self.command != "HEAD":
            self.wfile.write(data)

    def head(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class FileHandler(Handler):
    """Serves `server.files`, and ranges of them; `server.answers` holds what to do otherwise, by path."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(self.path)
        self.server.ranges.append(wanted)
        if self.path not in self.server.files:
            return self.send_error(404)
        body, start = (
            self.server.files[self.path],
            int((wanted or "bytes=0-").removeprefix("bytes=").removesuffix("-")),
        )
        if start and start >= len(body):
            return self.send_error(416)
        self.server.answers.get(self.path, whole)(self, body, start)


Answer = Callable[[FileHandler, bytes, int], None]


def whole(handler: FileHandler, body: bytes, start: int) -> None:
    handler.send(206 if start else 200, body[start:])


def cut(*sizes: int) -> Answer:
    """Hang up after so many bytes, one size a request, and then no more."""
    left = list(sizes)

    def answer(handler: FileHandler, body: bytes, start: int) -> None:
        handler.head(206 if start else 200, Content_Length=len(body) - start)
        handler.wfile.write(body[start:][: left.pop(0) if left else None])

    return answer


def endless(handler: FileHandler, body: bytes, start: int) -> None:
    handler.head(200)
    try:
        for _ in range(2000):
            handler.wfile.write(bytes(2**16))
            handler.server.sent += 2**16
    except OSError:  # nobody listens any more
        pass


def slow(handler: FileHandler, body: bytes, start: int) -> None:
    """Alive, but a longer time in all than a silent server is given."""
    handler.head(200, Content_Length=len(body))
    for i in range(8):
        time.sleep(0.1)
        handler.wfile.write(body[len(body) * i // 8 : len(body) * (i + 1) // 8])


def silent(handler: FileHandler, body: bytes, start: int) -> None:
    handler.server.stopped.wait(20)


def redirected(url: str) -> Answer:
    return lambda handler, body, start: handler.send(302, Location=url)


class Server(ThreadingHTTPServer):
    """Has `files`, by path; `asked` and `ranges` say what was asked of it, request by request."""

    def __init__(
        self,
        files: Mapping[str, bytes] = {},
        handler: type[Handler] = FileHandler,
        context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ):
        super().__init__(("127.0.0.1", 0), handler)
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://{host}:{self.server_port}"
        self.files, self.answers, self.asked, self.ranges, self.sent = dict(files), {}, [], [], 0
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; once is enough, and more do no harm."""
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
