"""Read entry points of installed packages."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.metadata import EntryPoint

from metazoo.errors import first_line

PLUGINS = "metazoo"
COMMANDS = "metazoo.commands"


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, sorted, so that the order of installation does not matter."""
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


def import_problem(entry_point: EntryPoint, error: BaseException) -> tuple[str, str | None]:
    """Return why an entry point failed to load, and a hint."""
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    # After a failed import the module is not in sys.modules; if it is there, it lacks the attribute.
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
