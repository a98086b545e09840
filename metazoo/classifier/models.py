"""The model that answers: chosen by what is given, or by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metazoo.base.algorithm import Algorithm, FeatureLearner
from metazoo.base.encoder import Encoder
from metazoo.device import find_device
from metazoo.errors import OptionError
from metazoo.inputs import Kind, kind_of
from metazoo.tasks.episode import TaskSpec
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.find import find
from metazoo.zoo.source import Source
from metazoo.zoo.untrained import untrained

# What `model="auto"` chooses.
PHOTOS = "ridge.photos"
TEXTS = "logistic.text"
ROWS = "logistic"  # the algorithm, over rows of numbers as they are
IDENTITY = "identity"


@dataclass(frozen=True)
class Model:
    """A learner that has not seen a support set, and what is known of it.

    `rows` says that its features are the user's numbers, which have no common scale.
    """

    name: str
    sha256: str
    blueprint: Blueprint
    learner: Algorithm
    device: torch.device
    input_format: Mapping[str, Any]
    rows: bool = False

    @property
    def kind(self) -> Kind:
        """What examples it takes."""
        return kind_of(self.input_format)

    @property
    def takes_rows(self) -> bool:
        """Whether an example is a row of numbers."""
        spec = self.blueprint.spec
        return self.kind == "numbers" and len(spec.input_shape) == 1 and not spec.integers

    @property
    def encoded(self) -> bool:
        """Whether features are those of a frozen encoder."""
        return isinstance(self.learner.backbone, Encoder)

    @property
    def adapts_features(self) -> bool:
        """Whether each example is embedded once, and only features are classified."""
        return isinstance(self.learner, FeatureLearner)

    def empty(self) -> Tensor:
        """Return no example: features (0, D), or examples (0, *) if features are not all it adapts."""
        if self.adapts_features:
            kind = torch.float64 if self.rows else torch.float32
            return torch.zeros(
                0, self.learner.backbone.out_features, dtype=kind, device=self.device
            )
        kind = torch.long if self.blueprint.spec.integers else torch.float32
        return torch.zeros(0, *self.blueprint.spec.input_shape, dtype=kind, device=self.device)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Return the features (N, D) of examples (N, *); for other learners, the examples."""
        return self.learner.features(x) if isinstance(self.learner, FeatureLearner) else x


def named(model: str | os.PathLike[str] | Source) -> Source | None:
    """Return the model of that name, or None for "auto"."""
    if isinstance(model, Source):
        return model
    return None if isinstance(model, str) and model == "auto" else find(model)


def default(kind: Kind, shape: tuple[int, ...]) -> Source:
    """Return the model for this kind of examples; `shape` is that of one example of numbers."""
    if kind == "numbers":
        spec = TaskSpec(input_shape=shape, outputs=2)
        return untrained(f"{ROWS}@{IDENTITY}", ROWS, IDENTITY, {}, spec)
    return find(PHOTOS if kind == "image" else TEXTS)


def build(
    source: Source, options: Mapping[str, Any] | None, invert: bool | None, device: str
) -> Model:
    """Return a ready model.

    A transductive model gets the options that make it inductive, if its algorithm has such options
    and they are not given. Raises OptionError if the model is for regression, or an option is
    invalid.
    """
    place = find_device(device)
    if source.blueprint.spec.regression:
        raise OptionError(
            f"'{source.name}' is a regression model and cannot classify",
            "`metazoo list` shows every model",
        )
    if not isinstance(invert, bool | np.bool_ | None):
        raise OptionError(f"invert cannot be {invert!r}", "it is True, False or None")
    input_format = dict(source.blueprint.input_format)
    if invert is not None and "invert" in input_format:
        input_format["invert"] = bool(invert)
    learner = _learner(source, options)
    rows = source.blueprint.backbone == IDENTITY and not source.blueprint.dataset
    if rows:
        learner = learner.double()
    return Model(
        source.name, source.sha256, source.blueprint, learner.to(place), place, input_format, rows
    )


def _learner(source: Source, options: Mapping[str, Any] | None) -> Algorithm:
    if not isinstance(options, Mapping | None):
        raise OptionError(f"options cannot be {options!r}", "give a dictionary of name and value")
    chosen = dict(options or {})
    learner = source.model(**chosen)
    if learner.transductive and learner.inductive_options:
        learner = source.model(**{**learner.inductive_options, **chosen})
    return learner
