"""The registry: finds plugins by their entry points, loads them one by one, and keeps every result with its owner.

Found, loaded and working are three states. A plugin that cannot be loaded, or a hook of it that fails, is a value with
its cause (`Plugin.problem`), never an exception of the program: the rest works on, and asking for what the broken plugin would
have brought says why it is not there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
import pluggy

from metazoo.base.algorithm import Algorithm
from metazoo.base.backbone import Backbone
from metazoo.base.dataset import Dataset
from metazoo.errors import MetazooError, PluginError, UnknownNameError, did_you_mean, first_line
from metazoo.plugins import checks, hookspecs, marker

GROUP = "metazoo"
HOOKS = {
    name: spec
    for name, spec in inspect.getmembers(hookspecs, inspect.isfunction)
    if name.startswith("register_")
}
T = TypeVar("T")


@dataclass
class Plugin:
    """One entry point and what became of it; `problem` is None while it works, else a one-line cause and `hint` what to do.

    `provides` has the names that it registered, by kind, `refused` those that could not be used.
    """

    name: str
    target: str
    distribution: str
    version: str
    problem: str | None = None
    hint: str | None = None
    provides: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    @property
    def owner(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    def fail(self, problem: str, hint: str | None = None) -> None:
        """Record why the plugin does not work; the first cause stands."""
        if self.problem is None:
            self.problem, self.hint = " ".join(problem.split()), hint


@dataclass(frozen=True)
class Entry(Generic[T]):
    """Something registered under a name, and the plugin that it came from."""

    name: str
    value: T
    plugin: Plugin


class Registry:
    """Everything that the installed plugins register.

    `algorithms`, `backbones`, `datasets`, `pretrained` and `commands` list what works, sorted by name; `algorithm(name)`
    and its siblings return one entry or raise an error that says why there is none.
    """

    def __init__(self) -> None:
        self.plugins: list[Plugin] = []
        self._live: list[tuple[Plugin, object, pluggy.PluginManager]] = []
        for entry_point in _entry_points():
            self._load(entry_point)
        self._kinds = {
            "algorithm": self._collect("register_algorithms", checks.check_algorithm),
            "backbone": self._collect("register_backbones", checks.check_backbone),
            "data set": self._collect("register_datasets", checks.check_dataset),
            "pretrained model": self._collect("register_pretrained", checks.check_card),
            "command": self._collect_commands(),
        }

    def _load(self, entry_point: importlib.metadata.EntryPoint) -> None:
        distribution = entry_point.dist
        plugin = Plugin(
            entry_point.name,
            entry_point.value,
            distribution.metadata["Name"] if distribution else "unknown",
            distribution.version if distribution else "unknown",
        )
        self.plugins.append(plugin)
        if not entry_point.pattern.match(entry_point.value):
            return plugin.fail(
                f"its entry point names '{entry_point.value}', which is not of the form MODULE or MODULE:NAME"
            )
        try:
            with _stdout_to_stderr():
                module = entry_point.load()
        except (Exception, SystemExit) as error:  # importing a plugin runs anything
            return plugin.fail(*_import_problem(entry_point, error))
        if isinstance(module, type):
            return plugin.fail(
                f"its entry point names the class {plugin.target}",
                "name the module, and return the class from its hook register_algorithms",
            )
        if any(module is other for _, other, _ in self._live):
            return plugin.fail(f"{plugin.target} is registered already by another entry point")
        # A manager for each, so that every result has one owner, and no plugin can touch the call of another's hooks.
        manager = pluggy.PluginManager(marker.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module)
        except Exception as error:  # pluggy reads every attribute of the module, and any may raise
            return plugin.fail(_signature_problem(module, error))
        callers = manager.get_hookcallers(module) or []
        if not callers:
            return plugin.fail("it implements no hook", "decorate its hooks with @metazoo.hookimpl")
        for caller in callers:
            if not caller.has_spec() and not all(
                impl.optionalhook for impl in caller.get_hookimpls()
            ):
                return plugin.fail(
                    f"it implements the hook {caller.name}, which does not exist",
                    (
                        did_you_mean(caller.name, HOOKS)
                        or "is the plugin made for another version of metazoo? "
                    )
                    + f"the hooks are {', '.join(HOOKS)}",
                )
        self._live.append((plugin, module, manager))

    def _call(
        self, plugin: Plugin, manager: pluggy.PluginManager, hook: str, **arguments: Any
    ) -> list[Any]:
        caller = getattr(manager.hook, hook)
        if not caller.get_hookimpls():
            return []
        try:
            with _stdout_to_stderr():
                # pluggy leaves out what is None.
                return caller(**arguments) or [None]
        except (Exception, SystemExit) as error:  # a hook runs anything
            plugin.fail(f"its hook {hook} raised {type(error).__name__}: {first_line(error)}")
            return []

    def _collect(self, hook: str, check: Callable[[str, Any], None]) -> dict[str, list[Entry[Any]]]:
        found: dict[str, list[Entry[Any]]] = {}
        for plugin, _, manager in self._live:
            for result in self._call(plugin, manager, hook):
                if not isinstance(result, Mapping) or not all(
                    isinstance(name, str) for name in result
                ):
                    kind = "None" if result is None else type(result).__name__
                    plugin.fail(f"its hook {hook} returned {kind}, not a dictionary of names")
                    continue
                _keep(found, plugin, hook, result, check)
        return found

    def _collect_commands(self) -> dict[str, list[Entry[click.Command]]]:
        found: dict[str, list[Entry[click.Command]]] = {}
        for plugin, _, manager in self._live:
            # A group for each, so that no command takes the place of another unseen.
            group = click.Group()
            self._call(plugin, manager, "register_commands", cli=group)
            _keep(found, plugin, "register_commands", group.commands, checks.check_command)
        return found

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

    @property
    def commands(self) -> list[Entry[click.Command]]:
        return self._list("command")

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
        """Return the card of the pretrained model of that name, or raise UnknownNameError or PluginError."""
        return self._get("pretrained model", name)

    def command(self, name: str) -> Entry[click.Command]:
        """Return the command of that name, or raise UnknownNameError or PluginError."""
        return self._get("command", name)

    def clashes(self) -> list[tuple[str, str, list[Plugin]]]:
        """Return the names that more than one plugin claims: kind, name and the plugins."""
        return [
            (kind, name, [entry.plugin for entry in entries])
            for kind, named in self._kinds.items()
            for name, entries in sorted(named.items())
            if len(entries) > 1
        ]

    def _list(self, kind: str) -> list[Entry[Any]]:
        return [entries[0] for _, entries in sorted(self._kinds[kind].items()) if len(entries) == 1]

    def _get(self, kind: str, name: str) -> Entry[Any]:
        entries = self._kinds[kind].get(name, [])
        if len(entries) == 1:
            return entries[0]
        if entries:
            owners = " and ".join(entry.plugin.owner for entry in entries)
            raise PluginError(
                f"{kind} '{name}' is claimed by {owners}",
                f"`pip uninstall {entries[-1].plugin.distribution}`, or ask its author for another name",
            )
        broken = [
            p for p in self.plugins if p.problem and name in (p.name, p.distribution, *p.refused)
        ]
        if broken:
            raise PluginError(
                f"{kind} '{name}' is unavailable: plugin {broken[0].owner} failed to load\n  {broken[0].problem}",
                (f"{broken[0].hint}, or " if broken[0].hint else "")
                + f"`pip uninstall {broken[0].distribution}`; `metazoo plugins` lists all plugins",
            )
        built_in, shows = (checks.COMMANDS, "--help") if kind == "command" else (set(), "list")
        hint = f"{did_you_mean(name, [*self._kinds[kind], *built_in])}`metazoo {shows}` shows every {kind}"
        if any(plugin.problem for plugin in self.plugins):
            hint += "; some plugins do not work: `metazoo plugins` says why"
        raise UnknownNameError(f"no {kind} named '{name}'", hint)


@functools.cache
def registry() -> Registry:
    """Return the registry of this process, made when first asked for."""
    return Registry()


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    """Return the entry points of the group, sorted: install order must not decide anything."""
    found: dict[tuple[str, str, str], importlib.metadata.EntryPoint] = {}
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        # A directory that stands twice on sys.path shows its distributions twice.
        dist = entry_point.dist
        found.setdefault(
            (entry_point.name, entry_point.value, dist.metadata["Name"] if dist else ""),
            entry_point,
        )
    return [found[key] for key in sorted(found)]


def _stdout_to_stderr() -> contextlib.AbstractContextManager[Any]:
    # stdout is data: what a plugin prints while it loads is talk.
    return contextlib.redirect_stdout(sys.stderr)


def _keep(
    found: dict[str, list[Entry[Any]]],
    plugin: Plugin,
    hook: str,
    result: Mapping[str, Any],
    check: Callable[[str, Any], None],
) -> None:
    for name, value in result.items():
        try:
            check(name, value)
        except Exception as error:  # a property of a plugin's class may raise anything
            cause = (
                error.message
                if isinstance(error, MetazooError)
                else f"{type(error).__name__}: {error}"
            )
            plugin.fail(
                f"its hook {hook} offers an unusable '{name}': {cause}",
                getattr(error, "hint", None),
            )
            plugin.refused.append(name)
        else:
            found.setdefault(name, []).append(Entry(name, value, plugin))
            plugin.provides.setdefault(hook.removeprefix("register_"), []).append(name)


def _import_problem(
    entry_point: importlib.metadata.EntryPoint, error: BaseException
) -> tuple[str, str | None]:
    """Return why an entry point could not be loaded, and what to do."""
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    nowhere = bool(missing) and f"{entry_point.module}.".startswith(f"{missing}.")
    # A module whose import fails is taken out of sys.modules again: there it has no such attribute.
    if nowhere or (isinstance(error, AttributeError) and entry_point.module in sys.modules):
        return (
            f"its entry point names {entry_point.value}, which does not exist: {first_line(error)}",
            None,
        )
    package = missing.partition(".")[0]
    foreign = package and package != entry_point.module.partition(".")[0]
    return (
        f"{type(error).__name__}: {first_line(error)}",
        f"`pip install {package}`" if foreign else None,
    )


def _signature_problem(module: object, error: Exception) -> str:
    for name, spec in HOOKS.items():
        implementation = getattr(module, name, None)
        if callable(implementation):
            wanted, given = (
                list(inspect.signature(spec).parameters),
                list(inspect.signature(implementation).parameters),
            )
            if set(given) - set(wanted):
                return f"its hook {name} takes ({', '.join(given)}); metazoo calls it with ({', '.join(wanted)})"
    return f"{type(error).__name__}: {first_line(error)}"
