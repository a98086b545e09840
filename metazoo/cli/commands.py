"""The commands: metazoo's own and those of plugins, each imported only when it is used."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint

import click

from metazoo.cli.terminal import plain_streams
from metazoo.errors import PluginError, UnknownNameError, did_you_mean
from metazoo.plugins.containment import contained
from metazoo.plugins.entry_points import COMMANDS, entry_points, is_name, load, owner
from metazoo.quoting import shell_word

BUILT_IN = {
    "list": "metazoo.cli.listing:list_",
    "train": "metazoo.cli.training:train",
    "eval": "metazoo.cli.evaluation:eval_",
    "predict": "metazoo.cli.prediction:predict",
    "export": "metazoo.cli.exporting:export",
    "push": "metazoo.cli.pushing:push",
    "data": "metazoo.cli.packing:data",
    "plugins": "metazoo.cli.listing:plugins",
    "info": "metazoo.cli.listing:info",
}


class Commands(click.Group):
    """The built-in commands and those of the entry-point group `metazoo.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        added = [name for name in plugin_commands() if name not in BUILT_IN and is_name(name)]
        return [*BUILT_IN, *added]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in BUILT_IN:
            module, _, attribute = BUILT_IN[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        if found := plugin_commands().get(name):
            command = resolve(found)
            ctx.with_resource(plain_streams())  # its output is its own
            return command
        if ctx.resilient_parsing:  # a shell completes words
            return None
        hint = did_you_mean(name, self.list_commands(ctx)) + "`metazoo --help` shows every command"
        raise UnknownNameError(f"no command named '{name}'", hint)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands; those of plugins are listed without importing them."""
        rows = []
        for name in self.list_commands(ctx):
            if name in BUILT_IN:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str(limit=90) if command else ""))
            else:
                owners = {" ".join(owner(entry_point)) for entry_point in plugin_commands()[name]}
                rows.append((name, f"from {' and '.join(sorted(owners))}"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def plugin_commands() -> dict[str, list[EntryPoint]]:
    """Return the commands that plugins declare, by name; several plugins may claim one name."""
    found: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(COMMANDS):
        found.setdefault(entry_point.name, []).append(entry_point)
    return found


def resolve(found: list[EntryPoint]) -> click.Command:
    """Return the command that entry points of one name declare, or raise PluginError.

    The last line of the error's message says why the command cannot be used.
    """
    entry_point = found[0]
    name, (distribution, version) = entry_point.name, owner(entry_point)
    if name in BUILT_IN:
        raise PluginError(f"metazoo has its own command '{name}'", "its author must rename it")
    if len(found) > 1:
        owners = " and ".join(" ".join(owner(each)) for each in found)
        raise PluginError(
            f"command '{name}' is claimed by {owners}",
            f"`pip uninstall {shell_word(owner(found[-1])[0])}`, or ask its author for another name",
        )
    try:
        command = load(entry_point)
        with contained():
            return _checked(entry_point.value, command)
    except PluginError as error:
        raise PluginError(
            f"command '{name}' is unavailable: plugin {distribution} {version} failed to load\n"
            f"  {error.message}",
            f"{f'{error.hint}, or ' if error.hint else ''}`pip uninstall {shell_word(distribution)}`",
        ) from error


def _checked(where: str, command: object) -> click.Command:
    """Return a command. Raises PluginError unless it and its subcommands are click commands."""
    if not isinstance(command, click.Command):
        raise PluginError(f"{where} is not a click command")
    todo, seen = [command], set[int]()
    while todo:
        group = todo.pop()
        if isinstance(group, click.Group) and id(group) not in seen:
            seen.add(id(group))
            for name, subcommand in dict(group.commands).items():
                if not (isinstance(name, str) and isinstance(subcommand, click.Command)):
                    raise PluginError(f"{where} has {name!r}, which is not a click command")
                todo.append(subcommand)
    return command
