"""Scores of tasks, and their mean with a 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metazoo.errors import MetazooError


class NotANumber(MetazooError):
    """A model returned NaN or infinity."""

    exit_code = 1


@dataclass(frozen=True)
class Score:
    """The mean of per-task scores with its 95 % interval.

    `interval` is half the width of the interval, 1.96 standard errors; `tasks` is their number.
    """

    mean: float
    interval: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """Return the mean score of per-task values (N,); the interval of a single one is NaN."""
        values = values.double()
        deviation = values.std().item() if len(values) > 1 else math.nan
        interval = 1.96 * deviation / math.sqrt(len(values))
        return cls(values.mean().item(), interval, len(values))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of a result, ready for JSON."""
        return {"mean": self.mean, "interval": self.interval, "tasks": self.tasks}


def score(prediction: Tensor, target: Tensor) -> Tensor:
    """Return each task's score, (B,).

    It is the accuracy of logits (B, Q, ways), or the mean squared error of predictions (B, Q, D).
    Raises NotANumber if there is a NaN, which argmax would take for class 0.
    """
    if target.is_floating_point():
        values = (prediction - target).square().flatten(1).mean(1)
        valid = values.isfinite().all()
    else:
        values = (prediction.argmax(-1) == target).float().mean(1)
        valid = ~prediction.isnan().any()
    if not valid:
        raise NotANumber(
            "the model returned NaN or infinity",
            "lower the learning rate, or the inner learning rate or steps at evaluation",
        )
    return values
