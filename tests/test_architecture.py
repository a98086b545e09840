"""The rules of the house, checked by reading the imports: one way in, arrows point down, the wall."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import metazoo
from metazoo.plugins.registry import HOOKS, registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metazoo"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the lowest up: a module imports from roles above its own in this list, and from its own role.
ROLES = {
    "words that everything uses": ["version", "errors", "options", "quoting"],
    "bytes on disk and on the network": ["io"],
    "numbers, images, processes": [
        "kernels",
        "ops",
        "images",
        "texts",
        "appearance",
        "image_folders",
        "tables",
        "distributed",
        "device",
        "provenance",
    ],
    "what a task is": ["tasks"],
    "building blocks of networks": ["nn"],
    "what plugin authors subclass": ["base"],
    "how plugins are found": ["plugins"],
    "raw examples to tensors": ["inputs"],
    "built-in plugins": ["algorithms", "backbones", "datasets", "pretrained"],
    "measuring a model": ["evaluation"],
    "a model at rest": ["zoo"],
    "a model in motion": ["training"],
    "what users call": ["testing", "classifier"],
    "the command line": ["cli", "__main__"],
}
LEVEL = {folder: level for level, folders in enumerate(ROLES.values()) for folder in folders}
BUILT_IN = tuple(f"metazoo.{folder}." for folder in ROLES["built-in plugins"])
# `metazoo data` reads and writes the format of packed data, which is more than a data set.
ALLOWED = {
    ("metazoo.cli.packing", "metazoo.datasets.packed.format"),
    ("metazoo.cli.packing", "metazoo.datasets.packed.writer"),
}


def folder_of(module: str) -> str:
    """Return the top-level folder or file of a module: "zoo" for metazoo.zoo.find."""
    return module.split(".")[1]


def is_built_in(module: str) -> bool:
    return f"{module}.".startswith(BUILT_IN)


def imports_of(module: str, tree: ast.AST | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield what a module imports, as (module, name in it): in functions and for type checkers, too."""
    path = MODULES.get(module)
    if tree is None:
        assert path is not None
        tree = ast.parse(path.read_text(encoding="utf-8"))
    is_package = path is not None and path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            source = ".".join(filter(None, [base if node.level else "", node.module]))
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield (whole, None) if whole in MODULES else (source, alias.name)


def own_imports(module: str) -> set[str]:
    targets = {target for target, _ in imports_of(module)}
    return {target for target in targets if target == "metazoo" or target.startswith("metazoo.")}


CORE = [module for module in MODULES if module != "metazoo" and not is_built_in(module)]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "metazoo"])
def test_arrows_point_down(module: str) -> None:
    here = folder_of(module)
    assert here in LEVEL, f"{module} has no role: give it one in ROLES"
    for target in own_imports(module):
        if target == "metazoo":
            # A built-in plugin uses the public names, as anybody's does; the core must not.
            assert is_built_in(module), f"{module} imports the public names, which import it"
            continue
        there = folder_of(target)
        assert LEVEL[there] <= LEVEL[here], f"{module} imports {target}"


def test_the_roles_name_what_exists() -> None:
    assert {folder_of(module) for module in MODULES if module != "metazoo"} == set(LEVEL)


def test_there_is_no_circle() -> None:
    public = {module for module in MODULES if is_built_in(module)}
    graph = {
        module: own_imports(module) - {"metazoo"} for module in MODULES if module not in public
    }
    for module, targets in graph.items():
        targets.discard(module)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


@pytest.mark.parametrize("module", CORE)
def test_built_in_plugins_are_reached_by_entry_points_only(module: str) -> None:
    for target in own_imports(module):
        assert not is_built_in(target) or (module, target) in ALLOWED
    # Nor by name: import_module("metazoo.algorithms.maml") would be a way round.
    code = re.sub(r'""".*?"""', "", MODULES[module].read_text(encoding="utf-8"), flags=re.S)
    assert "metazoo.algorithms" not in code


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("metazoo.algorithms.")])
def test_an_algorithm_imports_public_names_torch_and_the_standard_library(module: str) -> None:
    check_wall(module, ast.parse(MODULES[module].read_text(encoding="utf-8")))


def test_reptile_stands_before_the_same_wall() -> None:
    path = ROOT / "plugins" / "metazoo-reptile" / "metazoo_reptile.py"
    check_wall("metazoo_reptile", ast.parse(path.read_text(encoding="utf-8")))


def check_wall(module: str, tree: ast.AST) -> None:
    for target, name in imports_of(module, tree):
        top = target.partition(".")[0]
        if top == "metazoo":
            public = name if target == "metazoo" else target.removeprefix("metazoo.")
            assert public in (None, "metazoo", *metazoo.__all__), f"{module} imports {public}"
        else:
            assert top == "torch" or top in sys.stdlib_module_names, f"{module} imports {target}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "metazoo":
            assert node.attr in metazoo.__all__, f"{module} uses metazoo.{node.attr}"


def test_the_entry_points_are_the_only_list_of_plugins() -> None:
    entry_points = importlib.metadata.distribution("metazoo").entry_points
    declared = {e.value for e in entry_points if e.group == "metazoo"}
    marked = re.compile(r"^@(metazoo\.)?hookimpl", flags=re.M)
    hooked = {m for m, path in MODULES.items() if marked.search(path.read_text(encoding="utf-8"))}
    assert declared == hooked


def test_every_built_in_works() -> None:
    problems = {p.name: p.problem for p in registry().plugins if p.distribution == "metazoo"}
    assert set(problems.values()) == {None}, problems


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    """A function has at most 40 lines after its signature and docstring."""
    path = MODULES[module]
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{module}.{node.name} has {lines} lines"


def sources() -> Iterator[tuple[str, str]]:
    """Yield the Python of everything but the tests: files, and blocks in the docs."""
    for folder in ("metazoo", "benchmarks", "docs", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            yield str(path), path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/*.md")):
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.M | re.S):
            yield str(path), block


def test_nothing_reads_a_pickle_or_runs_a_text() -> None:
    modules = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {"eval", "exec", "os.system", "torch.load", "torch.save", "torch.jit.load"}
    # torch then builds tensors only: of a user's file (docs/models.md), and of one whose sha256 is
    # in the source.
    only_tensors = (
        "torch.load('theirs.pt', weights_only=True)",
        "torch.load(io.BytesIO(contents), weights_only=True)",
    )
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & modules, f"{path}: {ast.unparse(node)}"
            elif isinstance(node, ast.Call) and ast.unparse(node) not in only_tensors:
                assert ast.unparse(node.func) not in calls, f"{path}: {ast.unparse(node)}"
                # numpy's allow_pickle, subprocess's shell
                flags = {word.arg for word in node.keywords if ast.unparse(word.value) == "True"}
                assert not flags & {"allow_pickle", "shell"}, f"{path}: {ast.unparse(node)}"


def test_the_formatter_formats_everything() -> None:
    folders = ("metazoo", "tests", "benchmarks", "docs", "plugins")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    skips = [path for path in files if "fmt: " + "skip" in path.read_text(encoding="utf-8")]
    assert not skips


@pytest.mark.parametrize("name", metazoo.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    value: Any = getattr(metazoo, name)
    if name == "hookimpl":  # pluggy's own marker, documented there
        return
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        # A dataclass makes itself a docstring of its signature, and a subclass borrows its parent's.
        assert "__doc__" in vars(value)
        assert not (value.__doc__ or "").startswith(f"{name}(")


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook: str) -> None:
    parameters = ", ".join(inspect.signature(HOOKS[hook]).parameters)
    assert f"`{hook}({parameters})`" in (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def test_hookspecs_is_a_table_of_contents() -> None:
    text = (PACKAGE / "plugins" / "hookspecs.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert {node.name for node in functions} == set(HOOKS)
    assert all(ast.get_docstring(node) for node in functions)
