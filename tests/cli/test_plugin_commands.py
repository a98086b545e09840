"""Commands that plugins declare as entry points: installed by pip, found by name, imported when used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributions import Call, Distribution, metazoo_calls

pytestmark = pytest.mark.slow

COMMAND = """
import click

print("hello from NAME")

@click.command()
@click.argument("name", default="you")
def command(name):
    '''Say hello.'''
    click.echo(f"hello {name}")
"""
# As any click program, a plugin may group its commands.
GROUP = (
    COMMAND
    + """
@click.group()
def group():
    '''Say something.'''

group.add_command(command, "hello")
"""
)


def only(name: str, source: str, target: str = "MODULE:command") -> Distribution:
    """Return a distribution whose one entry point is a command."""
    return Distribution(source, plugins={}, commands={name: target})


WORKING = {"greet": only("greet", COMMAND), "say": only("say", GROUP, "MODULE:group")}
CLASHING = {"twin-one": only("twin", COMMAND), "twin-two": only("twin", COMMAND)}
USURPER = {"usurper": only("train", COMMAND)}


@dataclass(frozen=True)
class Broken:
    """A distribution with a command named after the case, the problem with it and the hint."""

    source: str
    problem: str
    hint: str = ""
    target: str = "MODULE:command"


BROKEN = {
    "missing-package": Broken(
        "import far_and_away.sub",
        "ModuleNotFoundError: No module named 'far_and_away'",
        "`pip install far_and_away`, or ",
    ),
    "raises": Broken("1 / 0", "ZeroDivisionError: division by zero"),
    "exits": Broken("import sys\nsys.exit(0)", "SystemExit: 0"),
    "no-command": Broken("command = 3", "zoo_no_command:command is not a click command"),
    "plain-function": Broken(
        "def command(): pass", "zoo_plain_function:command is not a click command"
    ),
    "nowhere": Broken(
        "", "its entry point names zoo_nowhere:command, which does not exist: module 'zoo_nowhere'"
    ),
    "no-form": Broken(
        "",
        "its entry point 'not a module' is not of the form MODULE or MODULE:NAME",
        target="not a module",
    ),
}
HELP, PLUGINS, TABLE = ["--help"], ["plugins", "--json"], ["plugins"]
TWIN = (
    "command 'twin' is claimed by zoo-twin-one 1.2.3 and zoo-twin-two 1.2.3",
    "`pip uninstall zoo-twin-two`, or ask its author for another name",
)


@pytest.fixture(scope="module")
def said(
    install: Callable[[Mapping[str, Distribution]], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Call]:
    """What each command line says while all of these distributions are installed."""
    broken = {name: only(name, case.source, case.target) for name, case in BROKEN.items()}
    root = install({**WORKING, **CLASHING, **USURPER, **broken})
    lines = [
        HELP,
        ["grete"],
        ["greet", "me"],
        ["say", "hello"],
        ["say", "--help"],
        ["greet", "--nonsense"],
        ["twin"],
        ["train", "--help"],
        *([name] for name in BROKEN),
        PLUGINS,
        TABLE,
    ]
    [answers] = metazoo_calls(tmp_path_factory.mktemp("said"), ([root / "all"], lines))
    return {" ".join(line): call for line, call in zip(lines, answers)}


def plugin_of(case: str, said: dict[str, Call]) -> dict[str, Any]:
    """Return what `metazoo plugins --json` says of the one command of a distribution."""
    listed = json.loads(said["plugins --json"].out)["plugins"]
    [plugin] = [each for each in listed if each["distribution"] == f"zoo-{case}"]
    assert plugin["version"] == "1.2.3"
    return dict(plugin)


def test_help_lists_every_command_and_imports_none(said: dict[str, Call]) -> None:
    status, out, err = said["--help"]
    assert (status, err) == (0, "")  # importing one would print its greeting
    rows = [" ".join(line.split()) for line in out.splitlines()]
    for name, owner in (("greet", "greet"), ("say", "say"), *((name, name) for name in BROKEN)):
        assert f"{name} from zoo-{owner} 1.2.3" in rows
    assert "twin from zoo-twin-one 1.2.3 and zoo-twin-two 1.2.3" in rows
    assert "usurper" not in out


def test_a_command_runs_and_its_import_does_not_write_to_stdout(said: dict[str, Call]) -> None:
    assert said["greet me"] == Call(0, "hello me\n", "hello from greet\n")
    assert said["say hello"] == Call(0, "hello you\n", "hello from say\n")
    assert said["say --help"].out.startswith("Usage: metazoo say [OPTIONS] COMMAND")
    assert said["greet --nonsense"].status == 2
    assert "`metazoo greet --help` shows what it takes" in said["greet --nonsense"].err


def test_a_mistyped_command_of_a_plugin_is_recognised(said: dict[str, Call]) -> None:
    status, out, err = said["grete"]
    assert (status, out) == (2, "")
    assert err == (
        "error: no command named 'grete'\n"
        "hint: did you mean 'greet'? `metazoo --help` shows every command\n"
    )


def test_a_command_that_two_distributions_claim_cannot_be_used(said: dict[str, Call]) -> None:
    assert said["twin"] == Call(1, "", f"error: {TWIN[0]}\nhint: {TWIN[1]}\n")
    owners = ["zoo-twin-one 1.2.3", "zoo-twin-two 1.2.3"]
    assert json.loads(said["plugins --json"].out)["clashes"] == [
        {"kind": "command", "name": "twin", "claimed by": owners}
    ]
    for case in CLASHING:
        found = plugin_of(case, said)
        assert (found["problem"], found["hint"], found["provides"]) == (*TWIN, {})


def test_metazoos_own_commands_cannot_be_replaced(said: dict[str, Call]) -> None:
    assert said["train --help"].out.startswith("Usage: metazoo train")
    found = plugin_of("usurper", said)
    assert found["problem"] == "metazoo has its own command 'train'"
    assert found["hint"] == "its author must rename it"


def test_the_list_of_plugins_shows_a_working_command(said: dict[str, Call]) -> None:
    for name in WORKING:
        found = plugin_of(name, said)
        assert (found["provides"], found["problem"]) == ({"commands": [name]}, None)
        assert any(
            line.split() == [name, f"zoo-{name}", "1.2.3", "works", "commands:", name]
            for line in said["plugins"].out.splitlines()
        )


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_command_says_why(case: str, said: dict[str, Call]) -> None:
    status, out, err = said[case]
    error, problem, hint = err.splitlines()
    assert (status, out) == (1, "")
    assert (
        error == f"error: command '{case}' is unavailable: plugin zoo-{case} 1.2.3 failed to load"
    )
    assert problem.startswith(f"  {BROKEN[case].problem}")
    assert hint == f"hint: {BROKEN[case].hint}`pip uninstall zoo-{case}`"
    found = plugin_of(case, said)
    assert found["problem"] == problem.strip()
    assert found["hint"] == hint.removeprefix("hint: ")
    assert found["provides"] == {}
    rows = [line for line in said["plugins"].out.splitlines() if f"zoo-{case} 1.2.3" in line]
    assert [("FAILED" in row, BROKEN[case].problem in row) for row in rows] == [(True, True)]
