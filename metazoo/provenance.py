"""The machine and the commit that made a result."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

CODE = ("metazoo", "csrc", "plugins", "benchmarks", "pyproject.toml", "setup.py")


def machine() -> str:
    """Return a line about this machine: cores, GPU, versions of Python and torch."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores {platform.machine()}, {gpu}, {versions}"


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from, or None outside of a checkout.

    "-dirty" is appended if tracked files of the package were changed.
    """
    root = Path(__file__).parents[1]
    # A virtual environment may be inside another repository, whose configuration can name programs.
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--verify", "HEAD").strip()
        tracked = dict(_tracked(root, head))
        if Path(__file__) not in tracked:
            return None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    changed = any(not _is_unchanged(path, blob) for path, blob in tracked.items())
    return f"{head}-dirty" if changed else head


def _tracked(root: Path, commit: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of a commit that can change a result, and the names of their contents."""
    words = ("ls-tree", "-r", "-z", "--full-tree", commit, *CODE)
    for line in _git(root, *words).split("\0")[:-1]:
        about, _, name = line.partition("\t")
        mode, _, blob = about.split(" ")
        if mode.startswith("100"):  # no links, no submodules
            yield root / name, blob


def _is_unchanged(path: Path, blob: str) -> bool:
    # `git diff` and `git status` would run filters, hooks and monitors that the repository names.
    try:
        data = path.read_bytes()
    except OSError:
        return False
    # Git may have converted the ends of lines at the checkout.
    return any(
        hashlib.sha1(b"blob %d\0" % len(form) + form, usedforsecurity=False).hexdigest() == blob
        for form in (data, data.replace(b"\r\n", b"\n"))
    )


def _git(root: Path, *words: str) -> str:
    """Return what git prints of the repository in a folder, without running its programs."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    safe = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "protocol.allow=never")
    return subprocess.run(
        ["git", *safe, *words],
        cwd=root,
        env={**clean, "GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_NO_LAZY_FETCH": "1"},
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout.decode("utf-8", "surrogateescape")
