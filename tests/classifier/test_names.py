"""Names of classes as evidence."""

from __future__ import annotations

from typing import Any

import pytest
from classified import blobs, text_model

from metazoo import FewShotClassifier
from metazoo.classifier.labels import texts_of
from metazoo.errors import InputError, OptionError

NAMES = {"card": "lost or stolen card", "account": "open a new account", "rate": "exchange rate"}
QUERIES = ["I lost my card", "a new account please", "what is the exchange rate"]


@pytest.mark.parametrize(
    ("classes", "names", "texts"),
    [
        (["card_arrival", "cashBack2Go", "pin"], "auto", ["card arrival", "cash Back2 Go", "pin"]),
        (["a", 3], "auto", None),
        (["a", "_"], "auto", None),
        (["a", "b"], None, None),
        (["a", "b"], {"b": "bee", "a": "aye", "c": "sea"}, ["aye", "bee"]),
        ([1, 2], {1: "one", 2: "two"}, ["one", "two"]),
    ],
)
def test_texts_of_classes(classes: list[Any], names: Any, texts: list[str] | None) -> None:
    assert texts_of(classes, names) == texts


@pytest.mark.parametrize("names", ["yes", {"a": "aye"}, {"a": "aye", "b": 3}, 7])
def test_names_that_cannot_be_used(names: Any) -> None:
    with pytest.raises(OptionError, match="names"):
        texts_of(["a", "b"], names)


def test_no_example_is_needed_with_names() -> None:
    classifier = FewShotClassifier(text_model(), names=NAMES, device="cpu").fit([], [])
    assert classifier.loo_accuracy_ is None
    assert classifier.predict(QUERIES).tolist() == ["card", "account", "rate"]
    announced = FewShotClassifier(text_model(), device="cpu")
    announced.fit([], [], classes=["lost_card", "newAccount", "exchange rate"])
    assert announced.predict(QUERIES).tolist() == ["lost_card", "newAccount", "exchange rate"]
    with pytest.raises(InputError, match="there are no examples"):
        FewShotClassifier(text_model(), names=None).fit([], [], classes=["a", "b"])
    with pytest.raises(InputError, match="there are no examples"):
        FewShotClassifier().fit([], [])


def test_a_class_may_have_only_a_name() -> None:
    options = {"name_weight": 1.0}
    classifier = FewShotClassifier(text_model(), names=NAMES, options=options, device="cpu")
    classifier.fit(["my card is gone", "card was taken"], ["card", "card"])
    assert classifier.predict(QUERIES).tolist() == ["card", "account", "rate"]


def test_names_change_the_answer_and_none_leaves_them_out() -> None:
    x, y = ["x1 x2", "the exchange y1"], ["exchange rate", "lost card"]
    options = {"name_weight": 100.0}
    named, unnamed = (
        FewShotClassifier(text_model(), names=names, options=options, device="cpu").fit(x, y)
        for names in ("auto", None)
    )
    assert unnamed.predict(["the exchange rate"]) == ["lost card"]
    assert named.predict(["the exchange rate"]) == ["exchange rate"]


def test_a_model_that_cannot_use_names_says_so() -> None:
    X, y = blobs(2, 3)
    FewShotClassifier(device="cpu").fit(X, ["a", "b"] * 3)
    with pytest.raises(OptionError, match="does not use the names of classes") as caught:
        FewShotClassifier(names={0: "zero", 1: "one"}).fit(X, y)
    assert "leave out names" in (caught.value.hint or "")
