"""The plugin whose code an exception came from, and how a bug of a plugin is reported."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from distributions import BUGGY, BUGS, Call, Distribution, metazoo_calls

import metazoo
from metazoo.plugins import error_source
from metazoo.plugins.registry import Plugin


def raised_in(*modules: str) -> Exception:
    """Return an exception of the last of these modules, called by the one before, and so on."""
    call = lambda: 1 / 0  # noqa: E731
    for module in reversed(modules):
        space = {"__name__": module, "call": call}
        exec(compile("def function():\n    return call()", f"{module}.py", "exec"), space)
        call = space["function"]  # type: ignore[assignment]
    try:
        call()
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def plugin(
    target: str, distribution: str, problem: str | None = None, **provides: list[str]
) -> Plugin:
    return Plugin(distribution, target, distribution, "1.0", problem, provides=provides)


NAMESPACE = [plugin("acme.a.plugin", "acme-a"), plugin("acme.b.plugin", "acme-b")]
TWO = [plugin("near.one", "near"), plugin("near.two", "near")]
CASES: dict[str, tuple[list[Plugin], tuple[str, ...], str | None]] = {
    "its own module": ([plugin("near", "near")], ("near",), "near"),
    "beside it": ([plugin("near.plugin:one", "near")], ("near.helpers.deep",), "near"),
    "a namesake": ([plugin("near", "near")], ("nearest",), None),
    "somebody else": ([plugin("near", "near")], ("torch.nn",), None),
    "the innermost": (
        [plugin("near", "near"), plugin("far", "far")],
        ("near", "far", "torch.nn"),
        "far",
    ),
    "a namespace": (NAMESPACE, ("acme.b.helpers",), "acme-b"),
    "a namespace, the other way round": (NAMESPACE[::-1], ("acme.a",), "acme-a"),
    "what several could own": (NAMESPACE, ("acme.shared",), None),
    "a package and one in its name": (
        [plugin("acme.b", "acme-b"), plugin("acme", "acme")],
        ("acme.helpers",),
        "acme",
    ),
    "two of one distribution": (TWO, ("near.helpers",), "near"),
    "what was never loaded": (
        [plugin("near.plugin", "old-near", "ImportError: x"), *TWO],
        ("near.helpers",),
        "near",
    ),
    "what is not loaded alone": ([plugin("near", "near", "ImportError: x")], ("near",), None),
    "what works in part": (
        [plugin("near", "near", "a name is unusable", algorithms=["x"])],
        ("near",),
        "near",
    ),
    "metazoo itself": (
        [plugin("metazoo.no.such:thing", "odd"), plugin("metazoo", "odder")],
        ("metazoo.train",),
        None,
    ),
    "a built-in": (
        [plugin("metazoo.algorithms.maml", "metazoo")],
        ("metazoo.algorithms.maml",),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_plugin_whose_code_it_was(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, modules, owner = CASES[case]
    monkeypatch.setattr(error_source, "registry", lambda: SimpleNamespace(plugins=plugins))
    fault = error_source.at_fault(raised_in(*modules))
    assert (fault.plugin.distribution if fault else None) == owner
    if fault is not None:
        # The last frame of the plugin's own, whatever it called.
        own = [
            module
            for module in modules
            if module.partition(".")[0] == fault.plugin.target.partition(".")[0]
        ][-1]
        assert fault.place == f'File "{own}.py", line 2, in function'


def test_only_a_command_that_was_imported_can_be_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("greet", "near:greet", "metazoo.commands")
    monkeypatch.setattr(error_source, "registry", lambda: SimpleNamespace(plugins=[]))
    monkeypatch.setattr(error_source, "entry_points", lambda group: [point])
    assert error_source.at_fault(raised_in("near")) is None
    monkeypatch.setitem(sys.modules, "near", ModuleType("near"))
    fault = error_source.at_fault(raised_in("near"))
    assert fault is not None
    assert (fault.plugin.name, fault.plugin.target) == ("greet", "near:greet")


# What a network cannot be made of: by the user's choice or by the plugin's fault, nobody knows.
UNMADE = {
    "too small": (
        ["protonet", "--backbone", "dry", "--backbone-kernel", "99"],
        "Calculated padded input size",
        "dry-run",
    ),
    "constructor": (
        ["bug-in-constructor"],
        "size mismatch|inconsistent tensor size",
        "bug-in-constructor",
    ),
    "too large": (
        ["protonet", "--backbone", "dry", "--backbone-width", str(2**50)],
        "DefaultCPUAllocator",
        "",
    ),
    "beyond numbers": (
        ["protonet", "--backbone", "dry", "--backbone-width", str(2**62)],
        "overflowed",
        "",
    ),
    "beyond C": (["protonet", "--backbone", "dry", "--backbone-width", str(2**99)], "Overflow", ""),
}


# Its only entry point is a command.
COMMAND = Distribution(
    """
import click

@click.command()
def command():
    {}["key"]  # bug-of-command-only
""",
    plugins={},
    commands={"bug-of-command-only": "MODULE:command"},
)


@pytest.fixture(scope="module")
def installed(install: Callable[[Mapping[str, Distribution]], Path]) -> Path:
    """The plugins with bugs, installed."""
    return install({"buggy": BUGS, "command": COMMAND})


@pytest.fixture(scope="module")
def met(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Call]:
    """What `metazoo train` says of each algorithm with a bug, and what each command with a bug says."""
    folder = tmp_path_factory.mktemp("met")
    quick = ["--data-alphabets", "6", "--backbone-width", "4", "--steps", "1", "--device", "cpu"]
    names = [*BUGGY, "no-bug"]
    calls = [["train", name, *quick, "--out", str(folder / name)] for name in names]
    calls += [
        ["train", *quick, *words, "--out", str(folder / "unmade")]
        for words, _, _ in UNMADE.values()
    ]
    calls += [["train", "protonet", *quick, "--backbone", "miscounted"]]
    commands = ["bug-in-command", "bug-of-command-only"]
    calls += [[command] for command in commands]
    [said] = metazoo_calls(folder, ([installed / "buggy", installed / "command"], calls))
    return dict(zip([*names, *UNMADE, "miscounted", *commands], said))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "cause", "function"),
    [(bug, *BUGGY[bug]) for bug in BUGGY if BUGGY[bug][1]]
    + [
        ("bug-in-command", "ZeroDivisionError: ", "command"),
        ("bug-of-command-only", "KeyError: ", "command"),
    ],
)
def test_a_bug_of_a_plugin_is_traced_and_its_own(
    bug: str, cause: str, function: str, met: dict[str, Call], installed: Path
) -> None:
    status, out, err = met[bug]
    *traced, error, place, hint = err.splitlines()
    assert (status, out, traced[0]) == (1, "", "Traceback (most recent call last):")
    name, case = (bug, "command") if bug == "bug-of-command-only" else ("buggy", "buggy")
    assert error.startswith(f"error: plugin '{name}' of zoo-{case} 1.2.3 has a bug: {cause}")
    # The last line of the plugin's own, whatever of metazoo's or torch's it called.
    assert place == f"  {place_of(installed, bug, case)}, in {function}"
    assert hint == (
        "hint: send the traceback above to its author; "
        f"`pip uninstall zoo-{case}` removes the plugin"
    )


@pytest.mark.slow
def test_a_backbone_whose_features_are_not_as_many_as_it_says(met: dict[str, Call]) -> None:
    status, out, err = met["miscounted"]
    assert (status, out) == (1, "")
    assert (
        "backbone 'miscounted' sets out_features = 2705, but its features have shape (2704,)" in err
    )
    assert "Traceback" not in err


def place_of(installed: Path, mark: str, case: str = "buggy") -> str:
    """Return the line of a plugin's module that ends with a mark, as tracebacks name it."""
    module = installed / case / f"zoo_{case}.py"
    line = next(
        i
        for i, text in enumerate(module.read_text().splitlines(), start=1)
        if text.endswith(f"# {mark}")
    )
    return f'File "{module}", line {line}'


@pytest.mark.slow
@pytest.mark.parametrize("case", UNMADE)
def test_a_network_that_cannot_be_made_is_the_users_to_mend_or_the_plugins(
    case: str, met: dict[str, Call], installed: Path
) -> None:
    _, cause, mark = UNMADE[case]
    status, out, err = met[case]
    error, *place, hint = err.splitlines()
    assert (status, out) == (2, "")
    assert re.match(f"error: the network cannot be built: .*({cause})", error)
    if mark:
        [place_text] = place
        assert place_text.startswith(
            f"  plugin 'buggy' of zoo-buggy 1.2.3: {place_of(installed, mark)}, in "
        )
        assert (
            hint
            == "hint: choose other sizes or options; if none works, send the two lines above to the plugin's author"
        )
    else:
        assert (place, hint) == ([], "hint: make it smaller")


@pytest.mark.slow
def test_a_bug_that_shows_outside_of_the_plugin_is_traced_too(met: dict[str, Call]) -> None:
    status, out, err = met["bug-in-return"]
    *traced, error, hint = err.splitlines()
    assert (status, out, traced[0]) == (1, "", "Traceback (most recent call last):")
    assert error.startswith(
        f"error: unexpected error in metazoo {metazoo.__version__}: AttributeError: "
    )
    assert "check_algorithm" in hint


@pytest.mark.slow
def test_what_is_no_bug_has_no_traceback(met: dict[str, Call]) -> None:
    assert met["no-bug"] == Call(2, "", "error: these tasks are too few\nhint: take more\n")
    status, out, err = met["bug-of-size"]
    assert (status, out) == (1, "")
    assert err.startswith("error: out of memory: RuntimeError: ")
    assert err.splitlines()[1].startswith("hint: use fewer tasks per step (--meta-batch)")
