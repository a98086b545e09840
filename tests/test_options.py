"""Options: read from a Config, checked, built, and parsed from text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional

import pytest

import metazoo
from metazoo import options
from metazoo.options import Range


@dataclass(frozen=True)
class Config(metazoo.Config):
    rate: Annotated[float, "step size", Range(0)] = 0.5
    steps: Annotated[int, "how many", Range(1, 10)] = 3
    fast: Annotated[bool, "hurry"] = False
    name: str = "x"
    kind: Annotated[Literal["a", "b"], "which"] = "a"
    limit: Annotated[int | None, "at most", Range(1)] = None
    old: Optional[float] = None  # noqa: UP045
    choice: Literal["c", "d"] | None = None


def option(name: str) -> options.Option:
    return next(o for o in options.read(Config) if o.name == name)


def test_what_a_config_declares_is_read() -> None:
    read = {o.name: o for o in options.read(Config)}
    assert list(read) == ["rate", "steps", "fast", "name", "kind", "limit", "old", "choice"]
    assert read["rate"] == options.Option("rate", float, 0.5, "step size", range=Range(0))
    assert read["steps"] == options.Option("steps", int, 3, "how many", range=Range(1, 10))
    assert read["fast"] == options.Option("fast", bool, False, "hurry")
    assert read["name"] == options.Option("name", str, "x")
    assert read["kind"] == options.Option("kind", str, "a", "which", choices=("a", "b"))
    assert read["limit"] == options.Option(
        "limit", int, None, "at most", optional=True, range=Range(1)
    )
    assert read["old"] == options.Option("old", float, None, optional=True)
    assert read["choice"] == options.Option("choice", str, None, choices=("c", "d"), optional=True)


def test_a_subclass_has_its_parents_options_too() -> None:
    @dataclass(frozen=True)
    class More(Config):
        steps: int = 5
        extra: int = 1

    read = {o.name: o.default for o in options.read(More)}
    assert read["rate"] == 0.5
    assert (read["steps"], read["extra"]) == (5, 1)


def made(annotation: Any, default: Any = dataclasses.MISSING, **decoration: bool) -> type:
    field = (
        dataclasses.field()
        if default is dataclasses.MISSING
        else dataclasses.field(default=default)
    )
    return dataclasses.make_dataclass(
        "Bad", [("alpha", annotation, field)], **({"frozen": True} | decoration)
    )


class Undecorated(Config):
    alpha: float = 0.1


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (made(float), "'alpha' of Bad has no default"),
        (made(dict, None), "'alpha' of Bad has the type <class 'dict'>"),
        (made(list[int], None), "'alpha' of Bad has the type"),
        (made(int | float, 1), "'alpha' of Bad has the type"),
        (made(Literal["a", 1], "a"), "'alpha' of Bad has the type"),
        (made("Flaot", 1), "Bad has an annotation that cannot be read"),
        (made(int, 0.5), "'alpha' of Bad has the default 0.5"),
        (made(bool, 1), "'alpha' of Bad has the default 1"),
        (made(int, True), "'alpha' of Bad has the default True"),
        (made(int, None), "'alpha' of Bad has the default None"),
        (made(float, float("nan")), "'alpha' of Bad has the default nan"),
        (made(Literal["a"], "b"), "'alpha' of Bad has the default 'b'"),
        (
            made(Annotated[int, Range(1)], 0),
            "'alpha' of Bad has the default 0, but takes a whole number",
        ),
        (made(float, 0.1, frozen=False), "Bad is not a frozen dataclass"),
        (Undecorated, "Undecorated is not a frozen dataclass"),
        (dict, "dict is not a frozen dataclass"),
        (None, "None is not a frozen dataclass"),
    ],
)
def test_a_config_that_cannot_be_offered_is_refused_by_name(config: Any, problem: str) -> None:
    with pytest.raises(metazoo.OptionError) as caught:
        options.read(config)
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rate", "0.25", 0.25),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("steps", "10", 10),
        ("fast", "true", True),
        ("fast", "No", False),
        ("fast", "1", True),
        ("name", "None", "None"),
        ("name", "", ""),
        ("kind", "b", "b"),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("old", "None", None),
        ("choice", "none", None),
        ("choice", "d", "d"),
    ],
)
def test_texts_are_parsed(name: str, text: str, value: Any) -> None:
    parsed = option(name).parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "expects"),
    [
        ("rate", "fast", "a number"),
        ("rate", "-0.1", "at least 0"),
        ("rate", "nan", "a number"),
        ("rate", "inf", "a number"),
        ("rate", "none", "a number"),
        ("steps", "2.5", "a whole number"),
        ("steps", "0", "from 1 to 10"),
        ("steps", "11", "from 1 to 10"),
        ("fast", "maybe", "true or false"),
        ("kind", "c", "one of a, b"),
        ("limit", "0", "at least 1"),
        ("choice", "a", "one of c, d"),
    ],
)
def test_texts_that_an_option_cannot_take_are_refused(name: str, text: str, expects: str) -> None:
    with pytest.raises(metazoo.OptionError, match=f"option '{name}' cannot be '?{text}") as caught:
        option(name).parse(text)
    assert expects in (caught.value.hint or "")


def test_values_are_checked_and_take_the_type_of_the_option() -> None:
    config = options.build(Config, {"rate": 2, "limit": None}, "it")
    assert config == Config(rate=2.0)
    assert isinstance(config.rate, float)
    for values in (
        {"steps": 2.0},
        {"steps": True},
        {"fast": 1},
        {"rate": "0.1"},
        {"kind": None},
        {"name": None},
    ):
        with pytest.raises(metazoo.OptionError, match="cannot be"):
            options.build(Config, values, "it")


def test_an_unknown_option_is_refused_with_the_closest_name() -> None:
    with pytest.raises(
        metazoo.OptionError, match="algorithm 'maml' has no option 'step'"
    ) as caught:
        options.build(Config, {"step": 2}, "algorithm 'maml'")
    assert "did you mean 'steps'?" in (caught.value.hint or "")
    with pytest.raises(metazoo.OptionError, match="no option 'x'") as caught:
        options.build(metazoo.Config, {"x": 2}, "it")
    assert caught.value.hint == "it has none"


def test_what_a_config_itself_refuses_is_an_option_error() -> None:
    @dataclass(frozen=True)
    class Ordered(metazoo.Config):
        low: float = 0.0
        high: float = 1.0

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low {self.low} is above high {self.high}")

    with pytest.raises(metazoo.OptionError, match=r"data set 'x': low 2\.0 is above high 1\.0"):
        options.build(Ordered, {"low": 2}, "data set 'x'")


def test_assignments_are_parsed() -> None:
    texts = ["rate=0.1", "kind = b", "limit=none", "name=a=b"]
    assert options.parse_assignments(Config, texts, "it") == {
        "rate": 0.1,
        "kind": "b",
        "limit": None,
        "name": "a=b",
    }
    with pytest.raises(metazoo.OptionError, match="'rate' is not of the form NAME=VALUE"):
        options.parse_assignments(Config, ["rate"], "it")
    with pytest.raises(metazoo.OptionError, match="it has no option 'rat'") as caught:
        options.parse_assignments(Config, ["rat=1"], "it")
    assert "did you mean 'rate'?" in (caught.value.hint or "")


def test_options_survive_json() -> None:
    config = Config(rate=0.1, fast=True, limit=3)
    assert options.build(Config, json.loads(json.dumps(options.as_dict(config))), "it") == config


def test_ranges_contain_their_ends() -> None:
    assert 1 in Range(1, 2)
    assert 2 in Range(1, 2)
    assert 0.99 not in Range(1, 2)
    assert 2.01 not in Range(1, 2)
    assert 10**9 in Range(1)
    assert -(10**9) in Range(None, 1)
    assert "1" not in Range(1)
    assert float("nan") not in Range(0)
