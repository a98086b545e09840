"""Models that need no training: a learner over a frozen encoder, or over numbers as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metazoo import options
from metazoo.base.algorithm import FeatureLearner
from metazoo.base.recipe import Recipe
from metazoo.errors import OptionError
from metazoo.inputs import encoder_named, kind_of, shape_of
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import TaskSpec
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.source import Source
from metazoo.zoo.weights import model_bytes

# ALGORITHM@ENCODER, where ENCODER is BACKBONE or BACKBONE:NAME.
NAME = re.compile(r"([A-Za-z0-9_-]+)@(.+)", re.DOTALL)


def over_encoder(name: str, algorithm: str, encoder: str) -> Source:
    """Return the learner of ALGORITHM@ENCODER, with the encoder's weights pinned by their sha256.

    Raises OptionError if the algorithm changes the backbone's weights, the backbone is not an
    encoder, or the encoder cannot be found.
    """
    _check_algorithm(algorithm)
    backbone, config = encoder_named(encoder)
    pinned = backbone.pinned(config)
    input_format = backbone.input_format_of(pinned)
    spec = TaskSpec(
        input_shape=shape_of(input_format),
        outputs=Recipe.ways,
        integers=kind_of(input_format) == "text",
    )
    values = options.as_dict(pinned)
    return untrained(name, algorithm, encoder.partition(":")[0], values, spec, input_format)


def untrained(
    name: str,
    algorithm: str,
    backbone: str,
    backbone_options: Mapping[str, Any],
    spec: TaskSpec,
    input_format: Mapping[str, Any] = {},
) -> Source:
    """Return a model with the default options of its algorithm and initial weights of seed 0."""
    config = registry().algorithm(algorithm).value.Config
    blueprint = Blueprint(
        algorithm=algorithm,
        algorithm_options=options.as_dict(options.build(config, {}, f"algorithm '{algorithm}'")),
        backbone=backbone,
        backbone_options=dict(backbone_options),
        dataset="",
        dataset_options={},
        recipe=options.build(Recipe, {"backbone": backbone}, "the recipe"),
        spec=spec,
        input_format=dict(input_format),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = blueprint.model()
    return Source(name, Path(name), model_bytes(model, blueprint), blueprint)


def _check_algorithm(name: str) -> None:
    if issubclass(registry().algorithm(name).value, FeatureLearner):
        return
    able = [e.name for e in registry().algorithms if issubclass(e.value, FeatureLearner)]
    raise OptionError(
        f"algorithm '{name}' changes the weights of its backbone, and those of an encoder are frozen",
        f"use one of {', '.join(able)}",
    )
