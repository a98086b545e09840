"""The soak: a quick part of it, and the faults that its runner must see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import Forks
from packs import linux

pytestmark = linux
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SOAK = [sys.executable, "-m", "tests.soak", "--quick", "--jobs", "1"]

# Each way to misbehave, and the words of the fault that it must become; `None` is no fault.
SEEN = """
import os, sys, time
import click
from metazoo.errors import MetazooError
from tests.soak import runner, commands
from tests.soak.subject import Fault, Refused, Subject

def raises(error):
    raise error

def prints(text, error=""):
    click.echo(text)
    commands.check_text(text)

ways = {
    "answers": (lambda: 1, None),
    "one error": (lambda: raises(MetazooError("no such model")), None),
    "refuses": (lambda: raises(Refused("no such model")), None),
    "an error without words": (lambda: raises(MetazooError("")), "without a message"),
    "another exception": (lambda: raises(KeyError("x")), "KeyError"),
    "exits": (lambda: sys.exit(0), "SystemExit"),
    "a property that does not hold": (lambda: raises(Fault("odd")), "odd"),
    "ends the process": (lambda: os._exit(0), "ends the process"),
    "crashes": (lambda: os.abort(), "SIGABRT"),
    "never ends": (lambda: [None for _ in iter(int, 1)], ""),  # by processor time or by the clock
    "sleeps": (lambda: time.sleep(60), "hangs"),
    "takes memory": (lambda: bytearray(90 * 2**20).find(b"x"), "MiB"),
    "asks for all memory": (lambda: bytearray(2**40), "MemoryError"),
    "steers the terminal": (lambda: prints("\\x1b[2J"), "prints"),
    "prints NaN": (lambda: commands.read_json("[NaN]"), "NaN is not JSON"),
    "a Python warning": (lambda: prints("x.py:3: UserWarning: odd"), "warning of Python"),
}
runner.PATIENCE = 10.0
names = list(ways)
subject = Subject("ways", "", lambda case: ways[names[case.number]][0](), 1, 1, 0.3, 40)
outcomes = runner.run(subject, range(len(names)), 0, 2)
assert [outcome.case for outcome in outcomes] == list(range(len(names)))
for name, outcome in zip(names, outcomes):
    words = ways[name][1]
    assert (outcome.kind == "fault") == (words is not None), (name, outcome)
    assert words is None or words in outcome.words, (name, outcome)
"""


def test_the_runner_sees_every_way_to_misbehave(fresh_python: Forks) -> None:
    done = fresh_python.run(SEEN, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules",
    [
        ["readers"],
        ["pictures", "inputs", "meaning"],
        ["server", "kills", "disk"],
        ["plugins", "learners", "endurance"],
    ],
    ids="-".join,
)
def test_a_quick_soak_finds_no_fault(modules: list[str], tmp_path: Path) -> None:
    only = [word for name in modules for word in ("--only", name)]
    done = subprocess.run(
        [*SOAK, *only, "--json", str(tmp_path / "soak.json")],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "soak.json").read_text())
    assert record["rows"][-1]["inputs"] > 0
    assert not record["faults"]
