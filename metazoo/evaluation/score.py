"""Scores of tasks: a mean and its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metazoo.errors import MetazooError


class NotANumber(MetazooError):
    """A model's answer is no number."""

    exit_code = 1


@dataclass(frozen=True)
class Score:
    """The mean of per-task scores, half the width of its 95 % interval (1.96 standard errors), and their number."""

    mean: float
    interval: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """Return the score of per-task values (E,)."""
        spread = values.double().std().item() if len(values) > 1 else math.nan
        return cls(
            values.double().mean().item(), 1.96 * spread / math.sqrt(len(values)), len(values)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return {"mean": self.mean, "interval": self.interval, "tasks": self.tasks}


def score(prediction: Tensor, target: Tensor) -> Tensor:
    """Return each task's score (B,): accuracy of logits (B, Q, ways) or mean squared error of values (B, Q, D).

    Raises NotANumber where the prediction is none: argmax would take it for class 0.
    """
    errors = (
        (prediction - target).square().flatten(1).mean(1) if target.is_floating_point() else None
    )
    if prediction.isnan().any() or (errors is not None and not errors.isfinite().all()):
        raise NotANumber(
            "the model answers with what is not a number (nan or infinite)",
            "lower the learning rate, or the inner rate or steps at evaluation",
        )
    if errors is not None:
        return errors
    return (prediction.argmax(-1) == target).float().mean(1)
