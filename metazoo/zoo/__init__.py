"""A model at rest: found, loaded, exported, described by a card."""

from metazoo.zoo.export import export
from metazoo.zoo.find import find, load
from metazoo.zoo.source import Source

__all__ = ["Source", "export", "find", "load"]
