"""Whose bug it is: the plugin that an exception came from."""

from __future__ import annotations

import itertools
import traceback
from dataclasses import dataclass

from metazoo.plugins.registry import Plugin, registry


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
    """Return the plugin whose module this is part of, or whose package: the one with the most of its dotted name in common.

    None where that is nobody, or could be more than one distribution, as in a namespace that several share.
    """
    words = module.split(".")
    found: list[tuple[tuple[int, bool], Plugin]] = []
    for plugin in registry().plugins:
        target = plugin.target.partition(":")[0].split(".")
        # What could not be loaded runs nothing, and its entry point may name any module; metazoo's own code is nobody else's.
        if target[0] == "metazoo" or (plugin.problem and not plugin.provides):
            continue
        if common := sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, target))
        ):
            found.append(((common, common == len(target)), plugin))
    nearest = max((nearness for nearness, _ in found), default=None)
    owners = [plugin for nearness, plugin in found if nearness == nearest]
    return owners[0] if len({plugin.distribution for plugin in owners}) == 1 else None
