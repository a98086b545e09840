"""Find the plugin that an exception came from."""

from __future__ import annotations

import itertools
import sys
import traceback
from dataclasses import dataclass

from metazoo.plugins.entry_points import COMMANDS, entry_points
from metazoo.plugins.registry import Plugin, registry


@dataclass(frozen=True)
class Fault:
    """The plugin that an exception came from, and the innermost line of its own code."""

    plugin: Plugin
    place: str


def at_fault(error: BaseException) -> Fault | None:
    """Return the plugin whose code raised an exception, or None if there is no such plugin."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if (plugin := _plugin_of(frame.f_globals.get("__name__", ""))) is not None:
            code = frame.f_code
            return Fault(plugin, f'File "{code.co_filename}", line {line}, in {code.co_name}')
    return None


def _plugin_of(module: str) -> Plugin | None:
    """Return the plugin that a module belongs to, or None.

    That is the plugin whose module has the most of the dotted name in common, unless several
    distributions have the same part in common.
    """
    words = module.split(".")
    found: list[tuple[tuple[int, bool], Plugin]] = []
    for plugin in _loaded():
        target = _module(plugin).split(".")
        if target[0] == "metazoo":
            continue
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, target))
        if common := sum(1 for _ in same):
            found.append(((common, common == len(target)), plugin))
    nearest = max((nearness for nearness, _ in found), default=None)
    owners = [plugin for nearness, plugin in found if nearness == nearest]
    return owners[0] if len({plugin.distribution for plugin in owners}) == 1 else None


def _loaded() -> list[Plugin]:
    """Return the plugins and commands that were imported.

    The others run nothing, and their entry points may name any module.
    """
    plugins = [plugin for plugin in registry().plugins if plugin.provides or not plugin.problem]
    commands = [Plugin.of(each) for each in entry_points(COMMANDS)]
    return plugins + [command for command in commands if _module(command) in sys.modules]


def _module(plugin: Plugin) -> str:
    return plugin.target.partition(":")[0]
