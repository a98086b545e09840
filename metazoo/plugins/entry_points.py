"""Find and load the entry points of installed packages."""

from __future__ import annotations

import importlib.metadata
import re
import reprlib
import sys
from importlib.metadata import Distribution, EntryPoint

from metazoo.errors import PluginError
from metazoo.plugins.containment import contained
from metazoo.quoting import shell_word

PLUGINS = "metazoo"
COMMANDS = "metazoo.commands"
LONGEST_NAME = 100
# Names become parts of paths, words of commands and cells of tables.
_NAME = re.compile(r"[^\W_][\w.+@:-]*")


def entry_points(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, sorted: the order of installation must not matter."""
    found: dict[tuple[str, str, str], EntryPoint] = {}
    for entry_point in _declared(group):
        # A directory that is on sys.path twice lists its distributions twice.
        found.setdefault((entry_point.name, entry_point.value, owner(entry_point)[0]), entry_point)
    return [found[key] for key in sorted(found)]


def owner(entry_point: EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that an entry point comes from."""
    try:
        metadata = entry_point.dist.metadata  # type: ignore[union-attr]
        name, version = metadata["Name"] or "unknown", metadata["Version"] or "unknown"
        return name[:LONGEST_NAME], version[:LONGEST_NAME]
    except Exception:  # its metadata are missing or damaged
        return "unknown", "unknown"


def is_name(name: str) -> bool:
    """Return whether metazoo accepts a name from a plugin."""
    return len(name) <= LONGEST_NAME and _NAME.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise PluginError if metazoo does not accept a name from a plugin."""
    if not is_name(name):
        raise PluginError(
            f"{reprlib.repr(name)} cannot be a name",
            f"a name has up to {LONGEST_NAME} letters, digits and . _ + @ : -, and begins with a letter or digit",
        )


def load(entry_point: EntryPoint) -> object:
    """Return the object that an entry point names, or raise PluginError with the cause."""
    check_name(entry_point.name)
    if not entry_point.pattern.match(entry_point.value):
        raise PluginError(
            f"its entry point '{entry_point.value}' is not of the form MODULE or MODULE:NAME"
        )
    try:
        with contained():
            return entry_point.load()
    except PluginError as error:
        with contained():  # the plugin's own exception may answer a look at it with another
            raise _import_problem(entry_point, error, error.__cause__) from error


def _import_problem(
    entry_point: EntryPoint, error: PluginError, cause: BaseException | None
) -> PluginError:
    """Return why an entry point failed to load, with a hint if a package is missing."""
    missing = cause.name if isinstance(cause, ModuleNotFoundError) else ""
    missing = missing if isinstance(missing, str) else ""
    # A module whose import fails is not in sys.modules. If it is there, it lacks the attribute.
    lacks_attribute = isinstance(cause, AttributeError) and entry_point.module in sys.modules
    if lacks_attribute or (missing and f"{entry_point.module}.".startswith(f"{missing}.")):
        what = error.message.partition(": ")[2]
        return PluginError(
            f"its entry point names {entry_point.value}, which does not exist: {what}"
        )
    package = missing.partition(".")[0]
    foreign = package and package != entry_point.module.partition(".")[0]
    return PluginError(
        error.message, f"`pip install {shell_word(package)}`" if foreign else error.hint
    )


def _declared(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, without those of distributions that cannot be read."""
    try:
        return list(importlib.metadata.entry_points(group=group))
    except Exception:  # one distribution with damaged metadata is enough
        return [
            entry_point
            for distribution in importlib.metadata.distributions()
            for entry_point in _points_of(distribution)
            if entry_point.group == group
        ]


def _points_of(distribution: Distribution) -> list[EntryPoint]:
    try:
        return list(distribution.entry_points)
    except Exception:
        return []
