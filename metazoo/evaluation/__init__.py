"""Measuring a model: protocols, scores, intervals."""

from metazoo.evaluation.measure import evaluate, measure
from metazoo.evaluation.protocol import Protocol
from metazoo.evaluation.score import Score

__all__ = ["Protocol", "Score", "evaluate", "measure"]
