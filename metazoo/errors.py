"""The errors of metazoo."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from metazoo.quoting import without_credentials


class MetazooError(Exception):
    """Base of metazoo's errors.

    `message` says what is wrong, `hint` what to do next; neither shows the credentials in a URL.
    The command line prints both and exits with `exit_code`: 2 for a user's mistake, 1 for a
    failure.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None):
        self.message = without_credentials(str(message))
        self.hint = without_credentials(str(hint)) if hint else None
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UnknownNameError(MetazooError):
    """No plugin or model has this name."""


class OptionError(MetazooError):
    """An option is missing or invalid, an output exists already, or a Config is invalid."""


class PluginError(MetazooError):
    """A plugin failed to load, or conflicts with another plugin."""

    exit_code = 1


class DataError(MetazooError):
    """Data are missing, damaged, too few, or not what they claim to be."""

    exit_code = 1


class InputError(DataError, ValueError):
    """Examples or labels cannot be used; a ValueError too, as scikit-learn's tools expect."""


class CheckpointError(MetazooError):
    """A checkpoint, run folder or model card is missing, damaged or incompatible."""

    exit_code = 1


class DataWarning(UserWarning):
    """Some data are left out, or a model may answer them wrongly."""


class Interrupted(MetazooError):
    """The user stopped a command; its progress is saved."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has no message."""
    try:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    except BaseException:  # the `__str__` of a plugin's exception may raise anything
        return "its message cannot be shown"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports that the machine's or a GPU's memory is too small."""
    # torch.OutOfMemoryError covers GPUs only, and not all of their failures.
    text = f"{type(error).__name__}: {first_line(error)}".lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "outofmemory", "defaultcpuallocator")
    )


def disk_full(error: OSError) -> bool:
    """Return whether an OSError reports that a disk, a quota or a limit on file sizes is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def too_large(error: BaseException) -> bool:
    """Return whether an exception reports a lack of memory or an integer overflow."""
    return (
        out_of_memory(error)
        or isinstance(error, OverflowError)
        or "overflow" in first_line(error).lower()
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? " if close else ""
