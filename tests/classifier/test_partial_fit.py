"""Adding examples and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from classified import LABELS, blobs, tensors, text_model

from metazoo import FewShotClassifier
from metazoo.errors import InputError


def test_adding_examples_is_fitting_all_of_them(protonet_run: Path, maml_run: Path) -> None:
    for run, labels in ((protonet_run, LABELS), (maml_run, ["bar", "dot", "ring"] * 2)):
        x = tensors(labels)
        whole = FewShotClassifier(run, device="cpu").fit(x, labels)
        parts = FewShotClassifier(run, device="cpu").fit(x[:3], labels[:3])
        parts.partial_fit(x[3:], labels[3:])
        assert np.allclose(parts.predict_proba(x), whole.predict_proba(x), atol=1e-6)
        assert parts.loo_accuracy_ == whole.loo_accuracy_


def test_a_new_class_joins() -> None:
    X, y = blobs(3, 6)
    old = y != 1
    classifier = FewShotClassifier(device="cpu").fit(X[old], y[old])
    assert classifier.classes_.tolist() == [0, 2]
    assert classifier.partial_fit(X[~old], y[~old]) is classifier
    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.score(X, y) > 0.9
    with pytest.raises(InputError, match="X has 5 features"):
        classifier.partial_fit(X[:, :5], y)


def test_it_may_begin_with_one_class_and_announce_others() -> None:
    X, y = blobs(3, 4)
    one = FewShotClassifier(device="cpu").partial_fit(X[y == 1], y[y == 1])
    assert one.predict_proba(X).tolist() == [[1.0]] * 12
    classifier = FewShotClassifier(device="cpu").partial_fit(X[y > 0], y[y > 0], classes=[0, 1, 2])
    assert classifier.predict_proba(X)[:, 0].max() == 0
    assert classifier.novelty(X).max() < np.inf
    classifier.partial_fit(X[y == 0], y[y == 0])
    assert classifier.score(X, y) > 0.9


def test_labels_of_two_types_are_told_apart() -> None:
    X, y = blobs(2, 4)
    classifier = FewShotClassifier(device="cpu").fit(X, y.astype(str))
    classifier.partial_fit(10 + X[y == 0], [5, 5, 5, 5])
    assert classifier.classes_.tolist() == [5, "0", "1"]


def test_another_kind_of_examples_is_refused(protonet_run: Path) -> None:
    classifier = FewShotClassifier(protonet_run, device="cpu").fit(tensors(LABELS), LABELS)
    with pytest.raises(InputError, match=r"have shape \(1, 2\)"):
        classifier.partial_fit([[1.0, 2.0]], ["bar"])
    texts = FewShotClassifier(text_model(), device="cpu").fit(["a b", "c d"], ["x", "y"])
    texts.partial_fit(["e f"], ["z"])
    assert texts.classes_.tolist() == ["x", "y", "z"]
