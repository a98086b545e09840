"""Options, declared as the fields of a frozen dataclass.

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        inner_lr: Annotated[float, "step size of the inner loop", Range(0)] = 0.4

The command line, `--help`, the metadata of checkpoints and the tables of the docs read them from
such a class.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from metazoo.errors import OptionError, did_you_mean

C = TypeVar("C", bound="Config")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Range(NamedTuple):
    """The closed interval of allowed numbers; an end of None is open."""

    low: float | None = None
    high: float | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end or 0:g}" for end in self)
        if self.high is None:
            return f"of at least {low}"
        return f"of at most {high}" if self.low is None else f"from {low} to {high}"


class Affects(enum.Enum):
    """What an option of an algorithm changes in a trained model, if not its answers.

    TRAINING: nothing, because only training reads it or the weights hold what it set. Loading a
    model refuses to override such an option.
    SPEED: how the answers are computed.
    """

    TRAINING = "training"
    SPEED = "speed"


@dataclass(frozen=True)
class Config:
    """Base class of a set of options: a frozen dataclass whose fields all have defaults."""


@dataclass(frozen=True)
class Option:
    """One option. `type` is int, float, bool or str; if `optional`, the value may be None.

    `affects` is None for an option that changes the answers of a trained model.
    """

    name: str
    type: type
    default: Any
    help: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    range: Range | None = None
    affects: Affects | None = None

    @property
    def expects(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        kind = kinds[self.type]
        return f"{kind} {self.range}" if self.range else kind

    def check(self, value: Any) -> Any:
        """Return the value in the option's type. Raises OptionError if it is not allowed."""
        if value is None and self.optional:
            return None
        if self.type is float and type(value) is int and abs(value) <= sys.float_info.max:
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
        """Return the value that a text stands for. Raises OptionError."""
        if self.optional and text.lower() == "none":
            return None
        try:
            value = _BOOLEANS[text.lower()] if self.type is bool else self.type(text)
        except (KeyError, ValueError):
            raise OptionError(
                f"option '{self.name}' cannot be '{text}'", f"it takes {self.expects}"
            ) from None
        return self.check(value)


def read(config: type) -> list[Option]:
    """Return the options that a Config class declares.

    Raises OptionError if a field has no default, a default that is not allowed, or a type that is
    not int, float, bool, str, a Literal of strings, or one of these with None.
    """
    # A subclass that is not decorated inherits its parent's attributes, but its own fields would be
    # missing.
    decorated = isinstance(config, type) and "__dataclass_fields__" in vars(config)
    if not decorated or not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        name = getattr(config, "__qualname__", repr(config))
        raise OptionError(
            f"{name} is not a frozen dataclass", "decorate it with @dataclass(frozen=True)"
        )
    try:
        hints = typing.get_type_hints(config, include_extras=True)
    except Exception as error:  # evaluating an annotation can raise anything
        raise OptionError(
            f"{config.__qualname__} has an annotation that cannot be read: {error}"
        ) from error
    return [_read_field(config, field, hints[field.name]) for field in dataclasses.fields(config)]


def _read_field(config: type, field: dataclasses.Field[Any], hint: Any) -> Option:
    where = f"field '{field.name}' of {config.__qualname__}"
    notes = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    kind, choices, optional = _read_type(typing.get_args(hint)[0] if notes else hint)
    if kind not in (int, float, bool, str):
        raise OptionError(
            f"{where} has the type {kind!r}, which options do not support",
            "use int, float, bool, str, a Literal of strings, or one of these with None",
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
        affects=next((n for n in notes if isinstance(n, Affects)), None),
    )
    try:
        option.check(field.default)
    except OptionError as error:
        raise OptionError(
            f"{where} has the default {field.default!r}, but takes {option.expects}"
        ) from error
    return option


def _read_type(annotation: Any) -> tuple[Any, tuple[str, ...], bool]:
    """Return the type of an option, its choices, and whether it may be None."""
    kind, optional = annotation, False
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        members = [m for m in typing.get_args(kind) if m is not type(None)]
        optional = len(members) < len(typing.get_args(kind))
        kind = members[0] if len(members) == 1 else kind
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if all(isinstance(choice, str) for choice in choices):
            return str, choices, optional
    return kind, (), optional


def build(config: type[C], values: Mapping[str, Any], owner: str) -> C:
    """Return a Config with these values. Raises OptionError if a value is not allowed.

    `owner` is its name in errors ("algorithm 'maml'").
    """
    options = {option.name: option for option in read(config)}
    for name in values:
        if name not in options:
            raise _no_option(name, options, owner)
    try:
        return config(**{name: options[name].check(value) for name, value in values.items()})
    except ValueError as error:  # from __post_init__ of a plugin's Config
        raise OptionError(f"{owner}: {error}") from error


def parse_assignments(
    config: type, assignments: typing.Iterable[str], owner: str
) -> dict[str, Any]:
    """Return the values of texts `name=value`, each in its option's type. Raises OptionError."""
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
            raise _no_option(name, options, owner)
        if name in values:
            raise OptionError(f"option '{name}' is given twice", "give it once")
        values[name] = options[name].parse(value.strip())
    return values


def _no_option(name: str, options: Mapping[str, Option], owner: str) -> OptionError:
    known = f"it has {', '.join(options)}" if options else "it has none"
    return OptionError(f"{owner} has no option '{name}'", did_you_mean(name, options) + known)


def as_dict(config: Config) -> dict[str, Any]:
    """Return the values of a Config as a dictionary for JSON."""
    return dataclasses.asdict(config)
