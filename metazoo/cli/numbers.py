"""Lists of whole numbers as options: `--shots 1,5`."""

from __future__ import annotations

from typing import Any

import click

from metazoo import options
from metazoo.errors import OptionError


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
