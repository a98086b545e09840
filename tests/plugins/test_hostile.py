"""Hostile plugins: each is named with its cause, nothing else notices, and stdout holds data only."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributions import module_of
from forks import Forks
from hostile import HOSTILE, PRINTED, install

from metazoo.cli import run
from metazoo.plugins.registry import registry

BUILT_IN = {"baseline", "baseline++", "maml", "matching", "protonet"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.fixture
def answers(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
    fresh_registry: None,
) -> dict[str, tuple[str, str]]:
    """What stdout and stderr get from commands while one hostile plugin is installed."""
    monkeypatch.syspath_prepend(install(tmp_path, request.param))
    found = {}
    for line in ("list --json", "plugins --json", "--help", "plugins", "list"):
        assert run(line.split()) == 0, capfd.readouterr().err
        found[line] = capfd.readouterr()
    return found


@pytest.mark.parametrize(
    ("case", "answers"), [(case, case) for case in HOSTILE], indirect=["answers"]
)
def test_a_hostile_plugin_is_named_and_nothing_else_notices(
    case: str, answers: dict[str, tuple[str, str]]
) -> None:
    hostile = HOSTILE[case]
    works = case in {item["name"] for item in json.loads(answers["list --json"][0])["algorithms"]}
    assert {
        item["name"] for item in json.loads(answers["list --json"][0])["algorithms"]
    } >= BUILT_IN
    plugins = {
        plugin["target"]: plugin["problem"]
        for plugin in json.loads(answers["plugins --json"][0])["plugins"]
        if plugin["target"].startswith(module_of(case))
    }
    problem = (hostile.problem or hostile.command_problem).replace("NAME", case)
    if problem:
        assert not works
        [found] = plugins.values()
        assert problem in found
        assert len(found) <= 500
    else:
        assert not any(plugins.values())
    if hostile.problem:  # said once, with the distribution
        warnings = [
            line for line in answers["list"][1].splitlines() if line.startswith("warning: ")
        ]
        [warning] = warnings
        assert " of zoo-" in warning or " of unknown" in warning or "metadata" in case
    for out, err in answers.values():
        assert PRINTED not in out
        for text in (out, err):
            assert not {"\x1b", "\u202e", "\x07"} & set(text)
            assert max(map(len, text.splitlines()), default=0) < 2000


def test_what_a_plugin_changes_at_import_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, fresh_registry: None
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "import-ignores-interrupts"))
    monkeypatch.syspath_prepend(install(tmp_path, "import-replaces-stdout"))
    before = sys.stdout, signal.getsignal(signal.SIGINT)
    assert {"import-ignores-interrupts", "import-replaces-stdout"} <= {
        entry.name for entry in registry().algorithms
    }
    assert (sys.stdout, signal.getsignal(signal.SIGINT)) == before


def test_ctrl_c_while_a_plugin_is_imported_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, fresh_registry: None
) -> None:
    case = "import-keyboard-interrupt"
    place = install(tmp_path, case)
    module = place / f"{module_of(case)}.py"
    module.write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    monkeypatch.syspath_prepend(place)
    assert run(["list"]) == 130
    assert capfd.readouterr() == ("", "\nerror: interrupted\n")


WORK = """
import sys
from metazoo.cli import run
for line in sys.argv[1:]:
    print(run(line.split()), file=sys.stderr)
    print("next", flush=True)
"""


def test_all_of_them_at_once(fresh_python: Forks, tmp_path: Path, tree: Path) -> None:
    # Other packages, such as fsspec, do not survive an entry_points.txt that is not UTF-8.
    path = [str(install(tmp_path, case)) for case in HOSTILE if case != "points-binary"]
    model = tmp_path / "run"
    lines = (
        f"train protonet --steps 1 --test-episodes 2 --device cpu --json --out {model}",
        f"eval {model} --episodes 2 --device cpu --json",
        f"predict --model {model} --support {tree} --query {tree}/c00/0.png --device cpu --json",
    )
    done = fresh_python.run(
        WORK, *lines, env={"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    )
    *results, end = done.stdout.split("next\n")
    assert end == ""
    assert all(json.loads(result) for result in results)
    said = done.stderr.splitlines()
    assert [line for line in said if line in "0123"] == ["0"] * 3, done.stderr
    assert len([line for line in said if line.startswith("warning: plugin 'hook-mapping'")]) == 3
