"""Options of an algorithm that are overridden in a trained model: each must change its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from metazoo import options
from metazoo.base.algorithm import Algorithm
from metazoo.errors import OptionError
from metazoo.options import Affects
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import TaskSource
from metazoo.zoo.blueprint import Blueprint


def check_overrides(blueprint: Blueprint, changes: Mapping[str, Any]) -> None:
    """Raise OptionError if a change is for training only, or the weights hold what it sets.

    The weights hold an option that gives a new model other initial weights, since a saved model's
    replace them. Seeds torch's generator.
    """
    if not changes:
        return
    declared = _options(blueprint)
    taken = [name for name, each in declared.items() if each.affects is not Affects.TRAINING]
    hint = f"train a model with it; a trained model can take {', '.join(taken) or 'no options'}"
    for name in changes:
        if declared[name].affects is Affects.TRAINING:
            raise OptionError(
                f"option '{name}' of '{blueprint.algorithm}' has no effect on a trained model", hint
            )
    initial = _initial_weights(blueprint, changes)
    for name in changes:
        others = _without(changes, name)
        for key, value in _initial_weights(blueprint, others).items():
            if key in initial and not torch.equal(initial[key], value):
                raise OptionError(
                    f"option '{name}' of '{blueprint.algorithm}' is held by the model's weights "
                    f"('{key}'), so it cannot be changed",
                    "leave it out, or train a model with it",
                )


def check_effect(
    model: Callable[..., Algorithm],
    blueprint: Blueprint,
    changes: Mapping[str, Any],
    tasks: TaskSource,
) -> None:
    """Raise OptionError if a change makes no difference to the answers to the first task.

    `model(**changes)` returns the model with changed options.
    """
    declared, usual = _options(blueprint), blueprint.algorithm_options
    named = [
        name
        for name, value in changes.items()
        if declared[name].affects is not Affects.SPEED
        and value != usual.get(name, declared[name].default)
    ]
    if not named:
        return
    task = tasks.draw(0, 1).to("cpu")

    def answers(chosen: Mapping[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            return model(**chosen)(task.support_x, task.support_y, task.query_x)

    ours = answers(changes)
    for name in named:
        if torch.equal(ours, answers(_without(changes, name))):
            raise OptionError(
                f"option '{name}' makes no difference to the answers of this model",
                "leave it out: the model has this value already, or another option overrides it",
            )


def _options(blueprint: Blueprint) -> dict[str, options.Option]:
    config = registry().algorithm(blueprint.algorithm).value.Config
    return {option.name: option for option in options.read(config)}


def _without(changes: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in changes.items() if other != name}


def _initial_weights(blueprint: Blueprint, changes: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return blueprint.model(**changes).state_dict()
