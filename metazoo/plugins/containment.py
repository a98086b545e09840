"""Run the code of a plugin so that its faults stay with it.

`os._exit`, a crash in native code and an endless loop cannot be contained.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from metazoo.errors import MetazooError, PluginError, first_line


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Turn whatever the block raises into PluginError, and send what it prints to stderr.

    A KeyboardInterrupt passes if the user pressed Ctrl-C.
    """
    with _stdout_to_stderr(), _noticed_interrupts() as interrupts:
        try:
            yield
        except BaseException as error:  # also SystemExit, GeneratorExit, KeyboardInterrupt
            if interrupts:
                raise KeyboardInterrupt from error
            raise PluginError(*_cause(error)) from error


def _cause(error: BaseException) -> tuple[str, str | None]:
    """Return an exception as one line, and its hint."""
    try:
        if isinstance(error, MetazooError):
            return str(error.message), error.hint and str(error.hint)
        return f"{type(error).__name__}: {first_line(error)}", None
    except BaseException:  # of a plugin's own exception, each part may raise anything
        return "an exception that cannot be shown", None


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send to stderr what the block prints: stdout is for data.

    Subprocesses and native code write to the file descriptor, so that is replaced as well.
    """
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as after:
        with contextlib.suppress(OSError):  # a closed stdout needs no protection
            kept = os.dup(1)
            after.callback(os.close, kept)
            _flush()
            os.dup2(2, 1)
            after.callback(os.dup2, kept, 1)
            after.callback(_flush)
        yield


def _flush() -> None:
    """Write out what Python and the C library have buffered for stdout."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    with contextlib.suppress(AttributeError, OSError, TypeError):  # TypeError: on Windows
        ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def _noticed_interrupts() -> Iterator[list[int]]:
    """Yield a list that gets an entry when the user presses Ctrl-C."""
    noticed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield noticed  # only the main thread is interrupted, and only by a handler
        return

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, notice)
    try:
        yield noticed
    finally:
        signal.signal(signal.SIGINT, handler)
