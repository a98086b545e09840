"""The rules of the house, held by reading the imports: one way in, arrows down, the wall."""

from __future__ import annotations

import ast
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

# From the lowest up: a module imports what stands on earlier lines, or on its own line, never what stands below.
ORDER = [
    [
        "version",
        "errors",
        "files",
        "download",
        "taskwise",
        "normalization",
        "distributed",
        "stopper",
        "views",
    ],
    ["kernels.**"],
    ["options", "hookspecs", "drawing", "device_drawing", "examples"],
    ["episodes", "ops", "images"],
    ["backbones", "augment"],
    ["algorithm", "datasets.**"],
    ["registrable"],
    ["plugins", "blame"],
    ["checkpoint", "evaluate", "runs", "trials", "curve", "cards", "hub", "remote"],
    ["plan"],
    ["conformance", "recheck", "state", "train", "zoo"],
    ["testing", "classifier"],
    ["cli.**", "__main__"],
]
# Not in the order: the front door, which imports everything public, and what is reached through entry points alone.
FRONT = {"metazoo"}


def layer(module: str) -> int | None:
    """Return the line of ORDER that a module of the core stands on."""
    name = module.removeprefix("metazoo.")
    for i, names in enumerate(ORDER):
        for pattern in names:
            if name == pattern or (pattern.endswith(".**") and f"{name}.".startswith(pattern[:-2])):
                return i
    return None


def of_plugins(module: str) -> bool:
    """Whether a module is part of a built-in plugin that stands behind the wall."""
    return f"{module}.".startswith(("metazoo.algorithms.", "metazoo.pretrained."))


def imports_of(module: str, tree: ast.AST | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield what a module imports, as (module, name in it), also inside of functions, but not for type checkers alone."""
    path = MODULES.get(module)
    tree = tree if tree is not None else ast.parse(path.read_text(encoding="utf-8"))  # type: ignore[union-attr]
    package = (
        module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    )
    hidden = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test).endswith("TYPE_CHECKING")
        for statement in test.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
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
    return {
        target
        for target, _ in imports_of(module)
        if target == "metazoo" or target.startswith("metazoo.")
    }


@pytest.mark.parametrize("module", [m for m in MODULES if m not in FRONT and not of_plugins(m)])
def test_arrows_point_down(module: str) -> None:
    here = layer(module)
    assert here is not None, f"{module} has no place in ORDER: give it one"
    for target in own_imports(module):
        if target == "metazoo":
            pytest.fail(f"{module} imports the front door, which imports it")
        there = layer(target)
        assert there is not None, f"{module} imports {target}, which has no place in ORDER"
        assert there <= here, f"{module} imports {target}, which stands above it"


def test_the_order_names_what_exists() -> None:
    for name in (name for names in ORDER for name in names):
        assert f"metazoo.{name.removesuffix('.**')}" in MODULES


def test_the_core_imports_no_algorithm() -> None:
    for module in MODULES:
        if not of_plugins(module):
            assert not [target for target in own_imports(module) if of_plugins(target)]
            # Nor by name: import_module("metazoo.algorithms.maml") would be a way round.
            assert "metazoo.algorithms" not in re.sub(
                r'""".*?"""', "", MODULES[module].read_text(encoding="utf-8"), flags=re.S
            )


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("metazoo.algorithms.")])
def test_an_algorithm_imports_public_names_torch_and_the_standard_library(module: str) -> None:
    for target, name in imports_of(module):
        top = target.partition(".")[0]
        if top == "metazoo":
            public = name if target == "metazoo" else target.removeprefix("metazoo.")
            assert public is None or public in metazoo.__all__, (
                f"{module} imports {public}, which is not public"
            )
        else:
            assert top == "torch" or top in sys.stdlib_module_names, f"{module} imports {target}"
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "metazoo"
        ):
            assert node.attr in metazoo.__all__, (
                f"{module} uses metazoo.{node.attr}, which is not public"
            )


def test_reptile_stands_before_the_same_wall() -> None:
    path = ROOT / "plugins" / "metazoo-reptile" / "metazoo_reptile.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for target, name in imports_of("metazoo_reptile", tree):
        top = target.partition(".")[0]
        assert (
            top == "torch"
            or top in sys.stdlib_module_names
            or (target == "metazoo" and (name or "Range") in metazoo.__all__)
        )
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "metazoo"
        ):
            assert node.attr in metazoo.__all__


def test_the_entry_points_are_the_only_list_of_plugins() -> None:
    declared = {
        e.value
        for e in importlib.metadata.distribution("metazoo").entry_points
        if e.group == "metazoo"
    }
    hooked = {
        m
        for m, path in MODULES.items()
        if re.search(r"^@(metazoo\.)?hookimpl", path.read_text(encoding="utf-8"), flags=re.M)
    }
    assert declared == hooked


def test_every_built_in_works() -> None:
    assert {
        p.name: p.problem for p in registry().plugins if p.distribution == "metazoo" and p.problem
    } == {}


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


@pytest.mark.parametrize("name", metazoo.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    value: Any = getattr(metazoo, name)
    if name == "hookimpl":  # pluggy's own marker, documented there
        return
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        # A dataclass makes itself a docstring of its signature, and a subclass would borrow its parent's.
        assert "__doc__" in vars(value)
        assert not (value.__doc__ or "").startswith(f"{name}(")


def test_public_names_are_sorted_and_complete() -> None:
    imported = {alias.asname or alias.name for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
                if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    assert sorted(metazoo.__all__) == metazoo.__all__
    assert set(metazoo.__all__) >= imported - {"VERSION"}


def signature_of(hook: str) -> str:
    """Return a hook's declaration as it stands in hookspecs.py."""
    for node in ast.parse((PACKAGE / "hookspecs.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == hook:
            return f"{hook}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"  # type: ignore[arg-type]
    raise AssertionError(hook)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_signature(hook: str) -> None:
    assert signature_of(hook) in (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def test_hookspecs_is_a_table_of_contents() -> None:
    assert len((PACKAGE / "hookspecs.py").read_text(encoding="utf-8").splitlines()) < 100
    functions = [
        n
        for n in ast.parse((PACKAGE / "hookspecs.py").read_text(encoding="utf-8")).body
        if isinstance(n, ast.FunctionDef)
    ]
    assert {n.name for n in functions} == set(HOOKS)
    assert all(ast.get_docstring(n) for n in functions)
