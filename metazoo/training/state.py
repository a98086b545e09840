"""The state of a training run, and its file: weights, optimizer and state."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metazoo.errors import CheckpointError, first_line
from metazoo.zoo.weights import load_into, load_tensors, save_tensors


@dataclass
class State:
    """The progress of a run: with weights and optimizer, everything that resuming needs.

    `best` is the best validation so far; higher is better, so an error counts as negative. `stale`
    counts the validations since then. `loss_sum` and `loss_count` cover the steps since the last
    logged one.
    """

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
    """Load weights and optimizer from a file and return its state.

    Raises CheckpointError if the file is damaged or belongs to another model.
    """
    tensors, metadata = load_tensors(path)
    try:
        state = _parse(metadata)
        weights, optimizer_state = _split(tensors)
        load_into(model, weights, str(path))
        _check_optimizer(optimizer, optimizer_state)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": optimizer_state})
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit this run: {first_line(error)}",
            "restore it from a copy, or train again in another folder",
        ) from error
    return state


def _parse(metadata: Any) -> State:
    """Return the state in a file's metadata. Raises TypeError or ValueError."""
    state = State(**metadata)
    if state.best is None:  # JSON has no infinity
        state.best = -math.inf
    for name in ("step", "best_step", "stale", "loss_count"):
        value = getattr(state, name)
        if type(value) is not int or not 0 <= value <= 2**53:
            raise ValueError(f"its '{name}' is {value!r}, not a whole number of at least 0")
    for name in ("best", "seconds", "loss_sum"):
        value = getattr(state, name)
        finite = type(value) in (int, float) and abs(value) <= sys.float_info.max
        if not finite and (name, value) != ("best", -math.inf):
            raise ValueError(f"its '{name}' is {value!r}, not a number")
    for name in ("commit", "init_sha256"):
        if not isinstance(getattr(state, name), str | None):
            raise ValueError(f"its '{name}' is not text")
    return state


def _check_optimizer(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Raise ValueError unless the tensors are those that the optimizer keeps of its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    of_sgd = isinstance(optimizer, torch.optim.SGD)
    expected = {"momentum_buffer"} if of_sgd else {"step", "exp_avg", "exp_avg_sq"}
    for index, tensors in state.items():
        if not 0 <= index < len(parameters):
            raise ValueError(f"it has a state for parameter {index}, of {len(parameters)}")
        if set(tensors) != expected:
            raise ValueError(f"the state of parameter {index} has {', '.join(sorted(tensors))}")
        for name, value in tensors.items():
            what = f"'{name}' of parameter {index}"
            if value.shape != (torch.Size() if name == "step" else parameters[index].shape):
                raise ValueError(f"{what} has shape {tuple(value.shape)}")
            if not value.is_floating_point() or not value.isfinite().all():
                raise ValueError(f"{what} has values that are not numbers")
            if name in ("step", "exp_avg_sq") and (value < 0).any():
                raise ValueError(f"{what} is negative")


def _split(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Return the weights by name, and the optimizer's tensors by index and name."""
    weights: dict[str, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part == "model":
            weights[name] = value
        else:
            index, _, name = name.partition(".")
            optimizer.setdefault(int(index), {})[name] = value
    return weights, optimizer
