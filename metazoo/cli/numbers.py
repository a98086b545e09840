"""Whole numbers as options: `--queries 5`, `--shots 1,5`."""

from __future__ import annotations

from typing import Any

import click

from metazoo import options
from metazoo.errors import OptionError


class Number(click.ParamType):  # type: ignore[type-arg]
    """A whole number in a range; `--help` does not show the range."""

    name = "integer"

    def __init__(self, low: int, high: int | None = None):
        self.range = click.IntRange(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.range.convert(value, param, ctx)


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers of at least `low`, separated by commas."""

    name = "n,n,..."

    def __init__(self, low: int):
        self.low = low

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        option = options.Option("number", int, self.low, range=options.Range(self.low))
        try:
            return tuple(option.parse(part.strip()) for part in str(value).split(","))
        except OptionError:
            flag = param.opts[0] if param else "this option"
            raise OptionError(
                f"{flag} cannot be '{value}'",
                f"it takes whole numbers of at least {self.low}, separated by commas: {self.low},5",
            ) from None
