"""The registry: finds plugins by their entry points and keeps what each of them registers.

If a plugin fails to load, or its hook fails, the registry records the cause (`Plugin.problem`) and
does not raise. Everything else keeps working. Whoever asks for what the broken plugin should have
provided is told the cause.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Generic, TypeVar

import pluggy

from metazoo.base.algorithm import Algorithm
from metazoo.base.backbone import Backbone
from metazoo.base.dataset import Dataset
from metazoo.errors import PluginError, UnknownNameError, did_you_mean, first_line
from metazoo.plugins import checks, hookspecs
from metazoo.plugins.containment import contained
from metazoo.plugins.entry_points import (
    LONGEST_NAME,
    PLUGINS,
    check_name,
    entry_points,
    load,
    owner,
)
from metazoo.plugins.marker import PROJECT
from metazoo.quoting import shell_word

HOOKS = {
    name: spec
    for name, spec in inspect.getmembers(hookspecs, inspect.isfunction)
    if name.startswith("register_")
}
LONGEST_PROBLEM = 500  # characters; an exception may say any number
Check = Callable[[str, Any], checks.Checked]
T = TypeVar("T")


@dataclass
class Plugin:
    """An entry point and its state.

    `problem` is None if the plugin works; otherwise it is the cause, in one line, and `hint` says
    what to do. `provides` lists the registered names by kind, `refused` the names that cannot be
    used.
    """

    name: str
    target: str
    distribution: str
    version: str
    problem: str | None = None
    hint: str | None = None
    provides: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, entry_point: EntryPoint) -> Plugin:
        """Return the plugin that an entry point declares."""
        return cls(entry_point.name[:LONGEST_NAME], entry_point.value, *owner(entry_point))

    @property
    def owner(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    def fail(self, problem: str, hint: str | None = None) -> None:
        """Record why the plugin does not work, unless a cause is recorded already."""
        if self.problem is None:
            self.problem, self.hint = " ".join(problem.split())[:LONGEST_PROBLEM], hint


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered value, its name, a line about it, and the plugin that it comes from."""

    name: str
    value: T
    summary: str
    plugin: Plugin


class Registry:
    """Everything that the installed plugins register.

    `algorithms`, `backbones`, `datasets` and `pretrained` list the usable entries, sorted by name.
    `algorithm(name)` and its siblings return one entry, or raise an error with the reason.
    """

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._live: list[tuple[Plugin, object, pluggy.PluginManager]] = []
        for entry_point in entry_points(PLUGINS):
            plugin = Plugin.of(entry_point)
            self.plugins.append(plugin)
            try:
                module = load(entry_point)
                with contained():  # looking at an object may run code of its class
                    self._register(plugin, module)
            except PluginError as error:
                plugin.fail(error.message, error.hint)
        self._kinds = {
            "algorithm": self._collect("register_algorithms", checks.check_algorithm),
            "backbone": self._collect("register_backbones", checks.check_backbone),
            "data set": self._collect("register_datasets", checks.check_dataset),
            "pretrained model": self._collect("register_pretrained", checks.check_card),
        }

    @property
    def algorithms(self) -> list[Entry[type[Algorithm]]]:
        return self._list("algorithm")

    @property
    def backbones(self) -> list[Entry[type[Backbone]]]:
        return self._list("backbone")

    @property
    def datasets(self) -> list[Entry[type[Dataset]]]:
        return self._list("data set")

    @property
    def pretrained(self) -> list[Entry[Path]]:
        return self._list("pretrained model")

    def algorithm(self, name: str) -> Entry[type[Algorithm]]:
        """Return the algorithm of that name, or raise UnknownNameError or PluginError."""
        return self._get("algorithm", name)

    def backbone(self, name: str) -> Entry[type[Backbone]]:
        """Return the backbone of that name, or raise UnknownNameError or PluginError."""
        return self._get("backbone", name)

    def dataset(self, name: str) -> Entry[type[Dataset]]:
        """Return the data set of that name, or raise UnknownNameError or PluginError."""
        return self._get("data set", name)

    def card(self, name: str) -> Entry[Path]:
        """Return the card of that pretrained model, or raise UnknownNameError or PluginError."""
        return self._get("pretrained model", name)

    def clashes(self) -> list[tuple[str, str, list[Plugin]]]:
        """Return the names that several plugins claim: kind, name and the plugins."""
        return [
            (kind, name, [entry.plugin for entry in entries])
            for kind, named in self._kinds.items()
            for name, entries in sorted(named.items())
            if len(entries) > 1
        ]

    def _register(self, plugin: Plugin, module: object) -> None:
        """Keep a plugin's module with its hooks. Raises PluginError if it is not usable."""
        if isinstance(module, type):
            raise PluginError(
                f"its entry point names the class {plugin.target}",
                "name the module, and return the class from its hook register_algorithms",
            )
        if any(module is other for _, other, _ in self._live):
            raise PluginError(f"{plugin.target} is already registered by another entry point")
        # With a manager each, every result has one owner and plugins cannot interfere.
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module)
        except Exception as error:  # pluggy reads every attribute of the module; any may raise
            raise PluginError(_signature_problem(module, error)) from error
        _check_hooks(manager, module)
        self._live.append((plugin, module, manager))

    def _collect(self, hook: str, check: Check) -> dict[str, list[Entry[Any]]]:
        found: dict[str, list[Entry[Any]]] = {}
        for plugin, _, manager in self._live:
            try:
                offered = _call(manager, hook)
            except PluginError as error:
                plugin.fail(error.message, error.hint)
                continue
            for name, value in offered:
                if (entry := _checked(plugin, hook, name, value, check)) is not None:
                    found.setdefault(name, []).append(entry)
                    plugin.provides.setdefault(hook.removeprefix("register_"), []).append(name)
        return found

    def _list(self, kind: str) -> list[Entry[Any]]:
        named = sorted(self._kinds[kind].items())
        return [entries[0] for _, entries in named if len(entries) == 1]

    def _get(self, kind: str, name: str) -> Entry[Any]:
        entries = self._kinds[kind].get(name, [])
        if len(entries) == 1:
            return entries[0]
        if entries:
            owners = " and ".join(entry.plugin.owner for entry in entries)
            raise PluginError(
                f"{kind} '{name}' is claimed by {owners}",
                f"`pip uninstall {shell_word(entries[-1].plugin.distribution)}`, "
                "or ask its author for another name",
            )
        for plugin in self.plugins:
            if plugin.problem and name in (plugin.name, plugin.distribution, *plugin.refused):
                raise PluginError(
                    f"{kind} '{name}' is unavailable: plugin {plugin.owner} failed to load\n"
                    f"  {plugin.problem}",
                    (f"{plugin.hint}, or " if plugin.hint else "")
                    + f"`pip uninstall {shell_word(plugin.distribution)}`; "
                    "`metazoo plugins` lists all plugins",
                )
        hint = f"{did_you_mean(name, self._kinds[kind])}`metazoo list` shows every {kind}"
        if any(plugin.problem for plugin in self.plugins):
            hint += "; some plugins do not work: `metazoo plugins` says why"
        raise UnknownNameError(f"no {kind} named '{name}'", hint)


@functools.cache
def registry() -> Registry:
    """Return the registry of this process, built on first use."""
    return Registry()


def _check_hooks(manager: pluggy.PluginManager, module: object) -> None:
    """Raise PluginError unless a module implements hooks, all of which exist."""
    callers = manager.get_hookcallers(module) or []
    if not callers:
        raise PluginError("it implements no hook", "mark its hooks with @metazoo.hookimpl")
    for caller in callers:
        optional = all(impl.optionalhook for impl in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            guess = did_you_mean(caller.name, HOOKS)
            raise PluginError(
                f"it implements the hook {caller.name}, which does not exist",
                (guess or "is the plugin made for another version of metazoo? ")
                + f"the hooks are {', '.join(HOOKS)}",
            )


def _call(manager: pluggy.PluginManager, hook: str) -> list[tuple[str, Any]]:
    """Return the names and values that a plugin's hook offers. Raises PluginError."""
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        return []
    try:
        with contained():
            results = caller() or [None]  # pluggy drops results that are None
    except PluginError as error:
        raise PluginError(f"its hook {hook} raised {error.message}", error.hint) from error
    with contained():
        return [item for result in results for item in checks.read_names(hook, result)]


def _checked(plugin: Plugin, hook: str, name: str, value: Any, check: Check) -> Entry[Any] | None:
    """Return the entry for a value that a hook offers; record why if it cannot be used."""
    try:
        check_name(name)
        with contained():
            return Entry(name, *check(name, value), plugin)
    except PluginError as error:
        what = f"its hook {hook} offers {name[:LONGEST_NAME]!r}, which cannot be used"
        plugin.fail(f"{what}: {error.message}", error.hint)
        plugin.refused.append(name)
        return None


def _signature_problem(module: object, error: Exception) -> str:
    for name, spec in HOOKS.items():
        implementation = getattr(module, name, None)
        if callable(implementation):
            wanted = list(inspect.signature(spec).parameters)
            given = list(inspect.signature(implementation).parameters)
            if set(given) - set(wanted):
                return (
                    f"its hook {name} takes ({', '.join(given)}); "
                    f"metazoo calls it with ({', '.join(wanted)})"
                )
    return f"{type(error).__name__}: {first_line(error)}"
