"""Why an answer: the nearest support examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from classified import LABELS, tensors, text_model
from pictures import picture

from metazoo import FewShotClassifier


def test_the_nearest_examples_come_first(classifier: FewShotClassifier) -> None:
    queries, support = tensors(["dot", "bar"], 9), classifier.transform(tensors(LABELS))
    found = classifier.explain(queries, n=4)
    features = classifier.transform(queries)
    for near, z in zip(found, features):
        cosines = support @ z / np.linalg.norm(support, axis=1) / np.linalg.norm(z)
        order = np.argsort(-cosines)[:4]
        assert [each.index for each in near] == order.tolist()
        assert [each.label for each in near] == [LABELS[i] for i in order]
        assert [each.similarity for each in near] == pytest.approx(cosines[order], abs=1e-5)
        assert {each.example for each in near} == {None}


def test_texts_and_paths_are_shown(protonet_run: Path, tmp_path: Path) -> None:
    texts = FewShotClassifier(text_model(), device="cpu")
    texts.fit(["lost my card", "open an account"], ["card", "account"])
    texts.partial_fit(["what is the rate"], ["rate"])
    (found,) = texts.explain(["the rate"], n=1)
    assert (found[0].example, found[0].label, found[0].index) == ("what is the rate", "rate", 2)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        picture(["bar", "dot", "ring"][i], i).save(path)
    images = FewShotClassifier(protonet_run, device="cpu").fit(paths, ["a", "b", "c"])
    assert [near[0].example for near in images.explain(paths)] == [str(path) for path in paths]


def test_there_are_no_more_than_the_support_has(classifier: FewShotClassifier) -> None:
    assert len(classifier.explain(tensors(["bar"]), n=99)[0]) == len(LABELS)
