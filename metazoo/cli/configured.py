"""Commands whose options come from Config classes: what `--help` shows depends on the names among the arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from metazoo import options
from metazoo.errors import OptionError
from metazoo.plugins.registry import registry


@dataclass(frozen=True)
class Section:
    """A group of options: `key` is where their values go, `prefix` stands before their names."""

    key: str
    title: str
    prefix: str
    config: type
    usual: Mapping[str, Any]


class OptionType(click.ParamType):  # type: ignore[type-arg]
    """Parses an option's text, with the option's own words where it cannot."""

    def __init__(self, option: options.Option, flag: str):
        self.option, self.flag = option, flag
        self.name = {int: "integer", float: "number", str: "text", bool: "true|false"}[option.type]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self.option.choices)}]" if self.option.choices else self.name.upper()

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
    """A click command that gains the options of `sections(arguments)` before it parses them.

    The callback gets, under each section's key, the values that were given.
    """

    def sections(self, arguments: Sequence[str]) -> list[Section]:
        """Return the sections that these arguments call for."""
        raise NotImplementedError

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["sections"] = self.sections(list(args))
        rest = super().parse_args(ctx, args)
        for section in ctx.meta["sections"]:
            given = {}
            for option in options.read(section.config):
                value = ctx.params.pop(_destination(section, option), None)
                if (
                    ctx.get_parameter_source(_destination(section, option))
                    is click.core.ParameterSource.COMMANDLINE
                ):
                    given[option.name] = value
            ctx.params[section.key] = given
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        more = [p for section in ctx.meta.get("sections", ()) for _, p in _parameters(section)]
        # --help stays last.
        return [*own[:-1], *more, own[-1]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in ctx.meta.get("sections", ()):
            rows = [record for _, p in _parameters(section) if (record := p.get_help_record(ctx))]
            if rows:
                with formatter.section(section.title):
                    formatter.write_dl(rows)
        own = [p for p in super().get_params(ctx) if isinstance(p, click.Option)]
        rows = [record for p in own if (record := p.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(rows)


def find_value(arguments: Sequence[str], flag: str) -> str | None:
    """Return the value that an option has among unparsed arguments, the last if it is there more than once."""
    value = None
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def data_section(name: str, usual: Mapping[str, Any] = {}) -> Section:
    """Return the options of a data set, by name; `usual` are values that differ from its defaults."""
    return Section(
        "dataset_options",
        f"Options of data set {name}",
        "data-",
        registry().dataset(name).value.Config,
        usual,
    )


def algorithm_values(name: str, assignments: Iterable[str]) -> dict[str, Any]:
    """Return the values of options of an algorithm, by name, in texts of the form NAME=VALUE."""
    return options.parse_assignments(
        registry().algorithm(name).value.Config, assignments, f"algorithm '{name}'"
    )


def _destination(section: Section, option: options.Option) -> str:
    return f"{section.key}__{option.name}"


def _parameters(section: Section) -> list[tuple[options.Option, click.Option]]:
    result = []
    for option in options.read(section.config):
        flag = "--" + section.prefix + option.name.replace("_", "-")
        negative = "--no-" + section.prefix + option.name.replace("_", "-")
        usual = section.usual.get(option.name, option.default)
        shown = f"  [default: {str(usual).lower() if option.type is bool else usual}]"
        # A help text may name a default that depends on other options; a recipe's own value takes its place.
        help_text = (
            option.help if usual in (None, "") else option.help.partition("  [default: ")[0] + shown
        )
        parameter = click.Option(
            [f"{flag}/{negative}" if option.type is bool else flag, _destination(section, option)],
            default=None,
            help=help_text,
            **({} if option.type is bool else {"type": OptionType(option, flag)}),  # type: ignore[arg-type]
        )
        result.append((option, parameter))
    return result
