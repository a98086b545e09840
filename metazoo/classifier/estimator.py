"""A classifier for a few labelled examples, with the interface of scikit-learn."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metazoo.appearance import Look, blank, opposite, unlike_drawings
from metazoo.device import find_device
from metazoo.errors import DataError, DataWarning, MetazooError, OptionError
from metazoo.evaluation.score import require_numbers
from metazoo.images import decode
from metazoo.plugins.registry import registry
from metazoo.tasks.examples import as_bytes, as_floats
from metazoo.zoo.find import find
from metazoo.zoo.source import Source

QUERIES_AT_ONCE = 500


class FewShotClassifier:
    """Classifies examples with a pretrained model, from a few labelled examples of each class.

    Examples are image files (paths or Pillow images), or a tensor or array (N, *) in the input
    shape of the model: uint8, or float in [0, 1]; integers, if the model takes those. After `fit`,
    `classes_` holds the sorted labels.

    A transductive model gets the options that make it inductive, if its algorithm has such options
    (`inductive_options`) and they are not given. DataWarning is issued if answers depend on other
    queries all the same, if the model needs equally many examples of each class and does not get
    them, and if pictures do not look like those that the model was trained on.

    Args:
        model: a name, path or address, as for `metazoo.load`.
        device: "cpu", "cuda", "cuda:1", ...; "auto" uses a GPU if there is one.
        invert: whether to swap dark and light in image files; the default is as in training.
        options: options of the algorithm to override.

    Raises:
        OptionError: if the model is for regression, or does not have such options.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Source = "protonet.omniglot",
        *,
        device: str = "auto",
        invert: bool | None = None,
        **options: Any,
    ):
        # The source holds the bytes of the weights, so it is not kept.
        source = model if isinstance(model, Source) else find(model)
        self.name, self.blueprint = source.name, source.blueprint
        if self.blueprint.spec.regression:
            raise OptionError(
                f"'{self.name}' is a regression model and cannot classify",
                "`metazoo list` shows every model",
            )
        self.device = find_device(device)
        self.model = source.model(**options)
        if self.model.transductive and self.model.inductive_options:
            self.model = source.model(**{**self.model.inductive_options, **options})
        self.model.to(self.device)
        self.input_format = dict(self.blueprint.input_format)
        if not isinstance(invert, bool | np.bool_ | None):
            raise OptionError(f"invert cannot be {invert!r}", "it is True, False or None")
        if invert is not None:
            self.input_format["invert"] = bool(invert)
        self.classes_: list[Any] = []

    def fit(self, X: Any, y: Sequence[Hashable]) -> FewShotClassifier:
        """Keep labelled examples of at least two classes, and return self.

        Raises DataError if examples and labels do not fit together or to the model.
        """
        support = self._read(X)
        labels = [_plain(label) for label in _listed(y, "labels")]
        if len(labels) != len(support):
            raise DataError(
                f"there are {len(support)} examples but {len(labels)} labels",
                "give one label for each example",
            )
        classes = _sorted_classes(labels)
        indices = {label: i for i, label in enumerate(classes)}
        numbers = torch.tensor([indices[label] for label in labels], device=self.device)
        self._warn_of_contradictions(support, labels)
        order = _order(support, numbers)
        self.classes_, self._support, self._labels = classes, support[order], numbers[order]
        self._warn_of_unequal_shots()
        self._look = self._warn_of_looks(support, "labelled examples")
        return self

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities (N, classes), in the order of `classes_`.

        They do not depend on the order of the examples, neither here nor in `fit`. If the model is
        transductive, they depend on all examples of the call. Raises NotANumber if the model
        returns NaN or infinity.
        """
        if not self.classes_:
            raise OptionError("the classifier has no labelled examples yet", "call fit first")
        queries = self._read(X)
        if not len(queries):
            return np.zeros((0, len(self.classes_)), np.float32)
        self._warn_of_looks(queries, "queries", self._look)
        self._warn_of_transduction(len(queries))
        size = len(queries) if self.model.transductive else QUERIES_AT_ONCE
        support, labels = self._support.unsqueeze(0), self._labels.unsqueeze(0)
        order = _order(queries)
        parts = queries[order].split(size)
        logits = torch.cat([self.model(support, labels, part.unsqueeze(0))[0] for part in parts])
        require_numbers(logits)
        return logits[order.argsort()].softmax(-1).cpu().numpy()

    def predict(self, X: Any) -> list[Any]:
        """Return the most probable label of each example."""
        return [self.classes_[i] for i in self.predict_proba(X).argmax(1)]

    def _warn_of_contradictions(self, support: Tensor, labels: Sequence[Any]) -> None:
        first: dict[bytes, Any] = {}
        for digest, label in zip(_digests(support), labels):
            if first.setdefault(digest, label) != label:
                _warn(f"one example has both labels {first[digest]!r} and {label!r}")

    def _warn_of_unequal_shots(self) -> None:
        counts = self._labels.bincount()
        low, high = int(counts.min()), int(counts.max())
        if self.model.equal_shots and low < high:
            _warn(
                f"the classes have from {low} to {high} examples, and '{self.blueprint.algorithm}' "
                "answers less well then; give each the same number, or use protonet"
            )

    def _warn_of_transduction(self, queries: int) -> None:
        if self.model.transductive:
            text = f"each answer depends on all {queries} queries"
            if queries == 1:
                text = "its answer to a single query may be no better than guessing"
            _warn(f"'{self.name}' is transductive: {text}")

    def _warn_of_looks(self, pictures: Tensor, what: str, told: Look | None = None) -> Look | None:
        """Warn if pictures do not look like those that the model learned, or that it was fitted to.

        Returns how they differ from drawings, or None. Does not repeat `told`, which an earlier
        warning named.
        """
        if not self.input_format:
            return None
        if empty := blank(pictures):
            _warn(
                f"{empty} of {len(pictures)} {what} are blank, as a picture of one colour is, or one "
                "divided by 255 twice: their answers mean nothing"
            )
        if not _learned_drawings(self.blueprint.dataset):
            if opposite(self._support, pictures):
                _warn(f"dark and light seem swapped between the labelled examples and the {what}")
            return None
        look = unlike_drawings(pictures)
        if look in (None, told):
            return look
        seen, hint = look.value, "use a model trained on such pictures"
        if look is Look.LIGHT_GROUND:
            inverts = self.input_format["invert"]
            seen += " once inverted" if inverts else ""
            hint = f"for image files, set invert={not inverts} (--{'no-' * inverts}invert)"
        _warn(
            f"many {what} are {seen}, and '{self.name}' learned drawings, light on dark: "
            f"the answers may be no better than guessing; {hint}"
        )
        return look

    def _read(self, X: Any) -> Tensor:
        """Return examples as floats (N, *) on the device, or raise DataError."""
        if isinstance(X, (str, Path, Image.Image)):
            raise DataError(
                "this is one image, not a list of images", "put it into a list: [image]"
            )
        x = self._from_array(X) if isinstance(X, (Tensor, np.ndarray)) else self._from_files(X)
        self._check_examples(x)
        return x.to(self.device)

    def _from_array(self, X: Tensor | np.ndarray) -> Tensor:
        try:
            # torch cannot use arrays that are read-only or have negative strides; copies it can.
            x = X if isinstance(X, Tensor) else torch.from_numpy(_native(X))
        except TypeError as error:
            raise DataError(
                f"an array of {X.dtype} cannot be examples: {error}",
                "give a list of image files, or an array of numbers",
            ) from error
        if x.layout is not torch.strided or x.is_meta or x.is_quantized or x.is_complex():
            raise DataError(
                "a tensor that is sparse, quantized, complex or on the meta device cannot be examples",
                "give a dense tensor of numbers",
            )
        if self.blueprint.spec.integers:
            if x.is_floating_point():
                raise DataError(
                    f"examples are {x.dtype}, but '{self.name}' takes integers",
                    "give the integers that its data set would, such as token ids",
                )
            return x.long()
        if x.dtype == torch.uint8:
            return as_floats(x)
        if self.input_format and not x.is_floating_point():
            raise DataError(f"examples are {x.dtype}", "give images as uint8, or float in [0, 1]")
        return x.float()

    def _from_files(self, X: Any) -> Tensor:
        files = _listed(X, "examples")
        shape = self.blueprint.spec.input_shape
        if any(isinstance(file, (Tensor, np.ndarray)) for file in files):
            raise DataError(
                "this is a list of tensors or arrays", "stack them along a new first dimension"
            )
        if not self.input_format:
            raise DataError(
                f"'{self.name}' does not take image files",
                f"give a tensor of examples of shape {shape}",
            )
        if not files:
            return torch.zeros(0, *shape)
        images = (Path(file) if isinstance(file, str) else file for file in files)
        return as_floats(torch.stack([decode(image, **self.input_format) for image in images]))

    def _check_examples(self, x: Tensor) -> None:
        shape = self.blueprint.spec.input_shape
        if tuple(x.shape[1:]) != shape:
            expected = ", ".join(map(str, shape))
            hint = "give image files, which are resized, or " if self.input_format else ""
            raise DataError(
                f"the examples have shape {tuple(x.shape)}, "
                f"but '{self.name}' takes (N, {expected})",
                f"{hint}reshape the tensor; pass a single example as x[None]",
            )
        if self.input_format and x.numel() and not (x.min() >= 0 and x.max() <= 1):
            raise DataError(
                f"examples have values from {x.min():g} to {x.max():g}; images have 0 to 1",
                "give uint8 images, or divide by 255",
            )


def _learned_drawings(dataset: str) -> bool:
    try:
        return registry().dataset(dataset).value.drawings
    except MetazooError:  # a model can be used without the plugin of its data
        return False


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=4)


def _order(x: Tensor, *labels: Tensor) -> Tensor:
    """Return an order of examples (N, *) that depends only on what they are, and on their labels."""
    keys = list(zip(_digests(x), *(y.tolist() for y in labels)))
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), device=x.device)


def _digests(x: Tensor) -> list[bytes]:
    return [hashlib.sha256(as_bytes(row)).digest() for row in x.cpu()]


def _native(X: np.ndarray) -> np.ndarray:
    """Return a contiguous copy of an array, in the byte order of this machine."""
    return np.array(X, dtype=X.dtype.newbyteorder("="), order="C")


def _listed(values: Any, what: str) -> list[Any]:
    """Return values as a list; raise DataError for what has no order or is no list."""
    try:
        if not isinstance(values, str | bytes | Set | Mapping):
            return list(values)
    except TypeError:  # such as an array without dimensions
        pass
    raise DataError(f"the {what} are a {type(values).__name__}", f"give a list of {what}")


def _plain(label: Any) -> Any:
    """Return a label as a Python value: two tensors of one value would be two different labels."""
    return label.tolist() if isinstance(label, (Tensor, np.generic, np.ndarray)) else label


def _sorted_classes(labels: Sequence[Hashable]) -> list[Any]:
    """Return the distinct labels, sorted by type and value, or raise DataError if there is one."""
    try:
        if any(label != label for label in labels):
            raise DataError("a label is NaN", "leave out examples without a label")
        classes = sorted(set(labels), key=lambda label: (str(type(label)), label))
    except TypeError as error:
        raise DataError(
            f"the labels cannot be sorted: {error}", "use one string or number per example"
        ) from error
    if len(classes) < 2:
        raise DataError(
            f"there is only one class ({classes[0]!r})" if classes else "there are no examples",
            "give labelled examples of at least two classes",
        )
    return classes
