"""What must be the same on a GPU: a training step, resuming, evaluation, prediction. Run with `-m gpu` where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metazoo
from metazoo import runs
from metazoo.evaluate import evaluate
from metazoo.plan import plan
from metazoo.train import Watcher, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

RECIPE = {
    "ways": 3,
    "queries": 3,
    "steps": 4,
    "validate_every": 2,
    "validation_episodes": 4,
    "test_episodes": 4,
}


@pytest.mark.parametrize("algorithm", ["protonet", "matching", "baseline", "maml"])
def test_trains_and_evaluates_as_on_the_cpu(algorithm: str, tmp_path: Path) -> None:
    weights = {}
    for device in ("cpu", "cuda"):
        blueprint, data = plan(algorithm, "glyphs", {}, {"alphabets": 6}, {"width": 8}, {**RECIPE, "device": device})
        runs.create(tmp_path / device, blueprint)
        train(blueprint, data, tmp_path / device, Watcher())
        weights[device] = metazoo.load(tmp_path / device)
        tasks = blueprint.data().tasks("test", 3, 1, 3, 0)
        scores = [evaluate(weights[device].to(place), tasks, 10, place) for place in ("cpu", "cuda")]
        torch.testing.assert_close(scores[0], scores[1], atol=0.15, rtol=0)
    for ours, theirs in zip(weights["cpu"].state_dict().values(), weights["cuda"].cpu().state_dict().values()):
        torch.testing.assert_close(ours.cpu().float(), theirs.float(), atol=1e-2, rtol=1e-2)


def test_resumes_on_the_gpu(tmp_path: Path) -> None:
    blueprint, data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, {**RECIPE, "device": "cuda"})
    runs.create(tmp_path / "run", blueprint)
    train(blueprint, data, tmp_path / "run", Watcher())
    (tmp_path / "run" / runs.RESULT).unlink()
    assert train(blueprint, blueprint.data(), tmp_path / "run", Watcher())["steps"] == 4


def test_predicts_on_the_gpu(tmp_path: Path) -> None:
    blueprint, data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, {**RECIPE, "device": "cpu"})
    runs.create(tmp_path / "run", blueprint)
    train(blueprint, data, tmp_path / "run", Watcher())
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    answers = [
        metazoo.FewShotClassifier(tmp_path / "run", device=device).fit(x[:4], ["a", "a", "b", "b"]).predict_proba(x)
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)
