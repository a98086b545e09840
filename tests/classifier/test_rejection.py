"""Queries that belong to no class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from classified import EQUAL, blobs, tensors, text_model

from metazoo import FewShotClassifier
from metazoo.classifier.rejection import _equal_errors
from metazoo.errors import OptionError


@pytest.mark.parametrize("shots", [1, 2, 10])
def test_another_class_gets_the_label_none(shots: int) -> None:
    X, y = blobs(6, 30, features=12, spread=0.4)
    rows = [np.flatnonzero(y == label) for label in range(6)]
    support = np.concatenate([own[:shots] for own in rows[:4]])
    known = np.concatenate([own[shots:] for own in rows[:4]])
    foreign = np.concatenate(rows[4:])
    classifier = FewShotClassifier(reject="auto", device="cpu").fit(X[support], y[support])
    assert np.mean([label is None for label in classifier.predict(X[foreign])]) > 0.8
    answers = classifier.predict(X[known])
    assert np.mean(answers == y[known]) > 0.75
    assert answers.dtype == object
    assert classifier.score(X[foreign], [None] * len(foreign)) > 0.8
    # Probabilities and labels without rejection are as before.
    plain = FewShotClassifier(device="cpu").fit(X[support], y[support])
    assert np.array_equal(plain.predict_proba(X), classifier.predict_proba(X))
    assert None not in plain.predict(X).tolist()


def test_what_is_rejected_is_above_the_threshold() -> None:
    X, y = blobs(3, 8)
    classifier = FewShotClassifier(reject="auto", device="cpu").fit(X, y)
    queries = np.concatenate([X, X + 2, -3 * X])
    rejected = [label is None for label in classifier.predict(queries)]
    novelty = classifier.novelty(queries)
    assert rejected == (novelty > classifier.novelty_threshold_).tolist()
    assert {True, False} == set(rejected)
    classifier.set_params(reject=None)
    assert classifier.predict(queries).dtype == y.dtype


def test_far_and_doubtful_queries_are_novel() -> None:
    X = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]])
    classifier = FewShotClassifier(device="cpu").fit(X, ["up", "up", "right", "right"])
    inside, between, away = classifier.novelty([[0.05, 1.0], [0.7, 0.7], [-3.0, -3.0]])
    assert inside < between
    assert inside < away


def test_the_order_of_examples_does_not_matter(protonet_run: Path) -> None:
    x, labels = tensors(EQUAL * 3), EQUAL * 3
    one = FewShotClassifier(protonet_run, device="cpu").fit(x, labels)
    other = FewShotClassifier(protonet_run, device="cpu").fit(x.flip(0), labels[::-1])
    assert one.novelty_threshold_ == other.novelty_threshold_
    assert np.array_equal(one.novelty(x), other.novelty(x.flip(0))[::-1])


def test_a_learner_without_features_rejects_by_its_doubt(maml_run: Path) -> None:
    x, labels = tensors(EQUAL * 2), EQUAL * 2
    classifier = FewShotClassifier(maml_run, reject="auto", device="cpu").fit(x, labels)
    doubt = -0.2 * np.log(classifier.predict_proba(x).max(1))
    assert np.allclose(classifier.novelty(x), doubt, atol=1e-5)


def test_without_examples_nothing_is_rejected() -> None:
    names = {"card": "lost card", "account": "new account"}
    classifier = FewShotClassifier(text_model(), names=names, reject="auto", device="cpu")
    assert classifier.fit([], []).novelty_threshold_ == np.inf
    assert classifier.predict(["lost card", "something else"])[0] == "card"


def test_reject_is_auto_or_none() -> None:
    X, y = blobs(2, 3)
    classifier = FewShotClassifier(reject="always", device="cpu").fit(X, y)
    with pytest.raises(OptionError, match="reject cannot be 'always'"):
        classifier.predict(X)


@pytest.mark.parametrize(
    ("kept", "foreign", "low", "high"),
    [
        ([1.0, 2.0], [5.0, 6.0], 2, 5),
        ([1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 6.0, 0.0], 3, 4),
        ([1.0], [1.0], 0.9, 1.1),
    ],
)
def test_the_threshold_makes_both_errors_equal(
    kept: list[float], foreign: list[float], low: float, high: float
) -> None:
    assert low <= _equal_errors(torch.tensor(kept), torch.tensor(foreign)) <= high
