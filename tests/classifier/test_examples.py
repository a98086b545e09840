"""What examples may be, and which model `auto` chooses for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import EQUAL, LABELS, blobs, tensors, text_model
from pictures import picture
from PIL import Image

from metazoo import FewShotClassifier
from metazoo.classifier import models
from metazoo.classifier.examples import look
from metazoo.errors import DataError, InputError, OptionError


def test_strings_are_paths_if_there_is_a_file_or_they_look_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unnamed").write_bytes(b"")
    for text, kind in (
        ("unnamed", "image"),
        ("cat.png", "image"),
        ("deep/CAT.JPEG", "image"),
        ("a photo of a cat.png", "text"),
        ("cat", "text"),
        ("", "text"),
        ("a\0b", "text"),
        ("x" * 10_000, "text"),
    ):
        assert look([text]).kind == kind, text[:20]
        assert look([text], "text").kind == "text"
        assert look([text], "image").kind == "image"


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (["cat.png", "a cat"], "example 0 is an image, and example 1 is a text"),
        (["a cat", 3.0], "example 0 is a text, and example 1 is numbers"),
        ([Path("cat.png"), [1, 2]], "example 0 is an image, and example 1 is numbers"),
    ],
)
def test_kinds_are_not_mixed(X: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        FewShotClassifier().fit(X, ["a", "b"])
    assert "named explicitly" in (caught.value.hint or "")


def test_a_missing_image_is_named(protonet_run: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file nothing\.png"):
        FewShotClassifier(protonet_run).fit(["nothing.png"] * 2, ["a", "b"])


@pytest.mark.parametrize(
    ("X", "name"),
    [
        (["cat.png"], models.PHOTOS),
        ([picture("bar", 0)], models.PHOTOS),
        (["lost my card"], models.TEXTS),
        ([[1.0, 2.0]], f"{models.ROWS}@identity"),
    ],
)
def test_auto_chooses_by_what_is_given(
    X: list[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def find(name: str) -> Any:
        asked.append(name)
        raise OptionError("not installed", '`pip install "metazoo[...]"`')

    monkeypatch.setattr(models, "find", find)
    if name.endswith("identity"):
        classifier = FewShotClassifier().fit([*X, [0.0, 1.0]], ["a", "b"])
        assert classifier.model_ == name
        assert not asked
    else:
        with pytest.raises(OptionError, match="not installed") as caught:
            FewShotClassifier().fit(X * 2, ["a", "b"])
        assert "pip install" in (caught.value.hint or "")
        assert asked == [name]


def test_an_explicit_model_wins(protonet_run: Path) -> None:
    with pytest.raises(InputError, match=r"does not take rows of numbers|have shape \(2, 1\)"):
        FewShotClassifier(protonet_run).fit([[1.0], [2.0]], ["a", "b"])
    with pytest.raises(InputError, match="'logistic@bag' does not take image files"):
        FewShotClassifier(text_model()).fit([picture("bar", 0), picture("dot", 0)], ["a", "b"])
    texts = ["cat.png", "dog.jpg", "cat.gif", "dog.tiff"]
    classifier = FewShotClassifier(text_model(), names=None, device="cpu")
    assert classifier.fit(texts, list("abab")).predict(["cat.png"]) == ["a"]


def columns(values: list[Any]) -> list[Any]:
    """Return values as lists and columns of several libraries."""
    pd = pytest.importorskip("pandas")
    series = pd.Series(values)
    return [
        values,
        tuple(values),
        np.array(values, object),
        np.array(values, object)[:, None],
        series,
        pd.Series(values, index=range(7, 7 + len(values))),
        pd.DataFrame({"text": values}),
        Polars(values),
    ]


class Polars:
    """Has the methods of a column of polars that are used, and no others."""

    def __init__(self, values: list[Any]):
        self._values = values

    def to_list(self) -> list[Any]:
        return self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)


def test_columns_of_texts() -> None:
    texts = ["lost my card", "stolen card", "open an account", "new account"]
    labels = ["card", "card", "account", "account"]
    classifier = FewShotClassifier(text_model(), device="cpu").fit(texts, labels)
    wanted = classifier.predict_proba(["my card", "an account"])
    pd = pytest.importorskip("pandas")
    known = [labels, np.array(labels), np.array(labels, object), pd.Series(labels), Polars(labels)]
    for i, given in enumerate(columns(texts)):
        found = FewShotClassifier(text_model(), device="cpu").fit(given, known[i % len(known)])
        for queries in columns(["my card", "an account"]):
            assert np.array_equal(found.predict_proba(queries), wanted), type(queries)


def test_columns_of_paths(protonet_run: Path, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(len(LABELS))]
    for i, path in enumerate(paths):
        picture(LABELS[i], i).save(path)
    wanted = FewShotClassifier(protonet_run, device="cpu").fit(tensors(LABELS), LABELS)
    for given in columns(paths):
        classifier = FewShotClassifier(protonet_run, device="cpu").fit(given, LABELS)
        assert np.allclose(classifier.predict_proba(given), wanted.predict_proba(paths), atol=1e-5)


def test_tables_of_numbers() -> None:
    pd = pytest.importorskip("pandas")
    X, y = blobs(2, 5)
    table = pd.DataFrame(X, columns=list("abcdef"))
    classifier = FewShotClassifier(device="cpu").fit(table, y)
    assert classifier.feature_names_in_.tolist() == list("abcdef")
    wanted = classifier.predict_proba(table)
    with pytest.raises(InputError, match="feature names should match"):
        classifier.predict(table[list("fedcba")])
    plain = FewShotClassifier(device="cpu").fit(X, y)
    for form in (
        X,
        X.tolist(),
        list(X),
        torch.from_numpy(X),
        X.astype(object),
        np.asfortranarray(X),
    ):
        assert np.array_equal(plain.predict_proba(form), wanted), type(form)
    table["name"] = "x"
    with pytest.raises(InputError, match="could not convert string to float"):
        FewShotClassifier().fit(table, y)


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ([[1.0, 2.0], [1.0]], "cannot be examples|inhomogeneous"),
        ([[1.0, float("nan")], [1.0, 2.0]], "NaN"),
        ([[1.0, float("inf")], [1.0, 2.0]], "infinity"),
        ([1.0, 2.0], "Expected 2D array"),
        (np.zeros((2, 0)), "0 feature"),
        (np.zeros((0, 2)), "0 sample"),
        (torch.zeros(2, 2).to_sparse(), "parse"),
        ([object(), object()], "must be a string or a real number"),
    ],
)
def test_rows_that_cannot_be_used(X: Any, words: str) -> None:
    labels = ["a", "b"][: len(X)]
    with pytest.raises(InputError, match=words):
        FewShotClassifier().fit(X, labels)


def test_rows_are_as_long_as_in_fit() -> None:
    X, y = blobs(2, 4)
    classifier = FewShotClassifier(device="cpu").fit(X, y)
    with pytest.raises(ValueError, match="X has 5 features"):
        classifier.predict(X[:, :5])


def test_pictures_in_arrays_of_colours(protonet_run: Path) -> None:
    images = [picture(label, i).convert("RGB") for i, label in enumerate(EQUAL)]
    classifier = FewShotClassifier(protonet_run, device="cpu").fit(images, EQUAL)
    wanted = classifier.predict_proba(images)
    arrays = [np.asarray(image) for image in images]
    assert np.array_equal(classifier.predict_proba(arrays), wanted)
    assert np.array_equal(classifier.predict_proba(np.stack(arrays)), wanted)
    transparent = [np.asarray(image.convert("RGBA")) for image in images]
    assert np.array_equal(classifier.predict_proba(transparent), wanted)


def test_reading_in_parts_gives_the_same_answers(
    classifier: FewShotClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[Image.Image] = [picture(label, i) for i, label in enumerate(LABELS)]
    wanted = classifier.predict_proba(images)
    monkeypatch.setattr("metazoo.classifier.examples.NUMBERS_AT_ONCE", 2 * 28 * 28)
    assert np.allclose(classifier.predict_proba(images), wanted, atol=1e-5)


def test_no_examples_of_every_kind(classifier: FewShotClassifier) -> None:
    X, y = blobs(2, 4)
    rows = FewShotClassifier(device="cpu").fit(X, y)
    texts = FewShotClassifier(text_model(), device="cpu").fit(["a b", "c d"], ["x", "y"])
    for fitted in (classifier, rows, texts):
        ways = len(fitted.classes_)
        assert fitted.predict([]).tolist() == []
        assert fitted.predict_proba([]).shape == (0, ways)
        assert fitted.transform([]).shape[0] == 0
        assert fitted.novelty([]).tolist() == []
        assert fitted.explain([]) == []
