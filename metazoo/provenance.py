"""Where a result was made: the machine and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def machine() -> str:
    """Return a few words on this machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores {platform.machine()}, {gpu}, {versions}"


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with "-dirty" where it was changed; None if it is none."""
    here = Path(__file__).parent
    try:
        # The file itself must be tracked: an environment may lie inside of somebody else's repository.
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        return _git(here, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "--no-optional-locks", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.strip()
