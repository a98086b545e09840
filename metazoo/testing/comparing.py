"""What the checks share: asking a model, comparing answers, and saying what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from metazoo.base.algorithm import Algorithm
from metazoo.tasks.episode import Episode

# Rounding differs with the batch size, and inner loops amplify it. Real mistakes are far larger.
TOLERANCE = 1e-3


def require(condition: object, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds."""
    # Not an assert statement, which `python -O` removes.
    if not condition:
        raise AssertionError(message)


def predict(model: Algorithm, episode: Episode) -> Tensor:
    """Return the answers to the queries, without gradients."""
    with torch.no_grad():
        return model(episode.support_x, episode.support_y, episode.query_x)


def close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Return whether two answers are equal except for rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max() + 1e-6)


def state_of(model: Algorithm) -> dict[str, Tensor]:
    """Return a copy of the state_dict; raise AssertionError if it holds more than tensors."""
    state = model.state_dict()
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    require(
        not others,
        f"its state_dict holds {', '.join(others)}, which is not a tensor; "
        "checkpoints store only tensors",
    )
    return {key: value.clone() for key, value in state.items()}
