"""Checks of what plugins register; the rest of metazoo trusts what passes.

Each check returns the value to register and a line about it, or raises PluginError or OptionError.
`containment.contained` must surround it: it runs a plugin's code, such as properties of its classes.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from metazoo import options
from metazoo.base.algorithm import Algorithm, FeatureLearner
from metazoo.base.backbone import Backbone
from metazoo.base.dataset import Dataset
from metazoo.base.recipe import Recipe
from metazoo.errors import OptionError, PluginError

Checked = tuple[Any, str]


def read_names(hook: str, result: Any) -> list[tuple[str, Any]]:
    """Return the items of what a hook returned; their names are plain strings, perhaps invalid."""
    if not isinstance(result, Mapping) or not all(map(_is_text, result)):
        kind = "None" if result is None else type(result).__name__
        raise PluginError(f"its hook {hook} returned {kind}, not a dictionary of names")
    return [(str.__str__(name), value) for name, value in result.items()]


def check_algorithm(name: str, value: Any) -> Checked:
    """Check a subclass of Algorithm."""
    about = _check_class(name, value, Algorithm)
    taken = {option.name for option in options.read(Recipe)}
    for option in options.read(value.Config):
        if option.name in taken:
            raise OptionError(
                f"field '{option.name}' of {value.Config.__qualname__} is also a training option",
                "give it another name",
            )
    _check_recipe(name, value)
    options.build(value.Config, value.inductive_options, f"inductive_options of '{name}'")
    _check_attributes(value, {"supports_regression": bool, "equal_shots": bool})
    if issubclass(value, FeatureLearner):
        _check_attributes(value, {"uses_names": bool})
    return value, about


def check_backbone(name: str, value: Any) -> Checked:
    """Check a subclass of Backbone."""
    return value, _check_class(name, value, Backbone)


def check_dataset(name: str, value: Any) -> Checked:
    """Check a subclass of Dataset."""
    about = _check_class(name, value, Dataset)
    _check_recipe(name, value)
    _check_attributes(value, {"local_options": (tuple, list), "training_options": (tuple, list)})
    _check_attributes(value, {"drawings": bool})
    return value, about


def check_card(name: str, value: Any) -> Checked:
    """Check the path of a model card."""
    if not isinstance(value, (str, os.PathLike)) or not Path(value).is_file():
        raise PluginError(f"{reprlib.repr(value)} is not the path of a model card")
    return Path(value), ""


def _check_class(
    name: str, value: Any, base: type[Algorithm] | type[Backbone] | type[Dataset]
) -> str:
    if not (isinstance(value, type) and issubclass(value, base)):
        raise PluginError(f"{reprlib.repr(value)} is not a subclass of metazoo.{base.__name__}")
    options.build(value.Config, {}, f"'{name}' with default options")
    about = value.__doc__
    return about.strip().partition("\n")[0] if isinstance(about, str) else ""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_recipe(name: str, value: Any) -> None:
    recipe = value.recipe
    if not isinstance(recipe, (dict, MappingProxyType)) or not all(map(_is_text, recipe)):
        raise PluginError(f"its recipe is {reprlib.repr(recipe)}, not a dictionary of options")
    options.build(Recipe, recipe, f"the recipe of {name}")


def _check_attributes(value: Any, kinds: dict[str, type | tuple[type, ...]]) -> None:
    for name, kind in kinds.items():
        if not isinstance(found := getattr(value, name), kind):
            expected = "True or False" if kind is bool else "a tuple of names"
            raise PluginError(f"its {name} is {reprlib.repr(found)}, not {expected}")
