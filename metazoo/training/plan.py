"""Plan a run: resolve names and options, fill in defaults, check them against the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metazoo import options
from metazoo.base.algorithm import Algorithm, BatchLearner
from metazoo.base.backbone import Backbone, check_second_derivative
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.encoder import Encoder
from metazoo.base.recipe import Recipe, unread_options
from metazoo.errors import (
    DataError,
    MetazooError,
    OptionError,
    PluginError,
    first_line,
    too_large,
)
from metazoo.inputs import check_input_format
from metazoo.plugins.error_source import at_fault
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import Episode, TaskSource, TaskSpec
from metazoo.zoo.blueprint import Blueprint, check_size


def plan(
    algorithm: str,
    dataset: str,
    algorithm_options: Mapping[str, Any] = {},
    dataset_options: Mapping[str, Any] = {},
    backbone_options: Mapping[str, Any] = {},
    recipe: Mapping[str, Any] = {},
) -> tuple[Blueprint, Dataset]:
    """Return the blueprint of a run, every default filled in, and its data set, loaded.

    A training option that is not given comes from the data set's recipe, else from the algorithm's,
    else from `Recipe`. A default number of training ways is lowered to the classes there are.
    Options, data and network are tried out here, so that a mistake shows before training starts.
    """
    algorithm_class = registry().algorithm(algorithm).value
    usual = {
        **algorithm_class.recipe,
        **_open_data(dataset, dataset_options).training_defaults(),
    }
    backbone, network = _backbone({**usual, **recipe}.get("backbone"), backbone_options)
    data = _open_data(dataset, {**_reading_options(dataset, backbone, network), **dataset_options})
    _check_kind(algorithm, algorithm_class, dataset, data)
    training = _resolve_recipe(algorithm, algorithm_class, data, recipe)
    example = _draw_example(algorithm_class, dataset, data, training)
    spec = _task_spec(data, training, example)
    check_size(spec.input_shape)  # now, and not when the trained model is read again
    blueprint = Blueprint(
        algorithm=algorithm,
        algorithm_options=_filled(
            algorithm_class.Config, algorithm_options, f"algorithm '{algorithm}'"
        ),
        backbone=training.backbone,
        backbone_options=options.as_dict(network),
        dataset=dataset,
        dataset_options=options.as_dict(data.config),
        recipe=training,
        spec=spec,
        input_format=_input_format(dataset, data),
        **_digests(data),
    )
    _try_model(blueprint, example)
    return blueprint, data


def training_tasks(data: Dataset, recipe: Recipe) -> TaskSource:
    """Return the tasks to train on."""
    return data.tasks("train", *recipe.training_task, recipe.seed)


def _filled(config: type[options.Config], values: Mapping[str, Any], owner: str) -> dict[str, Any]:
    return options.as_dict(options.build(config, values, owner))


def _backbone(name: Any, given: Mapping[str, Any]) -> tuple[type[Backbone], options.Config]:
    """Return the class of a backbone and its options; those of an encoder are pinned."""
    name = name or Recipe.backbone
    backbone = registry().backbone(name).value
    config = options.build(backbone.Config, given, f"backbone '{name}'")
    return backbone, backbone.pinned(config) if issubclass(backbone, Encoder) else config


def _reading_options(
    dataset: str, backbone: type[Backbone], config: options.Config
) -> dict[str, Any]:
    """Return the options of a data set that an encoder asks for, so that it can read examples."""
    if not issubclass(backbone, Encoder):
        return {}
    kind = registry().dataset(dataset).value
    return kind.reading_options(backbone.input_format_of(config))


def _open_data(name: str, given: Mapping[str, Any]) -> Dataset:
    dataset = registry().dataset(name).value
    # A run may be resumed from another working directory: the paths it keeps must be absolute.
    absolute = {
        option: str(Path(value).resolve())
        if option in dataset.local_options and value and Path(value).exists()
        else value
        for option, value in given.items()
    }
    return dataset(options.build(dataset.Config, absolute, f"data set '{name}'"))


def _check_kind(
    algorithm: str, algorithm_class: type[Algorithm], dataset: str, data: Dataset
) -> None:
    if data.regression and not algorithm_class.supports_regression:
        able = [entry.name for entry in registry().algorithms if entry.value.supports_regression]
        raise OptionError(
            f"data set '{dataset}' has regression tasks, "
            f"and algorithm '{algorithm}' only classifies",
            f"use one of {', '.join(able)}, or another data set",
        )


def _resolve_recipe(
    algorithm: str, algorithm_class: type[Algorithm], data: Dataset, given: Mapping[str, Any]
) -> Recipe:
    on_batches = issubclass(algorithm_class, BatchLearner)
    for name in sorted(unread_options(on_batches) & set(given)):
        what = "batches" if on_batches else "episodes"
        raise OptionError(
            f"algorithm '{algorithm}' trains on {what} "
            f"and does not read --{name.replace('_', '-')}",
            "leave it out",
        )
    merged = {**algorithm_class.recipe, **data.training_defaults(), **given}
    recipe = options.build(Recipe, merged, "the recipe")
    ways, shots, queries = recipe.training_task
    if "train_ways" not in given and (classes := _base_classes(data)):
        ways = max(2, min(ways, classes))
    init = recipe.init
    if init and Path(init).exists():
        init = str(Path(init).resolve())
    return dataclasses.replace(
        recipe, init=init, train_ways=ways, train_shots=shots, train_queries=queries
    )


def _base_classes(data: Dataset) -> int:
    return len(data.split("train").counts) if isinstance(data, ClassDataset) else 0


def _draw_example(
    algorithm_class: type[Algorithm], dataset: str, data: Dataset, recipe: Recipe
) -> Episode:
    """Return a validation task; raise DataError if a split cannot supply the tasks of the run."""
    data.tasks("test", recipe.ways, recipe.shots, recipe.queries, recipe.seed)
    validation = data.tasks("val", recipe.ways, recipe.shots, recipe.queries, recipe.seed)
    if not issubclass(algorithm_class, BatchLearner):
        training_tasks(data, recipe)
    example = validation.draw(0, 1)
    if recipe.augment != "none" and example.support_x.dim() != 5:
        raise OptionError(
            f"--augment needs images, and the examples of data set '{dataset}' are not images",
            "leave out --augment",
        )
    return example


def _task_spec(data: Dataset, recipe: Recipe, example: Episode) -> TaskSpec:
    return TaskSpec(
        input_shape=tuple(example.support_x.shape[2:]),
        outputs=example.query_y.shape[-1] if data.regression else recipe.training_task[0],
        classes=_base_classes(data),
        regression=data.regression,
        integers=not example.support_x.is_floating_point(),
    )


def _digests(data: Dataset) -> dict[str, str]:
    if not isinstance(data, ClassDataset):
        return {}
    return {"split_sha256": data.split_sha256(), "data_sha256": data.data_sha256()}


def _input_format(dataset: str, data: Dataset) -> dict[str, Any]:
    try:
        return dict(check_input_format(data.input_format))
    except ValueError as error:  # now, and not when the trained model is read again
        raise DataError(
            f"data set '{dataset}' has an invalid input_format: {error}", "its author must fix it"
        ) from error


def _try_model(blueprint: Blueprint, example: Episode) -> None:
    """Build and run the network once; raise OptionError if it cannot be built or trained so."""
    try:
        model = blueprint.model().eval()
    except MetazooError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) or too_large(error):
            raise _cannot_build(error) from error
        raise
    if blueprint.recipe.precision != "float32" and model.needs_float32:
        raise OptionError(
            f"algorithm '{blueprint.algorithm}' fails to train in {blueprint.recipe.precision}: "
            "second derivatives are too inexact",
            "leave out --precision, or use a first-order variant",
        )
    if model.needs_float32:
        check_second_derivative(model.backbone, example.support_x[0])
    with torch.no_grad():
        _check_features(blueprint.backbone, model.backbone, example)
        model(example.support_x, example.support_y, example.query_x)


def _check_features(name: str, backbone: Backbone, example: Episode) -> None:
    """Raise PluginError unless the backbone's features are as many as it says."""
    said = getattr(backbone, "out_features", None)
    shape = tuple(backbone(example.support_x[0]).shape[1:])
    if shape != (said,):
        raise PluginError(
            f"backbone '{name}' sets out_features = {said}, but its features have shape {shape}",
            "its author must fix it: out_features is how many features an example has",
        )


def _cannot_build(error: Exception) -> OptionError:
    """Return the error for a network that cannot be built, for sizes or for a bug of a plugin."""
    what = f"the network cannot be built: {first_line(error)}"
    fault = None if too_large(error) else at_fault(error)
    if fault is None:
        return OptionError(what, "make it smaller")
    return OptionError(
        f"{what}\n  plugin '{fault.plugin.name}' of {fault.plugin.owner}: {fault.place}",
        "choose other sizes or options; if none works, "
        "send the two lines above to the plugin's author",
    )
