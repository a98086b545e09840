"""What may be registered: the checks that a value returned by a hook must pass before anybody uses it."""

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

# The command line's own words (a test holds them to it): its commands, and the options of `train` beside the algorithm's.
COMMANDS = {"list", "train", "eval", "predict", "export", "push", "data", "plugins", "info"}
FLAGS = {"dataset", "help", "json", "out", "progress", "resume"}
PREFIXES = ("data_", "backbone_")


def check_algorithm(name: str, value: Any) -> None:
    """Raise PluginError or OptionError, saying why, unless the value is an algorithm that can be offered."""
    _check_class(name, value, Algorithm)
    taken = FLAGS | {option.name for option in options.read(Recipe)}
    for option in options.read(value.Config):
        if option.name in taken or option.name.startswith(PREFIXES):
            raise OptionError(
                f"field '{option.name}' of {value.Config.__qualname__} has the name of a training option, or starts like one",
                "give it another name",
            )
    options.build(Recipe, value.recipe, f"the recipe of {name}")


def check_backbone(name: str, value: Any) -> None:
    """Raise PluginError or OptionError, saying why, unless the value is a backbone that can be offered."""
    _check_class(name, value, Backbone)


def check_dataset(name: str, value: Any) -> None:
    """Raise PluginError or OptionError, saying why, unless the value is a data set that can be offered."""
    _check_class(name, value, Dataset)
    options.build(Recipe, value.recipe, f"the recipe of {name}")


def check_card(name: str, value: Any) -> None:
    """Raise PluginError unless the value is the path of a file."""
    if not isinstance(value, (str, os.PathLike)) or not Path(value).is_file():
        raise PluginError(f"{value!r} is not the path of a model card")


def check_command(name: str, value: Any) -> None:
    """Raise PluginError where metazoo has a command of that name itself."""
    if name in COMMANDS:
        raise PluginError("metazoo has a command of that name itself", "give it another name")


def _check_class(
    name: str, value: Any, base: type[Algorithm] | type[Backbone] | type[Dataset]
) -> None:
    if not (isinstance(value, type) and issubclass(value, base)):
        raise PluginError(f"{value!r} is not a subclass of metazoo.{base.__name__}")
    options.build(value.Config, {}, f"'{name}' with default options")
