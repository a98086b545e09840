"""The classifier as an estimator: scikit-learn's own checks, and its tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import LABELS, blobs, tensors, text_model
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import metazoo
from metazoo import FewShotClassifier

# Random labels are near chance, and said to be.
quiet = pytest.mark.filterwarnings("ignore::metazoo.errors.DataWarning")


@quiet
@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks([FewShotClassifier(device="cpu")])
def test_it_passes_the_checks_of_scikit_learn(
    estimator: FewShotClassifier, check: Callable[[Any], None]
) -> None:
    check(estimator)


def test_nothing_is_read_before_fit(tmp_path: Path) -> None:
    options = {"shots": 5}
    classifier = FewShotClassifier(
        tmp_path / "nothing", names=3, reject="no", options=options, invert="x", device="abacus"
    )
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert copy.options is not options
    with pytest.raises(metazoo.UnknownNameError, match="no run folder or model file"):
        copy.set_params(device="cpu").fit([[0.0]], ["a"])


def test_parameters_can_be_searched() -> None:
    X, y = blobs(3, 8)
    search = GridSearchCV(
        FewShotClassifier(device="cpu"),
        {"options": [{"penalty": 0.1}, {"penalty": 10.0}], "calibrate": [True, False]},
        scoring="neg_log_loss",
        cv=2,
    ).fit(X, y)
    assert set(search.best_params_) == {"options", "calibrate"}
    assert search.best_estimator_.score(X, y) > 0.9


def test_cross_validation_and_pipelines() -> None:
    X, y = blobs(3, 10)
    plain = FewShotClassifier(device="cpu")
    assert cross_val_score(plain, X, y, cv=3).mean() > 0.9
    pipeline = make_pipeline(FunctionTransformer(lambda X: 1000 * X), plain)
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    calibrated = CalibratedClassifierCV(plain, cv=3).fit(X, y)
    assert calibrated.predict_proba(X).shape == (30, 3)
    assert calibrated.score(X, y) > 0.9


def test_cross_validation_of_texts() -> None:
    texts = [f"{verb} my {thing}" for verb in ("lost", "found", "sold") for thing in "abcdef"]
    labels = [text.split()[0] for text in texts]
    classifier = FewShotClassifier(text_model(), names=None, device="cpu")
    assert cross_val_score(classifier, texts, labels, cv=3).mean() > 0.9
    assert cross_val_score(classifier, np.array(texts, object), labels, cv=3).mean() > 0.9


def test_it_must_be_fitted_first(protonet_run: Path) -> None:
    classifier = FewShotClassifier(protonet_run)
    for kind in (NotFittedError, metazoo.OptionError, AttributeError):
        with pytest.raises(kind, match="no labelled examples yet"):
            classifier.predict(tensors(["bar"]))


def test_a_column_of_labels_is_warned_of() -> None:
    from sklearn.exceptions import DataConversionWarning

    X, y = blobs(2, 4)
    with pytest.warns(DataConversionWarning):
        FewShotClassifier(device="cpu").fit(X, y[:, None])


def test_the_score_counts_none_as_a_label(classifier: FewShotClassifier) -> None:
    x = tensors(LABELS)
    assert classifier.score(x, LABELS) == 1
    assert classifier.score(x, [None, *LABELS[1:]]) == pytest.approx(6 / 7)
    weights = [3, 1, 1, 1, 1, 1, 1]
    assert classifier.score(x, [None, *LABELS[1:]], weights) == pytest.approx(6 / 9)
