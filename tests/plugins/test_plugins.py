"""Broken plugins, installed by pip: metazoo names each with its cause, and everything else works."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributions import (
    ALGORITHM,
    BUGGY,
    BUGS,
    Call,
    Distribution,
    SourceTree,
    metazoo_calls,
    module_of,
)

import metazoo

pytestmark = pytest.mark.slow

BUILT_IN = {
    *("baseline", "baseline++", "logistic", "maml", "matching"),
    *("protonet", "ridge", "simpleshot"),
}
REGISTERED = """
@metazoo.hookimpl
def register_algorithms():
    return {"NAME": Nearest}
"""


def with_config(config: str) -> str:
    """Return a plugin whose algorithm has this Config."""
    indented = "".join(f"    {line}\n" for line in config.strip().splitlines())
    return f"{ALGORITHM}\n{indented}{REGISTERED}"


def returning(value: str) -> str:
    """Return a plugin whose hook returns this expression."""
    return f"{ALGORITHM}\n@metazoo.hookimpl\ndef register_algorithms():\n    return {value}\n"


@dataclass(frozen=True)
class Broken(Distribution):
    """A plugin, the problem that metazoo must name, and the hint."""

    problem: str
    hint: str = ""


FROZEN = "@dataclass(frozen=True)\nclass Config(metazoo.Config):\n"
CASES = {
    "import-error": Broken(
        "raise ImportError('libfar.so is too old')", "ImportError: libfar.so is too old"
    ),
    "name-error": Broken(
        "import torch\ntorch.no_such_function", "AttributeError: module 'torch' has no attribute"
    ),
    "syntax-error": Broken("def register(:", "SyntaxError: "),
    "missing-dependency": Broken(
        "import far_and_away.sub",
        "ModuleNotFoundError: No module named 'far_and_away'",
        "`pip install far_and_away`",
    ),
    # The module's name begins with that of what is missing.
    "missing-namesake": Broken(
        "import zoo_missing",
        "ModuleNotFoundError: No module named 'zoo_missing'",
        "`pip install zoo_missing`",
    ),
    "missing-own-part": Broken(
        "import zoo_missing_own_part.more",
        "ModuleNotFoundError: No module named 'zoo_missing_own_part.more'",
    ),
    "exit-on-import": Broken("import sys\nsys.exit(0)", "SystemExit: 0"),
    "misspelt-hook": Broken(
        REGISTERED.replace("register_algorithms", "register_algoritms").replace(
            "@", "import metazoo\n@"
        ),
        "the hook register_algoritms, which does not exist",
        "did you mean 'register_algorithms'? the hooks are register_algorithms, ",
    ),
    "unknown-hook": Broken(
        "import metazoo\n@metazoo.hookimpl\ndef telescope_moved(ra, dec):\n    pass",
        "the hook telescope_moved, which does not exist",
        "another version of metazoo",
    ),
    "wrong-signature": Broken(
        ALGORITHM + REGISTERED.replace("()", "(registry)", 1),
        "its hook register_algorithms takes (registry); metazoo calls it with ()",
    ),
    "wrong-keyword": Broken(
        ALGORITHM + REGISTERED.replace("()", "(*, registry)", 1),
        "its hook register_algorithms raised TypeError",
    ),
    "returns-list": Broken(
        returning("[Nearest]"),
        "its hook register_algorithms returned list, not a dictionary of names",
    ),
    "returns-none": Broken(
        returning("None"), "its hook register_algorithms returned None, not a dictionary of names"
    ),
    "returns-keys": Broken(
        returning("{Nearest: 1}"),
        "its hook register_algorithms returned dict, not a dictionary of names",
    ),
    "returns-function": Broken(
        returning("{'NAME': print}"), "is not a subclass of metazoo.Algorithm"
    ),
    "returns-backbone": Broken(
        returning("{'NAME': metazoo.Backbone}"), "is not a subclass of metazoo.Algorithm"
    ),
    "raising-hook": Broken(
        returning("1 / 0"),
        "its hook register_algorithms raised ZeroDivisionError: division by zero",
    ),
    "exiting-hook": Broken(
        returning("exit(3)"), "its hook register_algorithms raised SystemExit: 3"
    ),
    "command-hook": Broken(
        "import metazoo\n@metazoo.hookimpl\ndef register_commands(cli):\n    pass",
        "the hook register_commands, which does not exist",
    ),
    "config-no-default": Broken(
        with_config(FROZEN + "    alpha: float"), "field 'alpha' of Nearest.Config has no default"
    ),
    "config-dict": Broken(
        with_config(FROZEN + "    alpha: dict = None"),
        "field 'alpha' of Nearest.Config has the type <class 'dict'>, which options do not support",
    ),
    "config-wrong-default": Broken(
        with_config(FROZEN + "    alpha: int = 0.5"),
        "field 'alpha' of Nearest.Config has the default 0.5",
    ),
    "config-out-of-range": Broken(
        with_config(FROZEN + "    alpha: Annotated[int, metazoo.Range(1)] = 0"),
        "has the default 0, but takes a whole number of at least 1",
    ),
    "config-taken-name": Broken(
        with_config(FROZEN + "    lr: float = 0.1"),
        "field 'lr' of Nearest.Config is also a training option",
        "give it another name",
    ),
    "config-not-frozen": Broken(
        with_config("@dataclass\nclass Config:\n    alpha: float = 0.1"),
        "Nearest.Config is not a frozen dataclass",
        "@dataclass(frozen=True)",
    ),
    "config-undecorated": Broken(
        with_config("class Config(metazoo.Config):\n    alpha: float = 0.1"),
        "Nearest.Config is not a frozen dataclass",
    ),
    "config-no-class": Broken(with_config("Config = None"), "None is not a frozen dataclass"),
    "config-unreadable": Broken(
        "from __future__ import annotations\n" + with_config(FROZEN + "    alpha: Flaot = 0.1"),
        "has an annotation that cannot be read",
    ),
    "config-raising": Broken(
        with_config(
            FROZEN
            + "    alpha: float = 0.1\n    def __post_init__(self): raise TypeError('two\\nlines')"
        ),
        "cannot be used: TypeError: two",
    ),
    "wrong-recipe": Broken(
        ALGORITHM + "    recipe = {'epochs': 3}\n" + REGISTERED,
        "the recipe of NAME has no option 'epochs'",
    ),
    "wrong-inductive-options": Broken(
        ALGORITHM + "    inductive_options = {'batch_norm': 'support'}\n" + REGISTERED,
        "inductive_options of 'NAME' has no option 'batch_norm'",
    ),
    "no-recipe": Broken(
        ALGORITHM + "    recipe = None\n" + REGISTERED,
        "offers 'NAME', which cannot be used: its recipe is None, not a dictionary",
    ),
    "nowhere-module": Broken(
        "",
        "its entry point names zoo_no.such.module, which does not exist",
        plugins={"NAME": "zoo_no.such.module"},
    ),
    "nowhere-part": Broken(
        "",
        "its entry point names MODULE.part, which does not exist",
        plugins={"NAME": "MODULE.part"},
    ),
    "nowhere-attribute": Broken(
        "",
        "its entry point names MODULE:plugin, which does not exist",
        plugins={"NAME": "MODULE:plugin"},
    ),
    "nowhere-form": Broken(
        "", "its entry point 'not a module' is not of the form", plugins={"NAME": "not a module"}
    ),
    "class": Broken(
        ALGORITHM + REGISTERED,
        "its entry point names the class MODULE:Nearest",
        plugins={"NAME": "MODULE:Nearest"},
    ),
    "function": Broken(
        ALGORITHM + REGISTERED,
        "it implements no hook",
        plugins={"NAME": "MODULE:register_algorithms"},
    ),
    "no-hooks": Broken(ALGORITHM, "it implements no hook", "@metazoo.hookimpl"),
    "undecorated-hook": Broken(
        ALGORITHM + REGISTERED.replace("@metazoo.hookimpl", ""),
        "it implements no hook",
        "@metazoo.hookimpl",
    ),
    "raising-attribute": Broken(
        "class Plugin:\n    def __dir__(self): raise OSError('gone')\nplugin = Plugin()",
        "OSError: gone",
        plugins={"NAME": "MODULE:plugin"},
    ),
}

GOOD = SourceTree(
    ALGORITHM
    + """
import click
import torch

print("hello from a plugin")

class Dots(metazoo.ClassDataset):
    '''Points around a centre each class.'''

    licence = "made, no data"

    def load(self):
        noise = torch.Generator().manual_seed(0)
        return {
            split: metazoo.Examples(
                torch.randn(8, 1, 4, generator=noise).repeat(1, 20, 1).flatten(0, 1) + torch.randn(160, 4, generator=noise) / 9,
                (20,) * 8, tuple(f"{split}{i}" for i in range(8)),
            )
            for split in ("train", "val", "test")
        }

class Flat(metazoo.Backbone):
    '''One linear layer.'''

    def __init__(self, input_shape, config=None):
        super().__init__(input_shape, config)
        self.layer = torch.nn.Linear(4, 8)
        self.out_features = 8

    def forward(self, x):
        return self.layer(x)

@metazoo.hookimpl
def register_algorithms():
    return {"good": Nearest}

@metazoo.hookimpl
def register_backbones():
    return {"flat": Flat}

@metazoo.hookimpl
def register_datasets():
    return {"dots": Dots}

@click.command()
@click.argument("name")
def greet(name):
    '''Say hello.'''
    click.echo(f"hello {name}")
""",
    commands={"greet": "MODULE:greet"},
)
# Algorithms with an option that `metazoo train` has a flag for, or that begins like one.
TAKEN = {
    "taken-flag": Distribution(with_config(FROZEN + "    out: str = ''")),
    "taken-prefix": Distribution(with_config(FROZEN + "    data_root: str = ''")),
}
OTHERS = {
    "twin-one": Distribution(ALGORITHM + REGISTERED.replace("NAME", "twin")),
    "twin-two": Distribution(ALGORITHM + REGISTERED.replace("NAME", "twin")),
    "usurper": Distribution(ALGORITHM + REGISTERED.replace("NAME", "protonet")),
    "renamed-hook": Distribution(
        ALGORITHM
        + "@metazoo.hookimpl(specname='register_algorithms')\ndef mine():\n    return {'renamed': Nearest}\n"
        + "@metazoo.hookimpl(optionalhook=True)\ndef of_another_version():\n    pass\n"
    ),
    "two-points": Distribution(
        ALGORITHM + REGISTERED, plugins={"two-points": "MODULE", "again": "MODULE"}
    ),
    "buggy": BUGS,
    **TAKEN,
}


@pytest.fixture(scope="module")
def installed(install: Callable[[Mapping[str, Distribution]], Path]) -> Path:
    """Every plugin of this module, installed."""
    return install({"good": GOOD, **CASES, **OTHERS})


@pytest.fixture(scope="module")
def spoken(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Call]]:
    """What each broken plugin makes four commands say."""
    jobs = [
        (
            [installed / case],
            [["list", "--json"], ["plugins", "--json"], ["plugins"], ["train", case]],
        )
        for case in CASES
    ]
    return dict(zip(CASES, metazoo_calls(tmp_path_factory.mktemp("said"), *jobs)))


def plugin_named(call: Call, name: str) -> dict[str, Any]:
    return next(plugin for plugin in json.loads(call.out)["plugins"] if plugin["name"] == name)


@pytest.mark.parametrize("case", CASES)
def test_a_broken_plugin_is_named_with_its_cause(case: str, spoken: dict[str, list[Call]]) -> None:
    as_json, text = spoken[case][1:3]
    plugin = plugin_named(as_json, case)
    problem = CASES[case].problem.replace("MODULE", module_of(case)).replace("NAME", case)
    assert (plugin["distribution"], plugin["version"]) == (f"zoo-{case}", "1.2.3")
    assert problem in plugin["problem"]
    assert CASES[case].hint in (plugin["hint"] or "")
    assert "\n" not in plugin["problem"]
    assert text.status == 0
    assert any(f"zoo-{case} 1.2.3" in line and problem in line for line in text.out.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_the_rest_works_as_before(case: str, spoken: dict[str, list[Call]]) -> None:
    listed, plugins = spoken[case][:2]
    assert listed.status == plugins.status == 0
    found = json.loads(listed.out)
    assert {algorithm["name"] for algorithm in found["algorithms"]} == BUILT_IN
    assert {"conv4", "glyphs"} < {
        item["name"] for kind in ("backbones", "datasets") for item in found[kind]
    }
    assert f"zoo-{case} 1.2.3" in listed.err
    assert "Traceback" not in listed.err
    broken = [plugin["name"] for plugin in json.loads(plugins.out)["plugins"] if plugin["problem"]]
    assert broken == [case]


@pytest.mark.parametrize("case", CASES)
def test_asking_for_what_is_broken_says_why(case: str, spoken: dict[str, list[Call]]) -> None:
    status, out, err = spoken[case][3]
    lines = err.splitlines()
    assert (status, out) == (1, "")
    assert (
        lines[0]
        == f"error: algorithm '{case}' is unavailable: plugin zoo-{case} 1.2.3 failed to load"
    )
    assert CASES[case].problem.replace("MODULE", module_of(case)).replace("NAME", case) in lines[1]
    assert lines[2].startswith("hint: ")
    assert f"`pip uninstall zoo-{case}`" in lines[2]
    assert len(lines) == 3


def test_all_of_them_at_once(installed: Path, tmp_path: Path) -> None:
    [[listed, plugins]] = metazoo_calls(
        tmp_path, ([installed / "all"], [["list", "--json"], ["plugins", "--json"]])
    )
    assert {a["name"] for a in json.loads(listed.out)["algorithms"]} == BUILT_IN - {"protonet"} | {
        "good",
        "renamed",
        "two-points",
        *TAKEN,
        *BUGGY,
        "bug-in-constructor",
        "no-bug",
    }
    broken = {plugin["name"] for plugin in json.loads(plugins.out)["plugins"] if plugin["problem"]}
    assert broken == {*CASES, "two-points"}


def test_two_plugins_that_claim_one_name(installed: Path, tmp_path: Path) -> None:
    path = [installed / "twin-two", installed / "twin-one"]
    calls = [["list", "--json"], ["plugins", "--json"], ["plugins"], ["train", "twin"]]
    [[listed, plugins, text, train]] = metazoo_calls(tmp_path, (path, calls))
    assert {algorithm["name"] for algorithm in json.loads(listed.out)["algorithms"]} == BUILT_IN
    assert json.loads(plugins.out)["clashes"] == [
        {
            "kind": "algorithm",
            "name": "twin",
            "claimed by": ["zoo-twin-one 1.2.3", "zoo-twin-two 1.2.3"],
        }
    ]
    assert "'twin' is claimed by zoo-twin-one 1.2.3 and zoo-twin-two 1.2.3" in text.out
    assert train.status == 1
    assert train.err.startswith(
        "error: algorithm 'twin' is claimed by zoo-twin-one 1.2.3 and zoo-twin-two 1.2.3\nhint: `pip uninstall"
    )


def test_a_plugin_that_claims_a_built_in(installed: Path, tmp_path: Path) -> None:
    [[listed, train]] = metazoo_calls(
        tmp_path, ([installed / "usurper"], [["list", "--json"], ["train", "protonet"]])
    )
    assert {algorithm["name"] for algorithm in json.loads(listed.out)["algorithms"]} == BUILT_IN - {
        "protonet"
    }
    assert train.status == 1
    assert f"is claimed by metazoo {metazoo.__version__} and zoo-usurper 1.2.3" in train.err


def test_two_entry_points_to_one_module(installed: Path, tmp_path: Path) -> None:
    [[listed, plugins]] = metazoo_calls(
        tmp_path, ([installed / "two-points"], [["list", "--json"], ["plugins", "--json"]])
    )
    assert {algorithm["name"] for algorithm in json.loads(listed.out)["algorithms"]} == BUILT_IN | {
        "two-points"
    }
    assert (
        "is already registered by another entry point"
        in plugin_named(plugins, "two-points")["problem"]
    )


def test_a_hook_under_another_name_and_an_optional_one(installed: Path, tmp_path: Path) -> None:
    [[listed, plugins]] = metazoo_calls(
        tmp_path, ([installed / "renamed-hook"], [["list", "--json"], ["plugins", "--json"]])
    )
    assert {algorithm["name"] for algorithm in json.loads(listed.out)["algorithms"]} == BUILT_IN | {
        "renamed"
    }
    assert plugin_named(plugins, "renamed-hook")["problem"] is None


def test_without_its_entry_point_a_built_in_is_gone(tmp_path: Path) -> None:
    own = importlib.metadata.distribution("metazoo")
    copy = tmp_path / f"metazoo-{own.version}.dist-info"
    copy.mkdir()
    points = (own.read_text("entry_points.txt") or "").splitlines()
    (copy / "METADATA").write_text(own.read_text("METADATA") or "")
    (copy / "entry_points.txt").write_text(
        "\n".join(line for line in points if not line.startswith("maml "))
    )
    [[listed, train]] = metazoo_calls(
        tmp_path, ([tmp_path], [["list", "--json"], ["train", "maml"]])
    )
    assert {algorithm["name"] for algorithm in json.loads(listed.out)["algorithms"]} == BUILT_IN - {
        "maml"
    }
    assert train.status == 2
    assert train.err.startswith("error: no algorithm named 'maml'")


def test_a_good_plugin_adds_an_algorithm_a_backbone_a_data_set_and_a_command(
    installed: Path, tmp_path: Path
) -> None:
    train = [
        "train",
        "good",
        "--dataset",
        "dots",
        "--backbone",
        "flat",
        "--steps",
        "30",
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    small = [
        "--validate-every",
        "15",
        "--validation-episodes",
        "20",
        "--test-episodes",
        "20",
        "--queries",
        "5",
    ]
    calls = [
        ["list", "--json"],
        ["plugins", "--json"],
        ["greet", "you"],
        ["--help"],
        [*train, *small],
    ]
    [[listed, plugins, greeting, usage, trained]] = metazoo_calls(
        tmp_path, ([installed / "good"], calls)
    )
    found = json.loads(listed.out)
    for kind, name in (("algorithms", "good"), ("backbones", "flat"), ("datasets", "dots")):
        assert {"name": name, "from": "zoo-good 1.2.3"}.items() <= next(
            i for i in found[kind] if i["name"] == name
        ).items()
    assert plugin_named(plugins, "good")["provides"] == {
        "algorithms": ["good"],
        "backbones": ["flat"],
        "datasets": ["dots"],
    }
    assert plugin_named(plugins, "greet")["provides"] == {"commands": ["greet"]}
    # stdout is for data, so what it prints on import is on stderr.
    assert listed.err == "hello from a plugin\n"
    assert (greeting.status, greeting.out) == (0, "hello you\n")
    assert "greet" in usage.out
    assert trained.status == 0, trained.err
    assert json.loads(trained.out)["run"] == str(tmp_path / "run")


def test_the_installed_command_itself_ends_without_a_traceback(installed: Path) -> None:
    program = "import sys; from metazoo.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": str(installed / "exit-on-import")}
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "exit-on-import"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "error: algorithm 'exit-on-import' is unavailable: plugin zoo-exit-on-import 1.2.3 failed to load\n"
    )


def test_an_option_with_the_name_of_a_flag_of_train_is_refused_by_train(
    installed: Path, tmp_path: Path
) -> None:
    calls = [["list", "--json"], ["plugins", "--json"], ["train", "protonet", "--help"]]
    calls += [["train", name, *more] for name in TAKEN for more in ([], ["--help"])]
    path = [installed / name for name in TAKEN]
    [[listed, plugins, usage, *refused]] = metazoo_calls(tmp_path, (path, calls))
    assert TAKEN.keys() < {each["name"] for each in json.loads(listed.out)["algorithms"]}
    assert all(plugin_named(plugins, name)["problem"] is None for name in TAKEN)
    assert usage.status == 0
    for call, (name, option) in zip(
        refused, [("taken-flag", "out")] * 2 + [("taken-prefix", "data_root")] * 2
    ):
        assert call == Call(
            1,
            "",
            f"error: option '{option}' of algorithm '{name}' (zoo-{name} 1.2.3) has the name of a "
            "flag of `metazoo train`, or begins like one\nhint: its author must rename it\n",
        )
