"""Whose bug it is: the plugin that an exception came from."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from .plugins import Plugin, registry


@dataclass(frozen=True)
class Fault:
    """The plugin that an exception came from, and the innermost place of its own code."""

    plugin: Plugin
    place: str


def at_fault(error: BaseException) -> Fault | None:
    """Return where in a plugin an exception came from, or None where only metazoo's own code was at work."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if (plugin := _plugin_of(frame.f_globals.get("__name__", ""))) is not None:
            code = frame.f_code
            return Fault(plugin, f'File "{code.co_filename}", line {line}, in {code.co_name}')
    return None


def _plugin_of(module: str) -> Plugin | None:
    """Return the plugin, other than metazoo's own, whose module this is part of, or whose package."""
    found = [(plugin.target.partition(":")[0], plugin) for plugin in registry().plugins if plugin.distribution != "metazoo"]
    inside = [plugin for name, plugin in found if f"{module}.".startswith(f"{name}.")]
    beside = [plugin for name, plugin in found if module.partition(".")[0] == name.partition(".")[0]]
    return next(iter(inside + beside), None)
