"""Every error that metazoo raises on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MetazooError(Exception):
    """What went wrong, and what to do next.

    `message` says what and which one; `hint` says what to do about it. The command line prints both and exits with
    `exit_code`: 2 where the user can mend the call, 1 where something failed.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UnknownNameError(MetazooError):
    """Nothing is registered under that name."""


class OptionError(MetazooError):
    """An option is missing or has a value that it cannot take, a place to write to is taken, or a Config cannot be offered."""


class PluginError(MetazooError):
    """A plugin failed to load, or claims what another one claims."""

    exit_code = 1


class DataError(MetazooError):
    """Data are missing, damaged, too few, or not what they claim to be."""

    exit_code = 1


class CheckpointError(MetazooError):
    """A checkpoint, run folder or model card is missing, damaged or does not fit."""

    exit_code = 1


class Interrupted(MetazooError):
    """The user stopped a command; everything is saved."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory, the machine's or a GPU's, is too small."""
    # PyTorch has a type of its own for GPUs alone, and not for all that goes wrong there.
    said = f"{type(error).__name__}: {first_line(error)}".lower()
    return isinstance(error, MemoryError) or any(
        words in said for words in ("out of memory", "outofmemory", "defaultcpuallocator")
    )


def too_large(error: BaseException) -> bool:
    """Return whether an exception says that something has no room in memory, or in a number."""
    return (
        out_of_memory(error)
        or isinstance(error, OverflowError)
        or "overflow" in first_line(error).lower()
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for the closest of the known names, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? " if close else ""
