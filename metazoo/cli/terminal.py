"""The streams of a command: what it prints cannot steer a terminal, and every encoding can hold it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from metazoo.quoting import printable, without_credentials


class ReaderGone(BaseException):
    """Whoever read stdout or stderr has closed it, as in `metazoo list | head`."""


class Printable:
    """A text stream that shows control characters as escapes, except newlines and tabs.

    Names of files, classes and models come from anywhere. Characters that the stream's encoding
    lacks are escaped as well, and the credentials in URLs are left out. Rich writes its own control
    sequences to `rich_proxied_file`.
    """

    buffer = None  # click would write its own UTF-8 into it if the encoding is ASCII

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        shown = without_credentials(printable(text, keep="\n\t"))
        encodable = shown.encode(self._encoding, "backslashreplace").decode(self._encoding)
        with _noticed():
            self.rich_proxied_file.write(encodable)
        return len(text)

    def flush(self) -> None:
        with _noticed():
            self.rich_proxied_file.flush()

    def writelines(self, lines: Iterator[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def _noticed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error  # click would turn the first into SystemExit


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Let stdout and stderr be `Printable` inside the `with` block."""
    with contextlib.ExitStack() as streams:
        # They are None if the shell closed them (`>&-`).
        if sys.stdout is not None:
            streams.enter_context(contextlib.redirect_stdout(Printable(sys.stdout)))
        if sys.stderr is not None:
            streams.enter_context(contextlib.redirect_stderr(Printable(sys.stderr)))
        yield


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Let stdout and stderr be themselves inside the `with` block, for the command of a plugin."""
    with (
        contextlib.redirect_stdout(getattr(sys.stdout, "rich_proxied_file", sys.stdout)),
        contextlib.redirect_stderr(getattr(sys.stderr, "rich_proxied_file", sys.stderr)),
    ):
        yield
