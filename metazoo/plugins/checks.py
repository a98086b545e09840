"""Checks that a value returned by a hook must pass before it is registered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from metazoo import options
from metazoo.base.algorithm import Algorithm
from metazoo.base.backbone import Backbone
from metazoo.base.dataset import Dataset
from metazoo.base.recipe import Recipe
from metazoo.errors import OptionError, PluginError


def check_algorithm(name: str, value: Any) -> None:
    """Raise PluginError or OptionError unless the value is a usable algorithm."""
    _check_class(name, value, Algorithm)
    taken = {option.name for option in options.read(Recipe)}
    for option in options.read(value.Config):
        if option.name in taken:
            raise OptionError(
                f"field '{option.name}' of {value.Config.__qualname__} is also a training option",
                "give it another name",
            )
    options.build(Recipe, value.recipe, f"the recipe of {name}")
    options.build(value.Config, value.inductive_options, f"inductive_options of '{name}'")


def check_backbone(name: str, value: Any) -> None:
    """Raise PluginError or OptionError unless the value is a usable backbone."""
    _check_class(name, value, Backbone)


def check_dataset(name: str, value: Any) -> None:
    """Raise PluginError or OptionError unless the value is a usable data set."""
    _check_class(name, value, Dataset)
    options.build(Recipe, value.recipe, f"the recipe of {name}")


def check_card(name: str, value: Any) -> None:
    """Raise PluginError unless the value is the path of a file."""
    if not isinstance(value, (str, os.PathLike)) or not Path(value).is_file():
        raise PluginError(f"{value!r} is not the path of a model card")


def _check_class(
    name: str, value: Any, base: type[Algorithm] | type[Backbone] | type[Dataset]
) -> None:
    if not (isinstance(value, type) and issubclass(value, base)):
        raise PluginError(f"{value!r} is not a subclass of metazoo.{base.__name__}")
    options.build(value.Config, {}, f"'{name}' with default options")
