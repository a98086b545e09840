"""Material for tests of the classifier: easy shapes, and models that need no files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import picture

from metazoo.base.algorithm import Algorithm
from metazoo.images import decode
from metazoo.plugins.registry import Entry, registry
from metazoo.tasks.episode import TaskSpec
from metazoo.zoo.source import Source
from metazoo.zoo.untrained import untrained

LABELS = ["bar", "dot", "ring", "dot", "bar", "ring", "ring"]  # unequal class sizes, in no order
EQUAL = ["bar", "dot", "ring"]


def tensors(labels: list[str], first: int = 0) -> torch.Tensor:
    """Return pictures of shapes, uint8 (N, 1, 28, 28)."""
    return torch.stack(
        [
            decode(picture(x, first + i), size=28, channels=1, invert=True)
            for i, x in enumerate(labels)
        ]
    )


def blobs(
    ways: int, count: int, features: int = 6, spread: float = 0.3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of numbers around a centre for each class, in no order, and their classes."""
    centres = np.random.default_rng(7).normal(size=(ways, features))
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(ways).repeat(count))
    return centres[y] + spread * rng.normal(size=(len(y), features)), y


def text_model(algorithm: str = "logistic", length: int = 32) -> Source:
    """Return a model of texts over hashed n-grams with random embeddings, which needs no files."""
    spec = TaskSpec((length,), 5, integers=True)
    name = f"{algorithm}@bag"
    return untrained(name, algorithm, "bag", {}, spec, {"tokenizer": "ngrams", "length": length})


def image_model(monkeypatch: pytest.MonkeyPatch, learner: type[Algorithm]) -> Source:
    """Return an untrained model of small pictures with this learner, which is registered."""
    name, kinds = learner.__name__.lower(), registry()._kinds
    entry = Entry(name, learner, "", registry().plugins[0])
    added = {**kinds, "algorithm": {**kinds["algorithm"], name: [entry]}}
    monkeypatch.setattr(registry(), "_kinds", added)
    input_format = {"size": 28, "channels": 1, "invert": True}
    return untrained(name, name, "conv4", {"width": 4}, TaskSpec((1, 28, 28), 3), input_format)
