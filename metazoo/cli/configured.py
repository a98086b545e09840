"""Commands whose options come from the Config classes of what their arguments name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from metazoo import options
from metazoo.errors import OptionError


@dataclass(frozen=True)
class Section:
    """The options of one Config class.

    `key` is the parameter of the command's callback that receives their values. `prefix` comes
    before their names. `usual` holds defaults that differ from those of the Config.
    """

    key: str
    title: str
    prefix: str
    config: type
    usual: Mapping[str, Any]


class OptionType(click.ParamType):  # type: ignore[type-arg]
    """Parses the text of an option. Errors say what the option takes."""

    def __init__(self, option: options.Option, flag: str):
        self.option, self.flag = option, flag
        self.name = {int: "integer", float: "number", str: "text", bool: "true|false"}[option.type]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        choices = self.option.choices
        return f"[{'|'.join(choices)}]" if choices else self.name.upper()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.option.parse(value)
        except OptionError:
            raise OptionError(
                f"{self.flag} cannot be '{value}'", f"it takes {self.option.expects}"
            ) from None


class ConfiguredCommand(click.Command):
    """A click command with further options, which depend on the arguments.

    The callback receives a dictionary for each section: the values that were given.
    """

    def sections(self, arguments: Sequence[str]) -> list[Section]:
        """Return the sections of options that unparsed arguments call for."""
        raise NotImplementedError

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["sections"] = self.sections(list(args))
        rest = super().parse_args(ctx, args)
        for section in ctx.meta["sections"]:
            given = {}
            for option in options.read(section.config):
                name = _parameter_name(section, option)
                value = ctx.params.pop(name, None)
                if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                    given[option.name] = value
            ctx.params[section.key] = given
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        more = [p for section in ctx.meta.get("sections", ()) for p in _parameters(section)]
        return [*own[:-1], *more, own[-1]]  # --help stays last

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in ctx.meta.get("sections", ()):
            _write_options(ctx, formatter, section.title, _parameters(section))
        own = [p for p in super().get_params(ctx) if isinstance(p, click.Option)]
        _write_options(ctx, formatter, "Options", own)


def find_value(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value of an option among unparsed arguments, the last one if it is repeated."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def data_section(name: str, usual: Mapping[str, Any] = {}) -> Section:
    """Return the section of a data set, by name. `usual` overrides defaults of its options."""
    from metazoo.plugins import registry

    config = registry().dataset(name).value.Config
    return Section("dataset_options", f"Options of data set {name}", "data-", config, usual)


def algorithm_values(name: str, assignments: Iterable[str]) -> dict[str, Any]:
    """Parse texts of the form NAME=VALUE as options of an algorithm, and return the values."""
    from metazoo.plugins import registry

    config = registry().algorithm(name).value.Config
    return options.parse_assignments(config, assignments, f"algorithm '{name}'")


def _parameter_name(section: Section, option: options.Option) -> str:
    return f"{section.key}__{option.name}"


def _parameters(section: Section) -> list[click.Option]:
    return [_parameter(section, option) for option in options.read(section.config)]


def _parameter(section: Section, option: options.Option) -> click.Option:
    dashed = section.prefix + option.name.replace("_", "-")
    usual = section.usual.get(option.name, option.default)
    help_text = option.help
    if usual not in (None, ""):
        # A recipe's own value replaces a default that the help text describes in words.
        shown = str(usual).lower() if option.type is bool else usual
        help_text = f"{option.help.partition('  [default: ')[0]}  [default: {shown}]"
    name = _parameter_name(section, option)
    if option.type is bool:
        return click.Option([f"--{dashed}/--no-{dashed}", name], default=None, help=help_text)
    kind = OptionType(option, f"--{dashed}")
    return click.Option([f"--{dashed}", name], default=None, help=help_text, type=kind)


def _write_options(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    title: str,
    parameters: Iterable[click.Option],
) -> None:
    rows = [record for parameter in parameters if (record := parameter.get_help_record(ctx))]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
