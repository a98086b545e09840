"""A model that is fitted to its support set, and all that was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo.base.algorithm import FeatureLearner
from metazoo.classifier.calibration import GAP, GAP_OF_ROWS, factor_of, typical_factor
from metazoo.classifier.examples import Given
from metazoo.classifier.head import Head
from metazoo.classifier.honesty import LeftOut
from metazoo.classifier.labels import texts_of
from metazoo.classifier.models import Model
from metazoo.classifier.rejection import Novelty
from metazoo.classifier.support import Examples, Support, read
from metazoo.errors import InputError, OptionError

LARGEST = 3.0  # standard deviations


@dataclass(frozen=True)
class Scaling:
    """Standardizes features, so that no unit of measurement outweighs the others.

    Deviations are measured on the support set, and limited to `LARGEST` of them: few examples do
    not show how far numbers reach. A constant feature is added, because many heads scale
    features to length 1, and their length tells something too. Chosen on the data sets of
    scikit-learn (docs/notes/classifier.md).
    """

    mean: Tensor
    factor: Tensor
    constant: float

    @classmethod
    def of(cls, z: Tensor) -> Scaling:
        """Return the scaling of features (S, D); one that is the same in all examples becomes 0."""
        deviation = z.std(0, correction=0)
        varies = deviation > 1e-12 * z.abs().amax(0)
        factor = torch.where(varies, 1 / deviation.clamp_min(1e-300), 0.0)
        return cls(z.mean(0), factor, max(1, int(varies.sum())) ** 0.5)

    def __call__(self, z: Tensor) -> Tensor:
        """Return features (N, D + 1)."""
        z = ((z - self.mean) * self.factor).clamp(-LARGEST, LARGEST)
        return F.pad(z, (0, 1), value=self.constant)


@dataclass(frozen=True)
class Measured:
    """What the support set says of a model.

    Attributes:
        left_out: how many support examples the others classify correctly.
        factor: by which the logits are multiplied, so that probabilities mean what they say.
        threshold: the novelty above which a query belongs to no class.
    """

    left_out: LeftOut
    factor: float
    threshold: float


@dataclass(frozen=True)
class Fitted:
    """A model with its support set.

    Attributes:
        classes: the labels, in the order of the logits.
        scaling: of the features of rows of numbers; None for other examples.
    """

    model: Model
    support: Support
    classes: list[Any]
    scaling: Scaling | None
    head: Head
    measured: Measured

    def read(self, given: Given) -> Examples:
        """Read queries, with features as the head classifies them."""
        found = read(given, self.model)
        if self.scaling is None:
            return found
        return Examples(self.scaling(found.values), found.digests, found.pictures)

    def logits(self, queries: Examples) -> Tensor:
        """Return calibrated logits (N, ways); they do not depend on the order of the queries."""
        order = queries.order()
        return self.head.logits(queries.values[order])[order.argsort()] * self.measured.factor

    def novelty(self, queries: Examples, logits: Tensor) -> Tensor:
        """Return how unlike all classes queries with these calibrated logits are, (N,)."""
        return Novelty(self.head)(queries.values, logits)

    @property
    def scaled_support(self) -> Tensor:
        """The support examples as `read` gives queries, in the order in which they were given."""
        values = self.support.values
        return values if self.scaling is None else self.scaling(values)

    def features(self, examples: Examples) -> Tensor:
        """Return the features (N, D) of examples; raise OptionError if the model has none."""
        if not self.model.adapts_features:
            raise OptionError(
                f"'{self.model.name}' has no embedding of its own: "
                f"'{self.model.blueprint.algorithm}' changes the backbone for each task",
                "use a model that adapts in feature space, such as one of protonet",
            )
        return examples.values


def fit(
    model: Model,
    support: Support,
    classes: list[Any],
    names: Any,
    calibrate: bool,
    measured: Measured | None = None,
) -> Fitted:
    """Fit a model to labelled examples; `names` is the parameter of `FewShotClassifier`.

    Measures what the support set says, unless that is given. Raises InputError if there is nothing
    to classify with, OptionError for names that cannot be used.
    """
    number = {label: i for i, label in enumerate(classes)}
    numbers = [number[label] for label in support.labels]
    order = support.order(numbers)
    y = torch.tensor(numbers, dtype=torch.long, device=order.device)[order]
    values = support.values[order]
    scaling = Scaling.of(values) if model.rows else None
    values = values if scaling is None else scaling(values)
    head = Head(model, values, y, len(classes), _names_z(model, classes, names))
    if not len(head.seen):
        raise InputError("there are no examples", "give labelled examples of at least two classes")
    measured = measured or _measure(head, calibrate)
    return Fitted(model, support, classes, scaling, head, measured)


def _measure(head: Head, calibrate: bool) -> Measured:
    rows, logits = head.left_out()
    factor = 1.0
    if calibrate and len(rows):
        factor = factor_of(logits, head.y[rows])
    elif calibrate and head.model.adapts_features and (head.model.rows or head.model.encoded):
        factor = typical_factor(*head.of_support(), GAP_OF_ROWS if head.model.rows else GAP)
    threshold = Novelty(head).threshold(rows, logits * factor, factor)
    return Measured(LeftOut.of(logits, head.y[rows]), factor, threshold)


def _names_z(model: Model, classes: list[Any], names: Any) -> Tensor | None:
    """Return the features (ways, D) of the names of the classes, or None if they are not used."""
    texts = texts_of(classes, names)
    learner = model.learner
    if texts is None or not (
        model.kind == "text" and isinstance(learner, FeatureLearner) and learner.uses_names
    ):
        if isinstance(names, Mapping):
            raise OptionError(
                f"'{model.name}' does not use the names of classes",
                "leave out names, or use a model of texts such as logistic@minilm",
            )
        return None
    return read(Given("text", texts), model).values
