"""Find and load the entry points of installed packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from importlib.metadata import EntryPoint

from metazoo.errors import PluginError, first_line

PLUGINS = "metazoo"
COMMANDS = "metazoo.commands"


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, sorted: the order of installation must not matter."""
    found: dict[tuple[str, str, str], EntryPoint] = {}
    for entry_point in importlib.metadata.entry_points(group=group):
        # A directory that is on sys.path twice lists its distributions twice.
        found.setdefault((entry_point.name, entry_point.value, owner(entry_point)[0]), entry_point)
    return [found[key] for key in sorted(found)]


def owner(entry_point: EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that an entry point comes from."""
    if entry_point.dist is None:
        return "unknown", "unknown"
    return entry_point.dist.metadata["Name"], entry_point.dist.version


def load(entry_point: EntryPoint) -> object:
    """Return the object that an entry point names, or raise PluginError with the cause."""
    if not entry_point.pattern.match(entry_point.value):
        raise PluginError(
            f"its entry point '{entry_point.value}' is not of the form MODULE or MODULE:NAME"
        )
    try:
        # stdout is for data, so what a plugin prints while it loads goes to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            return entry_point.load()
    except (Exception, SystemExit) as error:  # an import may raise anything
        raise PluginError(*_import_problem(entry_point, error)) from error


def _import_problem(entry_point: EntryPoint, error: BaseException) -> tuple[str, str | None]:
    """Return why an entry point failed to load, and a hint."""
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    # A module whose import fails is not in sys.modules. If it is there, it lacks the attribute.
    lacks_attribute = isinstance(error, AttributeError) and entry_point.module in sys.modules
    if lacks_attribute or (missing and f"{entry_point.module}.".startswith(f"{missing}.")):
        return (
            f"its entry point names {entry_point.value}, which does not exist: {first_line(error)}",
            None,
        )
    package = missing.partition(".")[0]
    foreign = package and package != entry_point.module.partition(".")[0]
    hint = f"`pip install {package}`" if foreign else None
    return f"{type(error).__name__}: {first_line(error)}", hint
