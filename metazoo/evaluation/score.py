"""Scores of tasks, and their mean with a 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metazoo.errors import DataError, MetazooError


class NotANumber(MetazooError):
    """A model returned NaN or infinity."""

    exit_code = 1


@dataclass(frozen=True)
class Score:
    """The mean of per-task scores with its 95 % interval.

    `interval` is half the width of the interval (see `half_width`); `tasks` is their number.
    """

    mean: float
    interval: float
    tasks: int

    @classmethod
    def of(cls, values: Tensor) -> Score:
        """Return the mean score of per-task values (N,); raise DataError if there is only one."""
        if len(values) < 2:
            raise DataError(
                "a single task has no 95 % interval", "measure at least two tasks (--episodes)"
            )
        values = values.double()
        interval = half_width(values.std().item(), len(values))
        return cls(values.mean().item(), interval, len(values))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of a result, ready for JSON."""
        return {"mean": self.mean, "interval": self.interval, "tasks": self.tasks}


def half_width(deviation: float, count: int) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t distribution.

    `deviation` is the sample standard deviation of the `count` values.
    """
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)


def require_numbers(logits: Tensor) -> None:
    """Raise NotANumber if the largest logit of a query, shape (..., ways), is NaN or infinite."""
    _require(logits.amax(-1))


def score(prediction: Tensor, target: Tensor) -> Tensor:
    """Return each task's score, (B,).

    It is the accuracy of logits (B, Q, ways), or the mean squared error of predictions (B, Q, D).
    Raises NotANumber if there is NaN or infinity; argmax would take a NaN for class 0.
    """
    if target.is_floating_point():
        values = (prediction - target).square().flatten(1).mean(1)
        _require(values)
        return values
    require_numbers(prediction)
    return (prediction.argmax(-1) == target).float().mean(1)


def _require(values: Tensor) -> None:
    if not values.isfinite().all():
        raise NotANumber(
            "the model returned NaN or infinity",
            "lower the learning rate, or the inner learning rate or steps at evaluation",
        )
