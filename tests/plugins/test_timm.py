"""The tests of metazoo-timm; those that need timm are skipped where it cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "plugins" / "metazoo-timm"


@pytest.mark.slow
def test_the_tests_of_metazoo_timm_pass() -> None:
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(PLUGIN / "tests"),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
