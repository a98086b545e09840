"""A model at rest: found, loaded, exported, described by a card."""

from metazoo.zoo.export import export
from metazoo.zoo.find import Source, find, load

__all__ = ["Source", "export", "find", "load"]
