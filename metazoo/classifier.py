"""A few-shot classifier for a person with a few labelled examples: fit, predict."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metazoo.device import find_device
from metazoo.errors import DataError, OptionError
from metazoo.images import decode
from metazoo.tasks.examples import as_floats
from metazoo.zoo.find import Source, find

QUERIES_AT_ONCE = 500


class FewShotClassifier:
    """Classifies examples by a few labelled ones of each class, with a pretrained model.

    `model` is what `metazoo.load` takes, or what `metazoo.zoo.find` gives for it; `options` are options of its algorithm to set
    otherwise; `invert` says whether dark and light are swapped in image files (default: as in the model's training).

    Examples are image files (paths or PIL images), or a tensor or array (N, *) in the model's own input shape:
    uint8, or float in [0, 1]. After `fit`, `classes_` are the labels, sorted.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Source = "protonet.omniglot", *, device: str = "auto", invert: bool | None = None,
        **options: Any,
    ):  # fmt: skip
        # The weights as they were read are not kept beside the model that is made of them.
        source = model if isinstance(model, Source) else find(model)
        self.name, self.blueprint = source.name, source.blueprint
        if self.blueprint.spec.regression:
            raise OptionError(
                f"'{self.name}' is a regression model and classifies nothing",
                "`metazoo list` shows every model",
            )
        self.device = find_device(device)
        self.model = source.model(**options).to(self.device)
        self.input_format = dict(self.blueprint.input_format)
        if invert is not None:
            self.input_format["invert"] = invert
        self.classes_: list[Any] = []

    def fit(self, X: Any, y: Sequence[Hashable]) -> FewShotClassifier:
        """Take labelled examples, at least one of each of two classes or more, and return self."""
        # Tensors and numpy's numbers in a list, too, become plain ones: two tensors of one value are two different keys.
        labels = [
            label.tolist() if isinstance(label, (Tensor, np.generic, np.ndarray)) else label
            for label in y
        ]
        support = self._read(X)
        if len(labels) != len(support):
            raise DataError(
                f"there are {len(support)} examples but {len(labels)} labels",
                "give one label for each example",
            )
        try:
            classes = sorted(set(labels), key=lambda label: (str(type(label)), label))
        except TypeError as error:
            raise DataError(
                f"the labels cannot be sorted: {error}", "give one text or number an example"
            ) from error
        if len(classes) < 2:
            raise DataError(f"there is only one class ({classes[0]!r})" if labels else "there are no examples",
                            "give labelled examples of two classes or more")  # fmt: skip
        places = {label: i for i, label in enumerate(classes)}
        self.classes_ = classes
        self._support, self._labels = (
            support,
            torch.tensor([places[label] for label in labels], device=self.device),
        )
        return self

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for each example, (N, classes) in the order of `classes_`.

        A transductive model judges all examples of one call together.
        """
        if not self.classes_:
            raise OptionError("the classifier has no labelled examples yet", "call fit first")
        queries = self._read(X)
        size = max(1, len(queries)) if self.model.transductive else QUERIES_AT_ONCE
        parts = [
            self.model(self._support.unsqueeze(0), self._labels.unsqueeze(0), part.unsqueeze(0))[
                0
            ].softmax(-1)
            for part in queries.split(size)
            if len(part)
        ]
        return (
            torch.cat(parts).cpu().numpy()
            if parts
            else np.zeros((0, len(self.classes_)), np.float32)
        )

    def predict(self, X: Any) -> list[Any]:
        """Return the most probable label of each example."""
        return [self.classes_[i] for i in self.predict_proba(X).argmax(1)]

    def _read(self, X: Any) -> Tensor:
        shape = self.blueprint.spec.input_shape
        if isinstance(X, (str, Path, Image.Image)):
            raise DataError(
                "this is one image, not a list of images", "put it into a list: [image]"
            )
        if isinstance(X, (Tensor, np.ndarray)):
            try:
                x = X if isinstance(X, Tensor) else torch.from_numpy(np.array(X, order="C"))
            except TypeError as error:
                raise DataError(
                    f"an array of {X.dtype} holds no examples: {error}",
                    "give a list of image files, or an array of numbers",
                ) from error
            if self.input_format and not (x.dtype == torch.uint8 or x.is_floating_point()):
                raise DataError(
                    f"examples are {x.dtype}", "give images as uint8, or as float in [0, 1]"
                )
            x = as_floats(x) if x.dtype == torch.uint8 else x.float()
        else:
            X = list(X)
            if any(isinstance(i, (Tensor, np.ndarray)) for i in X):
                raise DataError(
                    "this is a list of tensors or arrays",
                    "stack them into one, the first dimension the examples",
                )
            if not self.input_format:
                raise DataError(
                    f"'{self.name}' does not take images",
                    f"give a tensor of examples of shape {shape}",
                )
            images = [decode(Path(i) if isinstance(i, str) else i, **self.input_format) for i in X]
            x = as_floats(torch.stack(images)) if images else torch.zeros(0, *shape)
        if tuple(x.shape[1:]) != shape:
            raise DataError(
                f"the examples have shape {tuple(x.shape)}, but '{self.name}' takes (N, {', '.join(map(str, shape))})",
                "give image files, which are made to fit, or bring the tensor into that shape; one example is x[None]"
                if self.input_format
                else "bring the tensor into that shape; one example is x[None]",
            )
        if self.input_format and x.numel() and not (x.min() >= 0 and x.max() <= 1):
            raise DataError(
                f"examples have values from {x.min():g} to {x.max():g}, where images have 0 to 1",
                "give uint8 images, or divide by 255",
            )
        return x.to(self.device)
