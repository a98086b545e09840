"""What a run is made from: names and options resolved, every default filled in, checked against the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.recipe import Recipe, unread
from metazoo.errors import DataError, MetazooError, OptionError, first_line, too_large
from metazoo.images import check_input_format
from metazoo.plugins.error_source import at_fault
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import TaskSource, TaskSpec
from metazoo.zoo.blueprint import Blueprint


def plan(
    algorithm: str,
    dataset: str,
    algorithm_options: Mapping[str, Any] = {},
    dataset_options: Mapping[str, Any] = {},
    backbone_options: Mapping[str, Any] = {},
    recipe: Mapping[str, Any] = {},
) -> tuple[Blueprint, Dataset]:
    """Return the whole of what a run is made from, every default filled in, and its data set, read.

    A training option that is not given comes from the data set's recipe, else the algorithm's, else Recipe. Default
    `train_ways` are lowered to the classes that the training split has.
    """
    algorithm_class = registry().algorithm(algorithm).value
    dataset_class = registry().dataset(dataset).value
    merged = {**algorithm_class.recipe, **dataset_class.recipe, **recipe}
    training = options.build(Recipe, merged, "the recipe")
    _check_given(recipe, training, algorithm, algorithm_class.draws)
    if training.init and Path(training.init).exists():
        training = dataclasses.replace(training, init=str(Path(training.init).resolve()))
    backbone_class = registry().backbone(training.backbone).value
    backbone_config = options.build(
        backbone_class.Config, backbone_options, f"backbone '{training.backbone}'"
    )
    algorithm_config = options.build(
        algorithm_class.Config, algorithm_options, f"algorithm '{algorithm}'"
    )
    # A run is resumed from anywhere: the paths that it keeps must not depend on where it began.
    absolute = {
        name: str(Path(value).resolve())
        if name in dataset_class.local_options and value and Path(value).exists()
        else value
        for name, value in dataset_options.items()
    }
    data = dataset_class(options.build(dataset_class.Config, absolute, f"data set '{dataset}'"))

    if data.regression and not algorithm_class.regresses:
        able = [entry.name for entry in registry().algorithms if entry.value.regresses]
        raise OptionError(
            f"algorithm '{algorithm}' classifies, but the tasks of data set '{dataset}' are regression",
            f"use one of {', '.join(able)}, or another data set",
        )
    classes = len(data.split("train").counts) if isinstance(data, ClassDataset) else 0
    train_ways = training.train_ways or training.ways
    if "train_ways" not in recipe and classes:
        train_ways = max(2, min(train_ways, classes))
    training = dataclasses.replace(
        training,
        train_ways=train_ways,
        train_shots=training.train_shots or training.shots,
        train_queries=training.train_queries or training.queries,
    )
    # What is too small, or does not fit, is found now and not after the training.
    tested = {
        s: data.tasks(s, training.ways, training.shots, training.queries, training.seed)
        for s in ("test", "val")
    }
    if algorithm_class.draws == "episodes":
        training_tasks(data, training)
    trial = tested["val"].draw(0, 1)
    if training.augment != "none" and trial.support_x.dim() != 5:
        raise OptionError(
            f"the examples of data set '{dataset}' are no images to augment", "leave out --augment"
        )
    spec = TaskSpec(
        input_shape=tuple(trial.support_x.shape[2:]),
        outputs=trial.query_y.shape[-1] if data.regression else train_ways,
        classes=classes,
        regression=data.regression,
    )
    try:
        input_format = dict(check_input_format(data.input_format))
    except ValueError as error:  # now and not when the trained model is read again
        raise DataError(
            f"data set '{dataset}' cannot be used: {error}", "its author must mend it"
        ) from error
    blueprint = Blueprint(
        algorithm=algorithm,
        algorithm_options=options.as_dict(algorithm_config),
        backbone=training.backbone,
        backbone_options=options.as_dict(backbone_config),
        dataset=dataset,
        dataset_options=options.as_dict(data.config),
        recipe=options.as_dict(training),
        spec=spec,
        input_format=input_format,
    )
    try:
        model = blueprint.model().eval()
    except MetazooError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) or too_large(error):
            raise _unmade(error) from error
        raise
    if training.precision != "float32" and model.needs_float32:
        raise OptionError(
            f"algorithm '{algorithm}' trains wrongly in {training.precision}: second derivatives are far off",
            "leave out --precision, or second derivatives",
        )
    with torch.no_grad():
        model(trial.support_x, trial.support_y, trial.query_x)
    return blueprint, data


def _unmade(error: Exception) -> OptionError:
    """Return what to say of a network that cannot be made, by the user's sizes or by a plugin's code: nobody can tell."""
    what = f"the network cannot be made: {first_line(error)}"
    fault = None if too_large(error) else at_fault(error)
    if fault is None:
        return OptionError(what, "make it smaller")
    return OptionError(
        f"{what}\n  plugin '{fault.plugin.name}' of {fault.plugin.owner}: {fault.place}",
        "choose other sizes or options; where none will do, its author needs the two lines above",
    )


def _check_given(recipe: Mapping[str, Any], training: Recipe, algorithm: str, draws: str) -> None:
    """Raise OptionError where a training option was given that this run would not read."""
    for name in sorted(unread(draws, training.schedule) & set(recipe)):
        why = (
            "without --schedule halving"
            if name == "halve_every"
            else f"by algorithm '{algorithm}', which draws {draws}"
        )
        raise OptionError(f"--{name.replace('_', '-')} is not read {why}", "leave it out")


def training_tasks(data: Dataset, recipe: Recipe) -> TaskSource:
    """Return the tasks to train on."""
    return data.tasks(
        "train",
        recipe.train_ways or recipe.ways,
        recipe.train_shots or recipe.shots,
        recipe.train_queries or recipe.queries,
        recipe.seed,
    )
