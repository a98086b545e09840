"""What must be the same on a GPU: a training step, resuming, evaluation, prediction. Run with `-m gpu` where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metazoo
from metazoo import runs
from metazoo.episodes import BatchSampler, EpisodeSampler
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


OPTIONS = {"protonet": {}, "matching": {"fce": True}, "baseline": {}, "maml": {"learned_rates": "per-step", "inner_steps": 2}}


@pytest.mark.parametrize("algorithm", list(OPTIONS))
def test_the_gradient_is_that_of_the_cpu(algorithm: str) -> None:
    blueprint, data = plan(algorithm, "glyphs", OPTIONS[algorithm], {"alphabets": 6}, {"width": 8}, RECIPE)
    torch.manual_seed(0)
    model = blueprint.model().double().train()
    examples = data.split("train")
    source = BatchSampler(examples, 12) if model.draws == "batches" else EpisodeSampler(examples, 3, 1, 3)
    gradients = {}
    for device in ("cpu", "cuda"):
        task = source.draw(0, 2).to(device)
        model.to(device).zero_grad()
        model.loss(type(task)(*(t.double() if t.is_floating_point() else t for t in vars(task).values()))).backward()
        gradients[device] = [p.grad.cpu() for p in model.parameters() if p.requires_grad]
    assert any(g.norm() > 1e-3 for g in gradients["cpu"])
    for ours, theirs in zip(gradients["cpu"], gradients["cuda"]):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("algorithm", list(OPTIONS))
def test_trains_and_evaluates(algorithm: str, tmp_path: Path) -> None:
    blueprint, data = plan(
        algorithm, "glyphs", OPTIONS[algorithm], {"alphabets": 6}, {"width": 8}, {**RECIPE, "device": "cuda"}
    )
    runs.create(tmp_path / "run", blueprint)
    train(blueprint, data, tmp_path / "run", Watcher())
    model, tasks = metazoo.load(tmp_path / "run"), blueprint.data().tasks("test", 3, 1, 3, 0)
    scores = [evaluate(model.to(place), tasks, 10, place) for place in ("cpu", "cuda")]
    torch.testing.assert_close(scores[0], scores[1], atol=0.15, rtol=0)


def test_tasks_are_the_same_on_the_gpu() -> None:
    data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, RECIPE)[1]
    before = data.tasks("test", 3, 1, 3, 0).draw(5, 2)
    data.move("cuda")
    after = data.tasks("test", 3, 1, 3, 0).draw(5, 2)
    assert after.support_x.is_cuda
    assert torch.equal(before.support_x, after.support_x.cpu())
    assert torch.equal(before.query_x, after.query_x.cpu())


class Broken(Watcher):
    def step(self, step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt


def test_resumes_on_the_gpu(tmp_path: Path) -> None:
    blueprint, data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, {**RECIPE, "device": "cuda"})
    for name in ("whole", "broken"):
        runs.create(tmp_path / name, blueprint)
    train(blueprint, data, tmp_path / "whole", Watcher())
    with pytest.raises(KeyboardInterrupt):
        train(blueprint, data, tmp_path / "broken", Broken())
    train(blueprint, data, tmp_path / "broken", Watcher())
    weights = [metazoo.load(tmp_path / name).state_dict() for name in ("whole", "broken")]
    for ours, theirs in zip(weights[0].values(), weights[1].values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


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
