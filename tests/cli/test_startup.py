"""Help, the version and mistyped commands and options are instant: they import neither torch nor numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from metazoo.cli.commands import BUILT_IN

COMMANDS = [[name] for name in BUILT_IN] + [["data", "pack"], ["data", "verify"]]
STATUSES = {
    "": 2,
    "--help": 0,
    "-h": 0,
    "--version": 0,
    "nonsense": 2,
    "--nonsense": 2,
    "data nonsense": 2,
    **{" ".join([*command, "--help"]): 0 for command in COMMANDS},
    **{" ".join([*command, "--nonsense"]): 2 for command in COMMANDS},
}
PROGRAM = """
import contextlib, io, json, sys
from metazoo.cli import run

found = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        status = run(line.split())
    heavy = sorted({"torch", "numpy", "scipy", "PIL", "rich"} & set(sys.modules))
    found[line] = status, err.getvalue(), heavy
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers() -> Any:
    """The status, stderr and heavy modules of every line, all run in one process."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(STATUSES))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", STATUSES)
def test_no_heavy_module_is_imported(line: str, answers: Any) -> None:
    status, err, heavy = answers[line]
    assert status == STATUSES[line], err
    assert heavy == []
    if "nonsense" in line:
        assert err.startswith("error: ")
        assert "nonsense" in err.splitlines()[0]
