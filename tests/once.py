"""Things that take long to make, made once for all tests and for all of pytest-xdist's workers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from metazoo.io.files import locked


def once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """Return the folder that `make` fills. The first worker makes it; the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    place = root / "once" / name
    place.mkdir(parents=True, exist_ok=True)
    folder, made = place / "it", place / "made"
    with locked(place, wait=True):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed at it
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
