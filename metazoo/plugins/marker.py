"""The markers of hooks: `hookimpl` for plugins, `hookspec` for metazoo."""

from __future__ import annotations

import typing

import pluggy

if typing.TYPE_CHECKING:
    pass


PROJECT = "metazoo"


hookspec = pluggy.HookspecMarker(PROJECT)


hookimpl = pluggy.HookimplMarker(PROJECT)
