"""The markers of hooks: `hookimpl` for plugins, `hookspec` for metazoo's declarations."""

import pluggy

PROJECT = "metazoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
