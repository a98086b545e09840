"""How plugins are found, checked and kept: entry points in, registry out."""

from metazoo.plugins.marker import hookimpl
from metazoo.plugins.registry import Entry, Plugin, Registry, registry

__all__ = ["Entry", "Plugin", "Registry", "hookimpl", "registry"]
