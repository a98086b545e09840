"""The hooks: what a plugin can add to metazoo.

A plugin is a module that an entry point in the group `metazoo` names. It implements any of these
hooks and marks them with `metazoo.hookimpl`. A hook returns a value and changes nothing. The entry
point should have the name of the algorithm: a plugin that cannot be imported is known only by that
name.

Commands have an entry-point group of their own, `metazoo.commands`, so that `metazoo --help`
imports no plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metazoo.base.algorithm import Algorithm
from metazoo.base.backbone import Backbone
from metazoo.base.dataset import Dataset
from metazoo.plugins.marker import hookspec


@hookspec
def register_algorithms() -> Mapping[str, type[Algorithm]]:  # type: ignore[empty-body]
    """Return algorithms by name: subclasses of `metazoo.Algorithm`."""


@hookspec
def register_backbones() -> Mapping[str, type[Backbone]]:  # type: ignore[empty-body]
    """Return backbones by name: subclasses of `metazoo.Backbone`."""


@hookspec
def register_datasets() -> Mapping[str, type[Dataset]]:  # type: ignore[empty-body]
    """Return data sets by name: subclasses of `metazoo.Dataset`."""


@hookspec
def register_pretrained() -> Mapping[str, Path]:  # type: ignore[empty-body]
    """Return model cards by model name (`algorithm.tag`): paths of JSON files."""
