"""Training, evaluation and prediction take float32 as float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import metazoo
from metazoo import runs
from metazoo.evaluate import evaluate
from metazoo.plan import plan
from metazoo.precision import without_tf32
from metazoo.train import Watcher, train

RECIPE = {"ways": 3, "queries": 1, "steps": 2, "validate_every": 1, "validation_episodes": 2, "test_episodes": 2}


@pytest.fixture(autouse=True)
def allowed() -> Iterator[None]:
    """As PyTorch has it."""
    assert torch.backends.cudnn.allow_tf32
    yield
    assert torch.backends.cudnn.allow_tf32


class Recorder(Watcher):
    def __init__(self) -> None:
        self.found: list[bool] = []

    def step(self, step: int, steps: int, loss: float) -> None:
        self.found.append(torch.backends.cudnn.allow_tf32)


def test_in_training_evaluation_and_prediction(tmp_path: Path) -> None:
    blueprint, data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 4}, RECIPE)
    runs.create(tmp_path / "run", blueprint)
    recorder = Recorder()
    train(blueprint, data, tmp_path / "run", recorder)
    assert recorder.found == [False, False]

    found = []
    classifier = metazoo.FewShotClassifier(tmp_path / "run", device="cpu")
    classifier.model.backbone.register_forward_hook(lambda *_: found.append(torch.backends.cudnn.allow_tf32))
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    classifier.fit(x, ["a", "a", "b", "b"]).predict(x)
    assert found == [False]
    evaluate(classifier.model, data.tasks("test", 3, 1, 1, 0), 2)
    assert len(found) > 1
    assert not any(found)


def test_after_an_error_it_is_as_it_was() -> None:
    with pytest.raises(KeyError), without_tf32():
        raise KeyError


def test_what_somebody_has_set_apart_stays() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        with without_tf32():
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = "tf32"
