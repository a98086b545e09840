"""The machine and the commit that made a result."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def machine() -> str:
    """Return a line about this machine: cores, GPU, versions of Python and torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores {platform.machine()}, {gpu}, {versions}"


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from, or None outside of a checkout.

    "-dirty" is appended if tracked files were changed.
    """
    here = Path(__file__).parent
    try:
        # This file must be tracked: a virtual environment may be inside another repository.
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
