"""How far a training run is, and its file: weights, optimizer and state."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from metazoo.errors import CheckpointError, first_line
from metazoo.zoo.weights import load_tensors, save_tensors


@dataclass
class State:
    """How far a run is; with the weights and the optimizer, all that resuming needs. Scores are better when higher."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    commit: str | None = None
    init_sha256: str | None = None


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Write weights, optimizer and state as one file."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": value
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
    save_tensors(path, tensors, dataclasses.asdict(state))


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Put the weights and the optimizer of a file in place and return its state, or raise CheckpointError."""
    tensors, metadata = load_tensors(path)
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    weights = {}
    try:
        state = State(**metadata)
        for key, value in tensors.items():
            part, _, name = key.partition(".")
            if part == "model":
                weights[name] = value
            else:
                index, _, name = name.partition(".")
                optimizer_state.setdefault(int(index), {})[name] = value
        model.load_state_dict(weights)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": optimizer_state})
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this run: {first_line(error)}") from error
    return state
