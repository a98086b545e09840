"""A classifier for a few labelled examples, as an estimator of scikit-learn."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from metazoo.classifier import explanation, fitted, saving, suggestion
from metazoo.classifier.doubts import doubts, doubts_of_queries
from metazoo.classifier.explanation import Neighbour
from metazoo.classifier.fitted import Fitted
from metazoo.classifier.labels import as_array, listed, read_labels, sorted_classes
from metazoo.classifier.opening import opened, reopened
from metazoo.classifier.support import Examples, read_support
from metazoo.errors import DataWarning, InputError, OptionError
from metazoo.inputs import Kind
from metazoo.zoo.source import Source


@dataclass(frozen=True)
class Answer:
    """What the classifier says of one example.

    Attributes:
        label: its label, or None if it is rejected.
        probabilities: of each class (classes,), in the order of `classes_`.
        nearest: the support examples that are most similar to it, the best first.
    """

    label: Any
    probabilities: np.ndarray
    nearest: list[Neighbour]


class _NotFitted(OptionError, NotFittedError):
    pass


class FewShotClassifier(ClassifierMixin, TransformerMixin, BaseEstimator):
    """Classifies examples with a pretrained model, from a few labelled examples of each class.

    Examples are a list, an array or a column of pandas or polars, of one kind: image files (paths
    or Pillow images), texts, or rows of numbers. A string is a path if such a file exists or it has
    the name of an image. A tensor or array (N, *) in the input shape of the model will do too: uint8, or
    float in [0, 1], for images; token ids for texts.

    It is an estimator of scikit-learn: nothing is read before `fit`.

    Args:
        model: a name, path or address, as for `metazoo.load`; "auto" chooses by what is given to
            `fit`.
        names: texts that name the classes, as evidence for a model of texts that can use it: a
            dictionary from label to name or description, which may name classes without examples;
            "auto" reads the labels; None does not use names.
        calibrate: whether probabilities are scaled so that they mean what they say.
        reject: "auto" gives queries that belong to no class the label None.
        options: options of the algorithm to override.
        invert: whether to swap dark and light in image files; the default is as in training.
        device: "cpu", "cuda", "cuda:1", ...; "auto" uses a GPU if there is one.

    Attributes:
        classes_: the sorted labels.
        model_: the name of the model that was chosen.
        loo_accuracy_: the share of support examples that the others classify correctly, None if no
            class has two; `loo_interval_` is its 95 % interval, and `loo_count_` how many were left
            out.
        n_features_in_: the numbers of a row, if examples are rows.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Source = "auto",
        *,
        names: Literal["auto"] | Mapping[Any, str] | None = "auto",
        calibrate: bool = True,
        reject: Literal["auto"] | None = None,
        options: Mapping[str, Any] | None = None,
        invert: bool | None = None,
        device: str = "auto",
    ):
        self.model = model
        self.names = names
        self.calibrate = calibrate
        self.reject = reject
        self.options = options
        self.invert = invert
        self.device = device

    def fit(self, X: Any, y: Any, classes: Iterable[Hashable] | None = None) -> FewShotClassifier:
        """Learn from labelled examples of at least two classes, and return self.

        A transductive model gets the options that make it inductive, if its algorithm has such
        options and they are not given. DataWarning is issued if answers depend on other queries all
        the same, if the model needs equally many examples of each class and does not get them, if
        pictures do not look like those that it was trained on, and if leave-one-out accuracy is
        near chance.

        Args:
            X: examples; there may be none if the model uses names.
            y: their labels.
            classes: all labels, if some have no examples.

        Raises:
            DataError: examples and labels do not fit together or to the model.
            OptionError: a parameter is invalid, or the model is for regression.
        """
        return self._learn(X, y, classes, None)

    def partial_fit(
        self, X: Any, y: Any, classes: Iterable[Hashable] | None = None
    ) -> FewShotClassifier:
        """Learn from more labelled examples, perhaps of new classes, and return self.

        A class of `classes` without examples has probability 0 until it has some. Raises as `fit`.
        """
        return self._learn(X, y, classes, getattr(self, "_fitted", None), fewest=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each example (N,).

        With `reject="auto"`, the label of an example that belongs to no class is None.
        """
        state, queries = self._queries(X)
        return self._labels(state, queries, state.logits(queries))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities (N, classes), in the order of `classes_`.

        They do not depend on the order of the examples, neither here nor in `fit`. If the model is
        transductive, they depend on all examples of the call. Raises NotANumber if the model
        returns NaN or infinity.
        """
        state, queries = self._queries(X)
        return state.logits(queries).softmax(1).cpu().numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy; the label None stands for examples that belong to no class."""
        right = [a == b for a, b in zip(self.predict(X).tolist(), read_labels(y), strict=True)]
        return float(np.average(right, weights=sample_weight))

    def transform(self, X: Any) -> np.ndarray:
        """Return the features (N, D) that are classified.

        Raises OptionError if the algorithm changes its backbone for each task.
        """
        state, examples = self._queries(X)
        return state.features(examples).cpu().numpy()

    def novelty(self, X: Any) -> np.ndarray:
        """Return how unlike all classes each example is (N,); those above `novelty_threshold_` are
        rejected by `reject="auto"`."""
        state, queries = self._queries(X)
        return state.novelty(queries, state.logits(queries)).cpu().numpy()

    def suggest(self, pool: Any, n: int) -> np.ndarray:
        """Return the positions (n,) of the examples of a pool to label next, the best first."""
        state, examples = self._queries(pool)
        if not 0 < n <= len(examples):
            raise InputError(
                f"{n} examples cannot be chosen from {len(examples)}", "choose at least 1"
            )
        features = state.features(examples)
        return np.array(suggestion.suggest(state.head.values, features, n))

    def explain(self, X: Any, n: int = 3) -> list[list[Neighbour]]:
        """Return the `n` support examples that are most similar to each example, the best first."""
        state, queries = self._queries(X)
        return self._nearest(state, queries, n)

    def answer(self, X: Any, n: int = 0) -> list[Answer]:
        """Return the label, the probabilities and the `n` nearest support examples of each example.

        All that `predict`, `predict_proba` and `explain` tell, with each example read once.
        """
        state, queries = self._queries(X)
        logits = state.logits(queries)
        labels = self._labels(state, queries, logits)
        near = self._nearest(state, queries, n) if n else [[]] * len(queries)
        probabilities = logits.softmax(1).cpu().numpy()
        return [Answer(*each) for each in zip(labels.tolist(), probabilities, near)]

    def fingerprint(self) -> str:
        """Return a sha256 that changes with the model, the labelled examples or a parameter."""
        state = self._state()
        examples = sorted(zip(state.support.digests, map(repr, state.support.labels)))
        settings = [state.model.name, state.model.sha256, sorted(self.get_params().items())]
        return hashlib.sha256(repr([settings, state.classes, examples]).encode()).hexdigest()

    @property
    def kind(self) -> Kind:
        """What examples the fitted model takes: "image", "text" or "numbers"."""
        return self._state().model.kind

    @property
    def transductive(self) -> bool:
        """Whether the answer for one query may depend on the other queries of a call."""
        return self._state().model.learner.transductive

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted classifier to a .safetensors file, which cannot execute code.

        The weights of an encoder are named there, not copied. Labels must be strings, numbers or
        truth values, else OptionError is raised.
        """
        columns = getattr(self, "feature_names_in_", None)
        names = None if columns is None else columns.tolist()
        saving.save(Path(path), self._state(), self.get_params(deep=False), names)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "auto") -> FewShotClassifier:
        """Return the classifier that `save` wrote; raise CheckpointError if the file is damaged."""
        state, params, names = saving.load(Path(path), device)
        classifier = cls(**params, device=device)
        classifier._keep(state)
        if state.model.takes_rows:
            classifier.n_features_in_ = state.support.values.shape[1]
        if names is not None:
            classifier.feature_names_in_ = np.array(names, object)
        return classifier

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write encoder and head as one ONNX file, checked to give the same probabilities.

        Needs `pip install "metazoo[onnx]"`. Raises OptionError if the model cannot be exported.
        """
        from metazoo.classifier.onnx_export import export

        export(self._state(), Path(path))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _learn(
        self,
        X: Any,
        y: Any,
        classes: Iterable[Hashable] | None,
        before: Fitted | None,
        fewest: int = 2,
    ) -> FewShotClassifier:
        labels = read_labels(y)
        if before is None:
            model, given = opened(self, X)
        else:
            model, given = before.model, reopened(self, X, before.model)
        if len(labels) != len(given):
            raise InputError(
                f"there are {len(given)} examples but {len(labels)} labels",
                "give one label for each example",
            )
        support = read_support(given, model, labels)
        known = [] if classes is None else read_labels(listed(classes, "classes"))
        known += self.names if isinstance(self.names, Mapping) else []
        if before is not None:
            support, known = before.support.plus(support), known + before.classes
        known = sorted_classes([*support.labels, *known])
        if len(known) < fewest:
            raise InputError(
                f"there is only one class ({known[0]!r})" if known else "there are no examples",
                "give labelled examples of at least two classes",
            )
        state = fitted.fit(model, support, known, self.names, self.calibrate)
        _warn(doubts(state))
        self._keep(state)
        return self

    def _queries(self, X: Any) -> tuple[Fitted, Examples]:
        """Return what was fitted, and queries that were read."""
        state = self._state()
        queries = state.read(reopened(self, X, state.model))
        _warn(doubts_of_queries(state, queries))
        return state, queries

    def _labels(self, state: Fitted, queries: Examples, logits: Tensor) -> np.ndarray:
        labels = as_array(state.classes)[logits.argmax(1).cpu().numpy()]
        if self._rejects():
            labels = labels.astype(object)
            labels[(state.novelty(queries, logits) > state.measured.threshold).cpu().numpy()] = None
        return labels

    def _nearest(self, state: Fitted, queries: Examples, n: int) -> list[list[Neighbour]]:
        return explanation.nearest(state.features(queries), state.scaled_support, state.support, n)

    def _state(self) -> Fitted:
        if (state := getattr(self, "_fitted", None)) is None:
            raise _NotFitted("the classifier has no labelled examples yet", "call fit first")
        return state

    def _keep(self, state: Fitted) -> None:
        self._fitted = state
        self.classes_ = as_array(state.classes)
        self.model_ = state.model.name
        self.loo_count_ = state.measured.left_out.measured
        self.loo_accuracy_ = state.measured.left_out.accuracy
        self.loo_interval_ = state.measured.left_out.interval
        self.novelty_threshold_ = state.measured.threshold

    def _rejects(self) -> bool:
        if self.reject not in (None, "auto"):
            raise OptionError(f"reject cannot be {self.reject!r}", 'it is "auto" or None')
        return self.reject == "auto"


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        warnings.warn(message, DataWarning, stacklevel=4)
