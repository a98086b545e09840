"""Leave-one-out accuracy, and the warning near chance."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from classified import EQUAL, LABELS, blobs, image_model, tensors
from learners import Correct, Plain
from scipy import stats

from metazoo import FewShotClassifier
from metazoo.classifier import head
from metazoo.classifier.honesty import LeftOut
from metazoo.errors import DataWarning


def one_by_one(X: np.ndarray, y: np.ndarray, **params: object) -> float:
    """Return the share of examples that a classifier fitted to all others gets right."""
    right = []
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        classifier = FewShotClassifier(device="cpu", **params).fit(X[rest], y[rest])
        right.append(classifier.predict(X[i : i + 1])[0] == y[i])
    return float(np.mean(right))


def test_accuracy_is_that_of_classifiers_without_each_example(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = image_model(monkeypatch, Correct)
    x = torch.rand(18, 1, 28, 28, generator=torch.Generator().manual_seed(3)).numpy()
    y = np.arange(18) % 3
    x[y == 0, :, :9] *= 0.4  # not entirely at chance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        classifier = FewShotClassifier(model, device="cpu").fit(x, y)
        assert classifier.loo_count_ == 18
        assert classifier.loo_accuracy_ == pytest.approx(one_by_one(x, y, model=model))


def test_it_is_none_where_no_class_has_two_examples(protonet_run: Path) -> None:
    classifier = FewShotClassifier(protonet_run, device="cpu").fit(tensors(EQUAL), EQUAL)
    assert classifier.loo_accuracy_ is None
    assert classifier.loo_interval_ is None
    assert classifier.loo_count_ == 0
    classifier.partial_fit(tensors(["bar"], 1), ["bar"])
    assert classifier.loo_count_ == 2


def test_many_examples_are_left_out_in_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = blobs(3, 8)
    exact = FewShotClassifier(image_model(monkeypatch, Correct), device="cpu")
    folds = FewShotClassifier(image_model(monkeypatch, Plain), device="cpu")
    x = np.zeros((24, 1, 28, 28), np.float32)
    x[:, 0, 2 : 2 + X.shape[1], 3] = X / 8 + 0.5
    x[:, 0, 9, 9] = 1
    exact.fit(x, y)
    folds.fit(x, y)
    assert exact.loo_count_ == folds.loo_count_ == 24
    wanted = exact._fitted.head.left_out()[1]
    found = folds._fitted.head.left_out()[1]
    # A fold leaves one example of each class out; the means of the other classes change a little.
    assert torch.corrcoef(torch.stack([wanted.flatten(), found.flatten()]))[0, 1] > 0.95
    monkeypatch.setattr(head, "MOST_LEFT_OUT", 10)
    exact.fit(x, y)
    torch.testing.assert_close(exact._fitted.head.left_out()[1], found, rtol=1e-4, atol=1e-5)


def test_nothing_is_measured_of_a_transductive_model(maml_run: Path) -> None:
    classifier = FewShotClassifier(maml_run, device="cpu", options={"batch_norm": "batch"})
    assert classifier.fit(tensors(EQUAL * 2), EQUAL * 2).loo_accuracy_ is None


@pytest.mark.parametrize(("measured", "correct"), [(25, 0), (25, 7), (25, 25), (1, 1), (400, 211)])
def test_the_interval_is_that_of_clopper_and_pearson(measured: int, correct: int) -> None:
    wanted = stats.binomtest(correct, measured).proportion_ci(0.95, "exact")
    assert LeftOut(measured, correct, 0.2).interval == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize(
    ("measured", "correct", "chance", "near"),
    [
        (25, 5, 0.2, True),
        (25, 9, 0.2, True),  # of five classes, 36 %
        (25, 13, 0.2, False),
        (25, 25, 0.2, False),
        (4, 1, 0.25, False),  # too few to tell
        (10, 3, 0.5, True),
        (10, 6, 0.5, False),
        (100, 52, 0.5, True),
        (100, 70, 0.5, False),
        (0, 0, 0.0, False),
        (5, 5, 1.0, False),
    ],
)
def test_near_chance(measured: int, correct: int, chance: float, near: bool) -> None:
    assert LeftOut(measured, correct, chance).near_chance is near


def test_chance_is_the_largest_class() -> None:
    logits, y = torch.eye(3)[[0, 0, 0, 1]], torch.tensor([0, 0, 1, 2])
    assert LeftOut.of(logits, y) == LeftOut(4, 2, 0.5)


def test_near_chance_names_what_the_model_learned_and_another_model(protonet_run: Path) -> None:
    noise = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)) ** 8
    labels = [EQUAL[i % 3] for i in range(40)]
    with pytest.warns(DataWarning) as caught:
        FewShotClassifier(protonet_run, device="cpu").fit(noise, labels)
    (said,) = [str(each.message) for each in caught if "by the others" in str(each.message)]
    assert "of 40 labelled examples are classified correctly by the others" in said
    assert "learned glyphs (made-up" in said
    assert "try model='" in said


def test_near_chance_of_the_model_that_was_chosen_asks_for_labels() -> None:
    X = np.random.default_rng(0).normal(size=(80, 2))
    with pytest.warns(DataWarning, match="check the labels, or give more examples"):
        FewShotClassifier(device="cpu").fit(X, np.arange(80) % 2)


def test_a_good_model_is_not_doubted(classifier: FewShotClassifier) -> None:
    X, y = blobs(3, 10)
    assert FewShotClassifier(device="cpu").fit(X, y).loo_accuracy_ > 0.9
    assert classifier.loo_count_ == len(LABELS)
