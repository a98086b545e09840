"""What the examples of a classifier may be, and how they become tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metazoo.classifier.labels import listed
from metazoo.classifier.models import Model
from metazoo.errors import InputError
from metazoo.images import is_image
from metazoo.inputs import Kind, read
from metazoo.tasks.examples import as_floats

# Numbers in the examples that are read and embedded at once, and the most examples.
NUMBERS_AT_ONCE = 2**23
MOST_AT_ONCE = 4096


@dataclass(frozen=True)
class Given:
    """Examples as they were given.

    `values` is a list of texts or images, an array or tensor, or a table. `kind` is None if there
    are none and nothing tells what they would be.
    """

    kind: Kind | None
    values: Any

    def __len__(self) -> int:
        return len(self.values)

    @property
    def raw(self) -> list[str | None]:
        """The texts and paths, which are kept to be shown; None for others."""
        if not isinstance(self.values, list):
            return [None] * len(self.values)
        return [str(v) if isinstance(v, str | Path) else None for v in self.values]


def look(X: Any, kind: Kind | None = None) -> Given:
    """Return what examples are.

    Strings are what `kind` says. Without it they are paths if such a file exists or they look like
    the name of an image; otherwise they are texts. Raises InputError if examples are no list, or of
    several kinds.
    """
    if isinstance(X, str | Path | Image.Image):
        what = "text or image" if isinstance(X, str) else "image"
        raise InputError(f"this is one {what}, not a list", "put it into a list: [example]")
    values = _unwrapped(X)
    if not isinstance(values, list):
        dimensions = getattr(values, "ndim", 2)
        if dimensions == 0:
            raise InputError("the examples have shape ()", "give a list of examples, or rows")
        return Given("image" if dimensions == 4 else "numbers", values)
    values = [_picture(value) for value in values]
    kinds = [_kind_of(value, kind) for value in values]
    if len(set(kinds)) > 1:
        other = next(i for i, each in enumerate(kinds) if each != kinds[0])
        raise InputError(
            f"example 0 is {_ARTICLE[kinds[0]]}, and example {other} is {_ARTICLE[kinds[other]]}",
            "give examples of one kind; a model that is named explicitly reads all strings alike",
        )
    if kinds[:1] == ["numbers"]:
        return Given("numbers", _rows(values))
    return Given(kinds[0] if kinds else kind, values)


_ARTICLE = {"image": "an image", "text": "a text", "numbers": "numbers"}


def _unwrapped(X: Any) -> Any:
    """Return a list, or an array, tensor or table of numbers."""
    if isinstance(X, Tensor) or hasattr(X, "tocsr"):
        return X
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):  # a table of pandas or polars
        return X if X.shape[1] != 1 else _unwrapped_array(X.to_numpy(), X)
    if hasattr(X, "to_list"):  # a column of pandas or polars
        return X.to_list()
    if hasattr(X, "__array__") and not isinstance(X, np.ndarray):
        X = np.asarray(X)
    return _unwrapped_array(X, X) if isinstance(X, np.ndarray) else listed(X, "examples")


def _unwrapped_array(array: np.ndarray, otherwise: Any) -> Any:
    """Return an array's strings or objects as a list; for numbers, return `otherwise`."""
    column = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if column.ndim == 1 and len(column) and isinstance(column[0], str | Path | Image.Image):
        return column.tolist()
    return otherwise


def _picture(value: Any) -> Any:
    """Return a colour picture in an array (H, W, 3) or (H, W, 4) as an image."""
    if isinstance(value, np.ndarray) and value.ndim == 3 and _has_colours(value):
        return Image.fromarray(value)
    return value


def _has_colours(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.shape[-1] in (3, 4)


def _kind_of(value: Any, kind: Kind | None) -> Kind:
    if isinstance(value, str):
        if kind in ("image", "text"):
            return kind
        named = is_image(value) and not any(map(str.isspace, value))
        return "image" if named or os.path.isfile(value) else "text"
    if isinstance(value, Path | Image.Image | bytes):
        return "image"
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.ndim > 1):
        raise InputError(
            "this is a list of tensors or arrays", "stack them along a new first dimension"
        )
    return "numbers"


def _rows(values: list[Any]) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"a list of {type(values[0]).__name__} cannot be examples: {error}",
            "give rows of numbers, all of the same length",
        ) from error


def parts(given: Given, model: Model) -> Iterator[Tensor]:
    """Yield examples as a model takes them (n, *), on its device, a part at a time.

    Raises InputError if they do not fit the model, DataError if an image cannot be read.
    """
    shape = model.blueprint.spec.input_shape
    values = _fitting(given, model)
    size = min(MOST_AT_ONCE, max(1, NUMBERS_AT_ONCE // max(1, int(np.prod(shape)))))
    for first in range(0, len(values), size):
        part = values[first : first + size]
        x = read(part, model.input_format) if isinstance(part, list) else part
        x = as_floats(x) if x.dtype == torch.uint8 else x
        _check_values(x, model)
        yield x.to(model.device)


def _fitting(given: Given, model: Model) -> list[Any] | Tensor:
    """Return raw examples that the model's input format reads, or a tensor of the model's shape."""
    values = given.values
    if isinstance(values, list):
        if values and given.kind != model.kind:
            raise InputError(
                f"'{model.name}' does not take {_PLURAL[given.kind or 'numbers']}", _hint(model)
            )
        return values
    x = _tensor(values, model)
    fits = tuple(x.shape[1:]) == _shape(model)
    colours = isinstance(values, np.ndarray) and values.ndim == 4 and _has_colours(values)
    if model.kind == "image" and colours and not fits:
        return [Image.fromarray(value) for value in values]
    if not fits:
        raise InputError(
            f"the examples have shape {tuple(x.shape)}, but '{model.name}' takes "
            f"(N, {', '.join(map(str, _shape(model)))})",
            f"{_hint(model)}, or reshape the tensor; pass a single example as x[None]",
        )
    return x


_PLURAL = {"image": "image files", "text": "texts", "numbers": "rows of numbers"}


def _shape(model: Model) -> tuple[int, ...]:
    return tuple(model.blueprint.spec.input_shape)


def _hint(model: Model) -> str:
    if model.kind == "numbers":
        return f"give a tensor of examples of shape {_shape(model)}"
    return "give image files" if model.kind == "image" else "give a list of texts"


def _tensor(values: Any, model: Model) -> Tensor:
    try:
        # torch cannot use arrays that are read-only or have negative strides; copies it can.
        x = values if isinstance(values, Tensor) else torch.from_numpy(_native(values))
    except TypeError as error:
        raise InputError(
            f"an array of {values.dtype} cannot be examples: {error}", _hint(model)
        ) from error
    if x.layout is not torch.strided or x.is_meta or x.is_quantized or x.is_complex():
        raise InputError(
            "a tensor that is sparse, quantized, complex or on the meta device cannot be examples",
            "give a dense tensor of numbers",
        )
    return _typed(x, model)


def _typed(x: Tensor, model: Model) -> Tensor:
    """Return a tensor in the type that the model takes; uint8 images stay as they are."""
    if model.blueprint.spec.integers:
        if x.is_floating_point():
            raise InputError(
                f"examples are {x.dtype}, but '{model.name}' takes integers",
                "give the integers that its data set would, such as token ids",
            )
        return x.long()
    if x.dtype == torch.uint8 and not model.rows:
        return x
    if model.kind == "image" and not x.is_floating_point():
        raise InputError(f"examples are {x.dtype}", "give images as uint8, or float in [0, 1]")
    return x.double() if model.rows else x.float()


def _native(values: Any) -> np.ndarray:
    """Return a contiguous copy of an array, in the byte order of this machine."""
    array = np.asarray(values)
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def _check_values(x: Tensor, model: Model) -> None:
    if model.kind == "image" and x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(
            f"examples have values from {x.min():g} to {x.max():g}; images have 0 to 1",
            "give uint8 images, or divide by 255",
        )
