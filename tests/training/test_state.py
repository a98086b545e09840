"""The state of a run comes back as it was, and a damaged one is named."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from metazoo.errors import CheckpointError
from metazoo.training.loop import make_optimizer
from metazoo.training.state import State, load_state, save_state
from metazoo.zoo import run_folder
from metazoo.zoo.weights import load_tensors, save_tensors


@pytest.fixture
def last(protonet_run: Path, tmp_path: Path) -> Path:
    """A run's last checkpoint, in a copy of the run that may be damaged."""
    shutil.copytree(protonet_run, tmp_path / "run")
    return tmp_path / "run" / run_folder.LAST


def loaded(path: Path) -> State:
    blueprint = run_folder.read_blueprint(path.parent)
    model = blueprint.model()
    optimizer = make_optimizer(blueprint.recipe, model)
    assert optimizer is not None
    return load_state(path, model, optimizer)


def test_a_state_before_the_first_validation_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    state = State(step=7, seconds=0.5, loss_sum=1.5, loss_count=2, commit="c")
    assert state.best == -math.inf
    save_state(tmp_path / "x.safetensors", model, torch.optim.Adam(model.parameters()), state)
    assert b"Infinity" not in (tmp_path / "x.safetensors").read_bytes()
    again = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(again.parameters())
    assert load_state(tmp_path / "x.safetensors", again, optimizer) == state


@pytest.mark.parametrize("name", ["step", "best_step", "stale", "loss_count"])
@pytest.mark.parametrize("value", [-1, None, "x", 1.5, True, [], 10**300])
def test_an_invalid_count_is_named(last: Path, name: str, value: Any) -> None:
    tensors, state = load_tensors(last)
    save_tensors(last, tensors, {**state, name: value})
    with pytest.raises(CheckpointError, match=rf"last\.safetensors does not fit .*'{name}'"):
        loaded(last)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best", "high"),
        ("best", 10**400),
        ("seconds", None),
        ("loss_sum", {}),
        ("commit", 5),
        ("init_sha256", []),
        ("spice", 1),
    ],
)
def test_another_value_that_does_not_fit_is_named(last: Path, name: str, value: Any) -> None:
    tensors, state = load_tensors(last)
    save_tensors(last, tensors, {**state, name: value})
    with pytest.raises(CheckpointError, match=r"last\.safetensors does not fit this run"):
        loaded(last)


@pytest.mark.parametrize("metadata", [{}, {"step": 3}])
def test_defaults_stand_for_what_an_older_metazoo_did_not_write(
    last: Path, metadata: dict[str, Any]
) -> None:
    save_tensors(last, load_tensors(last)[0], metadata)
    assert loaded(last) == dataclasses.replace(State(), **metadata)


@pytest.mark.parametrize("kind", [torch.int32, torch.bool])
def test_weights_of_another_type_are_not_resumed_from(last: Path, kind: torch.dtype) -> None:
    tensors, state = load_tensors(last)
    name = next(name for name in tensors if name.startswith("model.") and "weight" in name)
    save_tensors(last, {**tensors, name: tensors[name].to(kind)}, state)
    with pytest.raises(CheckpointError, match="has the type"):
        loaded(last)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("optimizer.0.exp_avg", torch.ones(4, 1, 3, 3, dtype=torch.int32), "not numbers"),
        ("optimizer.0.exp_avg", torch.full((4, 1, 3, 3), math.nan), "not numbers"),
        ("optimizer.0.exp_avg", torch.ones(4), r"has shape \(4,\)"),
        ("optimizer.99.exp_avg", torch.ones(4), "a state for parameter 99"),
        ("optimizer.x.exp_avg", torch.ones(4), "does not fit this run"),
        ("optimizer.0.exp_avg", torch.tensor(1.0), r"has shape \(\)"),
        ("optimizer.0.exp_avg_sq", -torch.ones(4, 1, 3, 3), "is negative"),
        ("optimizer.0.step", torch.tensor(-1.0), "is negative"),
        ("optimizer.0.exp_avg_sq", None, "has exp_avg, step"),
    ],
)
def test_a_damaged_optimizer_is_named(
    last: Path, name: str, value: torch.Tensor | None, words: str
) -> None:
    tensors, state = load_tensors(last)
    changed = {**tensors, name: value}
    save_tensors(last, {key: each for key, each in changed.items() if each is not None}, state)
    with pytest.raises(CheckpointError, match=words):
        loaded(last)
