"""The registry: finds plugins by their entry points, loads them one by one, and keeps every result with its owner.

Found, loaded and working are three states. A plugin that cannot be loaded, or a hook of it that fails, is a value with
its cause (`Plugin.problem`), never an exception of the program: the rest works on, and asking for what the broken plugin would
have brought says why it is not there.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pluggy

from . import hookspecs, options
from .algorithm import Algorithm, Recipe
from .backbones import Backbone
from .episodes import Dataset
from .errors import MetazooError, OptionError, PluginError, UnknownNameError, did_you_mean

GROUP = "metazoo"
T = TypeVar("T")


@dataclass
class Plugin:
    """One entry point and what became of it; `problem` is None while it works, else a one-line cause and `hint` what to do."""

    name: str
    target: str
    distribution: str
    version: str
    problem: str | None = None
    hint: str | None = None
    provides: dict[str, list[str]] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    def fail(self, problem: str, hint: str | None = None) -> None:
        """Record why the plugin does not work; the first cause stands."""
        if self.problem is None:
            self.problem, self.hint = problem, hint


@dataclass(frozen=True)
class Entry(Generic[T]):
    """Something registered under a name, and the plugin that it came from."""

    name: str
    value: T
    plugin: Plugin


class Registry:
    """Everything that the installed plugins register.

    `algorithms`, `backbones`, `datasets` and `pretrained` list what works, sorted by name; `algorithm(name)` and its
    siblings return one entry or raise an error that says why there is none.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self._live: list[tuple[Plugin, str]] = []
        for entry_point in _entry_points():
            self._load(entry_point)
        self._kinds = {
            "algorithm": self._collect("register_algorithms", _check_algorithm),
            "backbone": self._collect("register_backbones", _check_backbone),
            "data set": self._collect("register_datasets", _check_dataset),
            "pretrained model": self._collect("register_pretrained", _check_card),
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
        try:
            module = entry_point.load()
        except ModuleNotFoundError as error:
            if error.name and not entry_point.module.startswith(error.name):
                plugin.fail(f"ModuleNotFoundError: {error}", f"`pip install {error.name.partition('.')[0]}`")
            else:
                plugin.fail(f"its entry point names {entry_point.value}, which does not exist: {error}")
        except AttributeError as error:
            plugin.fail(f"its entry point names {entry_point.value}, which cannot be read: AttributeError: {error}")
        except (Exception, SystemExit) as error:  # importing a plugin runs anything
            plugin.fail(f"{type(error).__name__}: {_first_line(error)}")
        else:
            self._register(plugin, module)

    def _register(self, plugin: Plugin, module: object) -> None:
        if isinstance(module, type):
            return plugin.fail(
                f"its entry point names the class {plugin.target}",
                "name the module, and return the class from its hook register_algorithms",
            )
        key = f"{plugin.distribution}:{plugin.name}"
        try:
            if self._manager.register(module, key) is None:
                return plugin.fail(f"{key} is blocked")
        except ValueError:
            return plugin.fail(f"{plugin.target} is registered already by another entry point")
        except pluggy.PluginValidationError as error:
            return plugin.fail(_signature_problem(module, error))
        callers = self._manager.get_hookcallers(module) or []
        unknown = [c.name for c in callers if not c.has_spec() and not _optional(c, module)]
        if unknown or not callers:
            self._manager.unregister(module)
            known = [name for name in vars(self._manager.hook) if name.startswith("register_")]
            if not unknown:
                return plugin.fail("it implements no hook", "decorate its hooks with @metazoo.hookimpl")
            guess = did_you_mean(unknown[0], known)
            return plugin.fail(
                f"it implements the hook {unknown[0]}, which does not exist",
                guess or f"the hooks are {', '.join(known)}; is the plugin made for another version of metazoo?",
            )
        self._live.append((plugin, key))

    def _call(self, plugin: Plugin, key: str, hook: str, **arguments: Any) -> list[Any]:
        others = [p for p in self._manager.get_plugins() if self._manager.get_name(p) != key]
        try:
            return self._manager.subset_hook_caller(hook, others)(**arguments)
        except (Exception, SystemExit) as error:  # a hook runs anything
            plugin.fail(f"its hook {hook} raised {type(error).__name__}: {_first_line(error)}")
            return []

    def _collect(self, hook: str, check: Callable[[str, Any], None]) -> dict[str, list[Entry[Any]]]:
        found: dict[str, list[Entry[Any]]] = {}
        for plugin, key in self._live:
            for result in self._call(plugin, key, hook):
                if not isinstance(result, Mapping) or not all(isinstance(name, str) for name in result):
                    plugin.fail(f"its hook {hook} returned {type(result).__name__}, not a dictionary of names")
                    continue
                for name, value in result.items():
                    try:
                        check(name, value)
                    except MetazooError as error:
                        plugin.fail(f"its hook {hook} returned an unusable '{name}': {error.message}", error.hint)
                        continue
                    found.setdefault(name, []).append(Entry(name, value, plugin))
                    plugin.provides.setdefault(hook.removeprefix("register_"), []).append(name)
        return found

    def add_commands(self, cli: Any) -> None:
        """Let every plugin add its commands to a click group."""
        for plugin, key in self._live:
            self._call(plugin, key, "register_commands", cli=cli)

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
        """Return the card of the pretrained model of that name, or raise UnknownNameError or PluginError."""
        return self._get("pretrained model", name)

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
        broken = [p for p in self.plugins if p.problem and name in (p.name, p.distribution)]
        if broken:
            raise PluginError(
                f"{kind} '{name}' is unavailable: plugin {broken[0].owner} failed to load\n  {broken[0].problem}",
                (f"{broken[0].hint}, or " if broken[0].hint else "")
                + f"`pip uninstall {broken[0].distribution}`; `metazoo plugins` lists all plugins",
            )
        raise UnknownNameError(
            f"no {kind} named '{name}'", f"{did_you_mean(name, self._kinds[kind])}`metazoo list` shows every {kind}"
        )


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
        found.setdefault((entry_point.name, entry_point.value, dist.metadata["Name"] if dist else ""), entry_point)
    return [found[key] for key in sorted(found)]


def _first_line(error: BaseException) -> str:
    return (str(error) or "no message").splitlines()[0]


def _optional(caller: pluggy.HookCaller, module: object) -> bool:
    return all(impl.optionalhook for impl in caller.get_hookimpls() if impl.plugin is module)


def _signature_problem(module: object, error: Exception) -> str:
    for name, spec in inspect.getmembers(hookspecs, inspect.isfunction):
        implementation = getattr(module, name, None)
        if name.startswith("register_") and callable(implementation):
            wanted, given = list(inspect.signature(spec).parameters), list(inspect.signature(implementation).parameters)
            if set(given) - set(wanted):
                return f"its hook {name} takes ({', '.join(given)}); metazoo calls it with ({', '.join(wanted)})"
    return _first_line(error)


def _check_class(value: Any, base: type) -> None:
    if not (isinstance(value, type) and issubclass(value, base)):
        raise PluginError(f"{value!r} is not a subclass of metazoo.{base.__name__}")
    options.read(value.Config)  # type: ignore[attr-defined]


def _check_algorithm(name: str, value: Any) -> None:
    _check_class(value, Algorithm)
    shared = {o.name for o in options.read(value.Config)} & {o.name for o in options.read(Recipe)}
    if shared:
        raise OptionError(
            f"field '{min(shared)}' of {value.Config.__qualname__} has the name of a training option", "give it another name"
        )
    options.build(Recipe, value.recipe, f"the recipe of {name}")


def _check_backbone(name: str, value: Any) -> None:
    _check_class(value, Backbone)


def _check_dataset(name: str, value: Any) -> None:
    _check_class(value, Dataset)
    options.build(Recipe, value.recipe, f"the recipe of {name}")


def _check_card(name: str, value: Any) -> None:
    if not isinstance(value, (str, os.PathLike)) or not Path(value).is_file():
        raise PluginError(f"{value!r} is not the path of a model card")
