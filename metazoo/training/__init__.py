"""A model in motion: plan a run, train it, resume it."""

from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan

__all__ = ["Watcher", "plan", "train"]
