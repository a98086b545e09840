"""Every hook: the table of contents of what can be extended.

A plugin is a module (or object) named by an entry point in the group `metazoo`. It imports `hookimpl` from metazoo
and implements any of these. A hook returns a value and changes nothing; metazoo keeps each value with its owner.
Name the entry point after the algorithm: if the plugin cannot be imported, that name is all there is to know it by.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path

from metazoo.plugins.marker import hookspec

if typing.TYPE_CHECKING:
    import click

    from metazoo.base.algorithm import Algorithm
    from metazoo.base.backbone import Backbone
    from metazoo.base.dataset import Dataset


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
    """Return model cards by model name (`algorithm.tag`): each the path of a JSON file that says where its weights are."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the command line: `@cli.command()` works as in any click program."""
