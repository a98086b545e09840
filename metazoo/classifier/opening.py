"""From what a user gives to `fit` and `predict` to a model and examples that fit it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from metazoo.classifier import models
from metazoo.classifier.examples import Given, look
from metazoo.classifier.models import Model
from metazoo.errors import InputError
from metazoo.inputs import kind_of


def opened(estimator: BaseEstimator, X: Any) -> tuple[Model, Given]:
    """Return the model that an estimator's parameters choose for these examples, and the examples.

    Sets `n_features_in_` if they are rows of numbers. Raises InputError if there are no examples
    and no names of classes.
    """
    source = models.named(estimator.model)
    given = look(X, None if source is None else kind_of(source.blueprint.input_format))
    if source is None:
        if given.kind is None and not isinstance(estimator.names, Mapping):
            raise InputError(
                "there are no examples", "give labelled examples, or the names of the classes"
            )
        kind = given.kind or "text"
        given = _checked(estimator, Given(kind, given.values), kind == "numbers", reset=True)
        source = models.default(kind, given.values.shape[1:] if kind == "numbers" else ())
        model = models.build(source, estimator.options, estimator.invert, estimator.device)
    else:
        model = models.build(source, estimator.options, estimator.invert, estimator.device)
        given = _checked(estimator, given, model.takes_rows, reset=True)
    return model, given


def reopened(estimator: BaseEstimator, X: Any, model: Model) -> Given:
    """Return further examples for the same model."""
    return _checked(estimator, look(X, model.kind), model.takes_rows, reset=False)


def _checked(estimator: BaseEstimator, given: Given, rows: bool, reset: bool) -> Given:
    """Return examples whose rows of numbers are finite, and as long as before."""
    values = given.values
    if not rows or isinstance(values, list):
        return given
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        values = validate_data(
            estimator, values, reset=reset, dtype=np.float64, ensure_min_samples=int(reset)
        )
    except (ValueError, TypeError) as error:
        raise InputError(str(error), "give rows of numbers, all of the same length") from error
    return Given("numbers", values)
