"""Scores, their intervals, and equal scores with and without cached features."""

from __future__ import annotations

import importlib
import math
import random
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metazoo import options
from metazoo.backbones.conv4 import Conv4
from metazoo.base.algorithm import Algorithm, FeatureLearner
from metazoo.base.dataset import ClassDataset
from metazoo.datasets.sinusoid import Sinusoid
from metazoo.errors import DataError, UnknownNameError
from metazoo.evaluation.measure import evaluate, measure
from metazoo.evaluation.protocol import Protocol, metric
from metazoo.evaluation.score import NotANumber, Score, score
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import TaskSource, TaskSpec
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler


class Squares(ClassDataset):
    """Noisy images around a mean image of each class."""

    def load(self) -> dict[str, Examples]:
        generator = torch.Generator().manual_seed(0)
        means = torch.rand(6, 1, 1, 16, 16, generator=generator)
        x = (means + 0.8 * torch.rand(6, 12, 1, 16, 16, generator=generator)).clamp(0, 1)
        return {
            "test": Examples((255 * x).byte().flatten(0, 1), (12,) * 6, tuple("abcdef"), "squares")
        }

    def protocols(self) -> Any:
        return {"official": lambda: (self.tasks("test", 2, 1, 1, 9), 7)}


def assert_alike(scores: torch.Tensor, others: torch.Tensor) -> None:
    """Of all queries, 12 a task, at most one is answered differently: rounding may decide it."""
    assert scores.shape == others.shape
    assert (scores - others).abs().sum() < 1.5 / 12


def model(name: str, **values: Any) -> Algorithm:
    torch.manual_seed(0)
    algorithm = registry().algorithm(name).value
    config = options.build(algorithm.Config, values, name)
    backbone = Conv4((1, 16, 16), Conv4.Config(width=6))
    with torch.no_grad():  # without statistics of the data, untrained features hardly differ
        for _ in range(20):
            backbone(Squares().split("test").x.float() / 255)
    return algorithm(backbone, TaskSpec((1, 16, 16), 4, classes=6), config)


def tasks(**changes: int) -> EpisodeSampler:
    return Squares().tasks("test", **{"ways": 4, "shots": 2, "queries": 3, "seed": 5, **changes})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("protonet", {}),
        ("protonet", {"distance": "cosine"}),
        ("matching", {}),
        ("matching", {"fce": True}),
        ("baseline", {"finetune_steps": 10}),
        ("baseline++", {"finetune_steps": 10}),
    ],
)
def test_cached_features_give_the_same_scores(name: str, values: dict[str, Any]) -> None:
    learner = model(name, **values)
    cached = evaluate(learner, tasks(), 40)
    slow = evaluate(learner, tasks(), 40, cache=False)
    assert_alike(cached, slow)
    assert 0 < cached.mean() < 1
    assert cached.std() > 0  # or any two results would be equal


def test_with_the_cache_only_drawn_examples_are_embedded_and_each_once() -> None:
    learner = model("protonet")
    seen: list[int] = []
    learner.backbone.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    evaluate(learner, tasks(), 3)
    drawn = set(tasks().rows(0, 3).flatten().tolist())
    assert sum(seen) == len(drawn) < 72


def test_a_subclass_of_the_sampler_draws_its_own_tasks() -> None:
    class Swapped(EpisodeSampler):
        def choose(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            return super().choose(first + 100, count)

    base = tasks()
    own = Swapped(base.examples, base.ways, base.shots, base.queries, base.seed)
    learner = model("protonet")
    assert_alike(evaluate(learner, own, 30), evaluate(learner, own, 30, cache=False))
    assert not torch.equal(evaluate(learner, own, 30), evaluate(learner, base, 30))


@pytest.mark.parametrize("cache", [True, False])
def test_scores_do_not_depend_on_batching(cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = model("protonet")
    whole = evaluate(learner, tasks(), 23, cache=cache)
    assert_alike(whole[:9], evaluate(learner, tasks(), 9, cache=cache))
    # The package also has a function of this name.
    module = importlib.import_module("metazoo.evaluation.measure")
    for size in (1, 5_000, 20_000):
        monkeypatch.setattr(module, "EMBEDDED_AT_ONCE", size)
        monkeypatch.setattr(module, "DRAWN_AT_ONCE", size)
        assert_alike(whole, evaluate(learner, tasks(), 23, cache=cache))


class ByPosition(FeatureLearner):
    """Answers that queries lie class by class, as sources draw them."""

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        ways = int(support_y.max()) + 1
        labels = torch.arange(ways).repeat_interleave(query_z.shape[1] // ways)
        return torch.nn.functional.one_hot(labels, ways).float().expand(len(query_z), -1, -1)


@pytest.mark.parametrize("cache", [True, False])
def test_the_position_of_a_query_does_not_tell_its_class(cache: bool) -> None:
    learner = ByPosition(Conv4((1, 16, 16), Conv4.Config(width=6)), TaskSpec((1, 16, 16), 4))
    scores = evaluate(learner, tasks(), 300, cache=cache)
    assert scores.mean() == pytest.approx(1 / 4, abs=0.03)
    assert scores.unique().numel() > 4  # the order differs from task to task
    # It is that of the task's number, whatever other tasks are measured.
    assert torch.equal(scores[:17], evaluate(learner, tasks(), 17, cache=cache))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    learner = model("protonet").train(training)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    evaluate(learner, tasks(), 3)
    assert learner.training is learner.backbone.training is training
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())

    class Broken(TaskSource):
        def draw(self, first: int, count: int) -> Any:
            raise RuntimeError("no tasks")

    with pytest.raises(RuntimeError, match="no tasks"):
        evaluate(learner, Broken(), 3)
    assert learner.training is training


def test_progress_is_reported_up_to_the_last_task() -> None:
    told: list[int] = []
    scores = evaluate(model("protonet"), tasks(), 130, watch=told.append)
    assert told == sorted(told)
    assert told[-1] == len(scores) == 130


# 97.5 % quantiles of Student's t from printed tables.
@pytest.mark.parametrize(("count", "t"), [(2, 12.706), (20, 2.0930), (50, 2.0096), (1000, 1.9623)])
def test_the_interval_is_that_of_students_t(count: int, t: float) -> None:
    numbers = random.Random(0)
    values = [numbers.random() for _ in range(count)]
    result = Score.of(torch.tensor(values))
    assert result.mean == pytest.approx(statistics.mean(values))
    assert result.interval == pytest.approx(
        t * statistics.stdev(values) / math.sqrt(count), rel=1e-4
    )
    assert result.as_dict() == {"mean": result.mean, "interval": result.interval, "tasks": count}
    assert Score.of(torch.tensor([0.25] * 4)).interval == 0


def test_a_single_task_has_no_interval() -> None:
    with pytest.raises(DataError, match="single task"):
        Score.of(torch.tensor([0.25]))


# With 1.96 for every number of tasks, 5 tasks would cover it 88 % of the time.
@pytest.mark.parametrize("count", [5, 60])
def test_the_interval_covers_the_mean_95_percent_of_the_time(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(2000):
        result = Score.of(torch.randn(count, generator=generator))
        covered += abs(result.mean) <= result.interval
    assert 0.935 < covered / 2000 < 0.965


def test_accuracy_and_squared_error_are_per_task() -> None:
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0], [2.0, 1.0]]])
    assert score(logits, torch.tensor([[0, 1], [0, 1]])).tolist() == [1.0, 0.5]
    values = torch.tensor([[[1.0], [3.0]], [[0.0], [0.0]]])
    assert score(values, torch.zeros(2, 2, 1)).tolist() == [5.0, 0.0]


class Constant(Algorithm):
    """Predicts zero everywhere."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return torch.zeros(*query_x.shape[:2], 1)


def test_nan_and_infinity_are_not_scored() -> None:
    logits = torch.tensor([[[1.0, math.nan, 0.0]]])
    with pytest.raises(NotANumber, match="NaN or infinity"):
        score(logits, torch.tensor([[0]]))
    with pytest.raises(NotANumber, match="NaN or infinity"):
        score(torch.tensor([[[math.inf]]]), torch.tensor([[[0.0]]]))
    with pytest.raises(NotANumber, match="NaN or infinity"):
        score(torch.tensor([[[1.0, math.inf]]]), torch.tensor([[0]]))
    with pytest.raises(NotANumber, match="NaN or infinity"):
        score(torch.tensor([[[-math.inf, -math.inf]]]), torch.tensor([[0]]))
    # A class may be ruled out.
    assert score(torch.tensor([[[1.0, -math.inf]]]), torch.tensor([[0]])).tolist() == [1.0]


def test_regression_is_measured_by_its_mean_squared_error() -> None:
    data = Sinusoid()
    learner = Constant(Conv4((1, 16, 16)), TaskSpec((1,), 1, regression=True))
    result, values = measure(learner, data, Protocol(shots=3, queries=200, count=400))
    assert result["metric"] == metric(data) == "mse"
    assert "ways" not in result
    # E[A^2 sin^2] with A uniform in [0.1, 5], nearly: (5^3 - 0.1^3) / (3 * 4.9) / 2.
    assert result["mean"] == pytest.approx((125 - 0.001) / 14.7 / 2, abs=3 * result["interval"])
    query_y = data.tasks("test", 0, 3, 200, 0).draw(0, 400).query_y
    assert torch.allclose(values, query_y.square().flatten(1).mean(1), rtol=1e-5)


def test_a_result_describes_its_protocol() -> None:
    protocol = Protocol("test", 4, 2, 3, seed=5, count=40)
    told: list[tuple[int, int]] = []
    result, values = measure(
        model("protonet"), Squares(), protocol, watch=lambda done, count: told.append((done, count))
    )
    assert torch.equal(values, evaluate(model("protonet"), tasks(), 40))
    assert told[-1] == (40, 40)
    assert result == {
        "metric": "accuracy",
        **Score.of(values).as_dict(),
        "split": "test",
        "ways": 4,
        "shots": 2,
        "queries": 3,
        "seed": 5,
        "transductive": False,
    }
    assert (
        measure(model("maml"), Squares(), Protocol("test", 4, 1, 1, count=2))[0]["transductive"]
        is True
    )


def test_an_official_protocol_does_not_load_the_data_set() -> None:
    class Missing(Squares):
        def load(self) -> dict[str, Examples]:
            raise AssertionError("the data set was loaded")

        def protocols(self) -> Any:
            return {"official": lambda: (tasks(), 7)}

    measure(model("protonet"), Missing(), Protocol(name="official"))


def test_an_official_protocol_brings_its_own_tasks() -> None:
    result, values = measure(model("protonet"), Squares(), Protocol(ways=4, name="official"))
    assert (result["protocol"], result["tasks"], "ways" in result) == ("official", 7, False)
    assert torch.equal(values, evaluate(model("protonet"), Squares().tasks("test", 2, 1, 1, 9), 7))
    with pytest.raises(UnknownNameError, match="Squares has no protocol 'oficial'") as caught:
        Protocol(name="oficial").tasks(Squares())
    assert "did you mean 'official'" in (caught.value.hint or "")
    with pytest.raises(UnknownNameError) as caught:
        Protocol(name="official").tasks(Sinusoid())
    assert "it has no official protocols" in (caught.value.hint or "")
