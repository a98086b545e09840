"""Options declared once, as the fields of a frozen dataclass, and read by everything that shows or takes them.

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        inner_lr: Annotated[float, "step size of the inner loop", Range(0)] = 0.4

The command line, `--help`, a checkpoint's metadata and the tables of the docs are all made from such a class.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from metazoo.errors import OptionError, did_you_mean

C = TypeVar("C", bound="Config")


class Range(NamedTuple):
    """The closed interval that a number must lie in; `None` leaves an end open."""

    low: float | None = None
    high: float | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"of at least {self.low:g}"
        if self.low is None:
            return f"of at most {self.high:g}"
        return f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Config:
    """Base of every set of options: a frozen dataclass whose fields all have a default."""


@dataclass(frozen=True)
class Option:
    """One option: `type` is int, float, bool or str; `optional` ones may also be None."""

    name: str
    type: type
    default: Any
    help: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    range: Range | None = None

    @property
    def expects(self) -> str:
        """The values that it takes, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[
            self.type
        ]
        return f"{kind} {self.range}" if self.range else kind

    def check(self, value: Any) -> Any:
        """Return the value in the option's own type, or raise OptionError."""
        if value is None and self.optional:
            return None
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wrong_type = not isinstance(value, self.type) or (
            isinstance(value, bool) and self.type is not bool
        )
        if (
            wrong_type
            or (self.choices and value not in self.choices)
            or (self.range is not None and value not in self.range)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise OptionError(
                f"option '{self.name}' cannot be {value!r}", f"it takes {self.expects}"
            )
        return value

    def parse(self, text: str) -> Any:
        """Return the value that a text stands for, or raise OptionError."""
        if self.optional and text.lower() == "none":
            return None
        try:
            if self.type is bool:
                value: Any = {
                    "true": True,
                    "yes": True,
                    "1": True,
                    "false": False,
                    "no": False,
                    "0": False,
                }[text.lower()]
            else:
                value = self.type(text)
        except (KeyError, ValueError):
            raise OptionError(
                f"option '{self.name}' cannot be '{text}'", f"it takes {self.expects}"
            ) from None
        return self.check(value)


def read(config: type) -> list[Option]:
    """Return the options that a Config class declares.

    Raises OptionError, naming the field, where one has no default, a type other than int, float, bool, str, a Literal
    of texts or one of these with `None`, or a default that it could not take itself.
    """
    # A subclass without the decorator has its parent's mark, and would lose its own fields unseen.
    decorated = isinstance(config, type) and "__dataclass_fields__" in vars(config)
    if not decorated or not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        name = getattr(config, "__qualname__", repr(config))
        raise OptionError(
            f"{name} is not a frozen dataclass", "decorate it with @dataclass(frozen=True)"
        )
    try:
        hints = typing.get_type_hints(config, include_extras=True)
    except Exception as error:  # an annotation may be any expression
        raise OptionError(
            f"{config.__qualname__} has an annotation that cannot be read: {error}"
        ) from error
    return [_read_field(config, field, hints[field.name]) for field in dataclasses.fields(config)]


def _read_field(config: type, field: dataclasses.Field[Any], hint: Any) -> Option:
    where = f"field '{field.name}' of {config.__qualname__}"
    notes = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    kind = typing.get_args(hint)[0] if notes else hint
    optional = False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(kind) if m is not type(None)]
        optional = len(members) < len(typing.get_args(kind))
        kind = members[0] if len(members) == 1 else kind
    choices: tuple[str, ...] = ()
    if typing.get_origin(kind) is typing.Literal and all(
        isinstance(c, str) for c in typing.get_args(kind)
    ):
        choices, kind = typing.get_args(kind), str
    if kind not in (int, float, bool, str):
        raise OptionError(
            f"{where} has the type {kind!r}, which no option can have",
            "use int, float, bool, str, a Literal of texts, or one of these with None",
        )
    if field.default is dataclasses.MISSING:
        raise OptionError(f"{where} has no default", "give every field a default value")
    option = Option(
        name=field.name,
        type=kind,
        default=field.default,
        help=next((n for n in notes if isinstance(n, str)), ""),
        choices=choices,
        optional=optional,
        range=next((n for n in notes if isinstance(n, Range)), None),
    )
    try:
        option.check(field.default)
    except OptionError as error:
        raise OptionError(
            f"{where} has the default {field.default!r}, but takes {option.expects}"
        ) from error
    return option


def build(config: type[C], values: Mapping[str, Any], owner: str) -> C:
    """Return a Config with these values, every one checked; `owner` names it in errors ("algorithm 'maml'")."""
    options = {option.name: option for option in read(config)}
    for name in values:
        if name not in options:
            raise OptionError(
                f"{owner} has no option '{name}'",
                did_you_mean(name, options)
                + (f"it has {', '.join(options)}" if options else "it has none"),
            )
    try:
        return config(**{name: options[name].check(value) for name, value in values.items()})
    except ValueError as error:  # what __post_init__ of a plugin's Config would raise
        raise OptionError(f"{owner}: {error}") from error


def parse_assignments(
    config: type, assignments: typing.Iterable[str], owner: str
) -> dict[str, Any]:
    """Return the values in texts of the form `name=value`, each in its option's type."""
    options = {option.name: option for option in read(config)}
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise OptionError(
                f"'{text}' is not of the form NAME=VALUE",
                f"the options are {', '.join(options)}" if options else None,
            )
        if name not in options:
            raise OptionError(
                f"{owner} has no option '{name}'",
                did_you_mean(name, options)
                + (f"it has {', '.join(options)}" if options else "it has none"),
            )
        values[name] = options[name].parse(value.strip())
    return values


def as_dict(config: Config) -> dict[str, Any]:
    """Return the values of a Config, ready for JSON."""
    return dataclasses.asdict(config)
