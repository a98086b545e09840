"""Labels: what they may be, and which classes they name."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

import numpy as np
from torch import Tensor

from metazoo.errors import InputError, OptionError

# Between a small letter or a digit and a capital, as in "cardArrival".
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def listed(values: Any, what: str) -> list[Any]:
    """Return values as a list; raise InputError for what has no order or is no list."""
    try:
        if not isinstance(values, str | bytes | Set | Mapping):
            return list(values)
    except TypeError:  # such as an array without dimensions
        pass
    raise InputError(f"the {what} are a {type(values).__name__}", f"give a list of {what}")


def read_labels(y: Any) -> list[Any]:
    """Return labels as Python values; raise InputError for targets that are not classes."""
    if y is None:
        raise InputError(
            "a classifier requires y to be passed, but the target y is None",
            "give one label for each example",
        )
    if hasattr(y, "__array__") and not isinstance(y, Tensor):
        y = np.asarray(y)
    if isinstance(y, np.ndarray) and (y.ndim == 2 or (y.ndim and y.dtype.kind in "biufUS")):
        y = _column(y)
    labels = [_plain(label) for label in listed(y, "labels")]
    try:
        if any(label != label for label in labels):
            raise InputError("a label is NaN", "leave out examples without a label")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the labels cannot be compared: {error}", "use one string or number per example"
        ) from error
    return labels


def _column(y: np.ndarray) -> np.ndarray:
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import column_or_1d

    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise InputError("a label is NaN or infinite", "leave out examples without a label")
    try:
        y = column_or_1d(y, warn=True)
        if y.dtype.kind != "O":
            check_classification_targets(y)
    except ValueError as error:
        raise InputError(str(error), "give one class for each example") from error
    return y


def _plain(label: Any) -> Any:
    """Return a label as a Python value: two tensors of one value would be two different labels."""
    return label.tolist() if isinstance(label, (Tensor, np.generic, np.ndarray)) else label


def sorted_classes(labels: Iterable[Hashable]) -> list[Any]:
    """Return the distinct labels, sorted by type and value; raise InputError if they have no order."""
    try:
        return sorted(set(labels), key=lambda label: (str(type(label)), label))
    except TypeError as error:
        raise InputError(
            f"the labels cannot be sorted: {error}", "use one string or number per example"
        ) from error


def as_array(labels: list[Any]) -> np.ndarray:
    """Return labels as an array (N,): of their type if they share it, otherwise of objects."""
    if len({type(label) for label in labels}) == 1 and isinstance(labels[0], str | int | float):
        array = np.array(labels)
        if array.dtype.kind != "O" and array.tolist() == labels:
            return array
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def texts_of(classes: list[Any], names: Any) -> list[str] | None:
    """Return the text that names each class, or None if `names` is None or not all classes have one.

    "auto" reads the labels: `_` becomes a space, and "cardArrival" becomes "card Arrival". Raises
    OptionError if a dictionary of names lacks a class.
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        missing = [label for label in classes if not isinstance(names.get(label), str)]
        if missing:
            raise OptionError(
                f"names has no text for the class {missing[0]!r}",
                "give a name or a description of each class",
            )
        return [names[label] for label in classes]
    if names != "auto":
        raise OptionError(
            f"names cannot be {names!r}", 'it is "auto", None, or a dictionary of label and name'
        )
    if not all(isinstance(label, str) and label.strip("_ ") for label in classes):
        return None
    return [_CAMEL.sub(" ", label.replace("_", " ")).strip() for label in classes]
