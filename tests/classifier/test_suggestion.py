"""Which examples to label next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from classified import EQUAL, blobs, tensors, text_model

from metazoo import FewShotClassifier
from metazoo.classifier import suggestion
from metazoo.errors import InputError, OptionError


def test_it_is_better_than_choosing_at_random() -> None:
    gained = []
    for seed in range(10):
        X, y = blobs(8, 30, features=10, spread=0.55, seed=seed)
        first = np.array([np.flatnonzero(y == label)[0] for label in range(8)])
        rest = np.setdiff1d(np.arange(len(y)), first)
        pool, test = rest[:150], rest[150:]
        classifier = FewShotClassifier(device="cpu").fit(X[first], y[first])
        chosen = pool[classifier.suggest(X[pool], 16)]
        drawn = np.random.default_rng(seed).choice(pool, 16, replace=False)
        scores = [
            FewShotClassifier(device="cpu")
            .fit(X[np.append(first, more)], y[np.append(first, more)])
            .score(X[test], y[test])
            for more in (chosen, drawn)
        ]
        gained.append(scores[0] - scores[1])
    assert np.mean(gained) > 2 * np.std(gained, ddof=1) / np.sqrt(len(gained))


def test_they_are_distinct_positions_the_best_first() -> None:
    X, y = blobs(4, 20)
    classifier = FewShotClassifier(device="cpu").fit(X[:30], y[:30])
    whole = classifier.suggest(X[30:], 50)
    assert sorted(whole) == list(range(50))
    assert np.array_equal(classifier.suggest(X[30:], 7), whole[:7])


def test_it_prefers_dense_regions_without_a_label() -> None:
    labelled = torch.tensor([[1.0, 0.0, 0.0]])
    near, dense, lonely = [[1.0, 0.1, 0.0]] * 9, [[0.0, 1.0, 0.1]] * 5, [[0.0, 0.1, -1.0]]
    pool = torch.tensor([*near, *dense, *lonely])
    first, second = suggestion.suggest(labelled, pool, 2)
    assert first in range(9, 14)
    assert second == 14


def test_only_a_part_of_a_large_pool_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestion, "CANDIDATES", 10)
    monkeypatch.setattr(suggestion, "REPRESENTATIVES", 5)
    pool = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    chosen = suggestion.suggest(pool[:0], pool, 12)
    assert len(set(chosen)) == 12
    assert chosen == suggestion.suggest(pool[:0], pool, 12)


def test_texts_and_pictures(classifier: FewShotClassifier) -> None:
    assert classifier.suggest(tensors(EQUAL, 1), 2).shape == (2,)
    texts = FewShotClassifier(text_model(), device="cpu").fit(["a b", "c d"], ["x", "y"])
    assert texts.suggest(["a b", "e f g", "c d"], 1).tolist() == [1]


@pytest.mark.parametrize("n", [0, -1, 4])
def test_impossible_numbers_are_refused(classifier: FewShotClassifier, n: int) -> None:
    with pytest.raises(InputError, match=f"{n} examples cannot be chosen from 3"):
        classifier.suggest(tensors(EQUAL), n)


def test_a_model_without_an_embedding_is_refused(maml_run: Path) -> None:
    classifier = FewShotClassifier(maml_run, device="cpu").fit(tensors(EQUAL), EQUAL)
    for ask in (lambda x: classifier.suggest(x, 1), classifier.explain, classifier.transform):
        with pytest.raises(OptionError, match="has no embedding of its own"):
            ask(tensors(EQUAL))
