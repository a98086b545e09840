"""A fitted classifier as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import EQUAL, LABELS, blobs, tensors, text_model

from metazoo import FewShotClassifier
from metazoo.errors import CheckpointError, OptionError
from metazoo.zoo.weights import load_tensors, save_tensors


def saved(classifier: FewShotClassifier, folder: Path) -> FewShotClassifier:
    classifier.save(folder / "classifier.safetensors")
    return FewShotClassifier.load(folder / "classifier.safetensors", device="cpu")


def check_same(one: FewShotClassifier, other: FewShotClassifier, X: Any) -> None:
    assert np.array_equal(one.predict_proba(X), other.predict_proba(X))
    assert np.array_equal(one.novelty(X), other.novelty(X))
    assert one.classes_.tolist() == other.classes_.tolist()
    for name in ("model_", "loo_accuracy_", "loo_interval_", "loo_count_", "novelty_threshold_"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("run", "options"),
    [("protonet_run", {"tta": "shifted"}), ("maml_run", {"batch_norm": "batch"})],
)
@pytest.mark.filterwarnings("ignore::metazoo.errors.DataWarning")
def test_models_of_pictures(
    run: str, options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(run)
    labels = EQUAL * 2
    classifier = FewShotClassifier(model, options=options, invert=False, device="cpu")
    again = saved(classifier.fit(tensors(labels), labels), tmp_path)
    check_same(classifier, again, tensors(LABELS, 1))
    assert again.options == options
    assert again.invert is False


def test_rows_of_numbers_with_names_of_columns(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    X, y = blobs(3, 5)
    table = pd.DataFrame(X, columns=list("abcdef"))
    classifier = FewShotClassifier(reject="auto", calibrate=False, device="cpu").fit(table, y)
    again = saved(classifier, tmp_path)
    check_same(classifier, again, table)
    assert again.get_params() == classifier.get_params()
    assert again.feature_names_in_.tolist() == list("abcdef")
    assert again.n_features_in_ == 6
    assert again.predict(table).tolist() == classifier.predict(table).tolist()


def test_texts_with_names_and_without_examples(tmp_path: Path) -> None:
    names = {"card": "lost card", "account": "new account"}
    classifier = FewShotClassifier(text_model(), names=names, device="cpu").fit([], [])
    again = saved(classifier, tmp_path)
    check_same(classifier, again, ["lost card", "an account"])
    assert again.names == names
    texts = ["my card is lost", "open an account", "close the account"]
    classifier.partial_fit(texts, ["card", "account", "account"])
    again.partial_fit(texts, ["card", "account", "account"])
    check_same(classifier, again, ["lost card", "an account"])
    assert again.explain(["my card"], 1)[0][0].example == "my card is lost"


@pytest.mark.parametrize("labels", [[1, 2, 3], [True, False, True], [0.5, "a", 7]])
def test_labels_keep_their_type(labels: list[Any], tmp_path: Path) -> None:
    X, y = blobs(3, 3)
    classifier = FewShotClassifier(device="cpu").fit(X, [labels[i] for i in y])
    found = saved(classifier, tmp_path).predict(X).tolist()
    assert [(type(label), label) for label in found] == [
        (type(label), label) for label in classifier.predict(X).tolist()
    ]


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    X, y = blobs(2, 3)
    classifier = FewShotClassifier(device="cpu").fit(X, [("class", int(i)) for i in y])
    with pytest.raises(OptionError, match=r"the label \('class', 0\) cannot be saved"):
        classifier.save(tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_another_file_is_refused(protonet_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no"):
        FewShotClassifier.load(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="is not a fitted classifier"):
        FewShotClassifier.load(protonet_run / "best.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classifier", 2),
        ("classes", ["b", "a"]),
        ("classes", {"a": 1}),
        ("labels", [0] * 5),
        ("labels", [9] * 6),
        ("raw", []),
        ("looks", "x"),
        ("left_out", [1]),
        ("factor", None),
        ("blueprint", {}),
    ],
)
def test_a_damaged_file_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    X, y = blobs(2, 3)
    path = tmp_path / "classifier.safetensors"
    FewShotClassifier(device="cpu").fit(X, y).save(path)
    tensors_, metadata = load_tensors(path)
    save_tensors(path, tensors_, {**metadata, key: value})
    with pytest.raises(CheckpointError):
        FewShotClassifier.load(path)


@pytest.mark.parametrize(
    "values",
    [torch.full((6, 6), float("nan")).double(), torch.zeros(6, 5).double(), torch.zeros(6, 6)],
)
def test_damaged_examples_are_refused(values: torch.Tensor, tmp_path: Path) -> None:
    X, y = blobs(2, 3)
    path = tmp_path / "classifier.safetensors"
    FewShotClassifier(device="cpu").fit(X, y).save(path)
    tensors_, metadata = load_tensors(path)
    save_tensors(path, {**tensors_, "support": values}, metadata)
    with pytest.raises(CheckpointError, match="damaged, or was edited"):
        FewShotClassifier.load(path)
