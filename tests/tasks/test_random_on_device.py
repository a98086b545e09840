"""What is chosen by torch operations is what numpy chooses; on a GPU, tests/test_gpu.py looks again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.mlp import MLP
from metazoo.evaluation.measure import evaluate
from metazoo.tasks import episode, random, random_on_device
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler

COUNTS = (4, 9, 5, 7, 4, 6)
LAST = 2**64 - 1


def sampler(on_device: bool) -> EpisodeSampler:
    torch.manual_seed(0)
    x = torch.rand(sum(COUNTS), 3)
    tasks = EpisodeSampler(
        Examples(x, COUNTS, tuple("abcdef"), "letters"), ways=3, shots=2, queries=2, seed=5
    )
    tasks._on_device = on_device
    return tasks


def signed(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.view(np.int64))


@pytest.mark.parametrize(
    ("seed", "first", "rows", "count"),
    [(0, 0, 3, 7), (2**63 - 1, 2**63 - 2, 4, 8), (5, 2**64 - 3, 3, 1), (1, 10**6, 200, 85)],
)
def test_words_are_those_of_numpy(seed: int, first: int, rows: int, count: int) -> None:
    expected = signed(random.random_rows(seed, first, rows, count))
    assert torch.equal(random_on_device.random_rows(seed, first, rows, count, "cpu"), expected)


@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (1, 5), (3, 4), (4, 4), (5, 1000), (16, 20), (50, 50), (60, 4112)]
)
def test_distinct_numbers_are_those_of_numpy(k: int, n: int) -> None:
    words = random.random_rows(3, 100, 200, k)
    assert torch.equal(
        random_on_device.distinct(signed(words), n), torch.from_numpy(random.distinct(words, n))
    )


def test_words_are_unsigned() -> None:
    words = np.array([[LAST, LAST], [2**63, 2**63 - 1], [0, LAST - 1]], dtype=np.uint64)
    for n in (2, 3, 1000, 2**40 + 1):
        assert torch.equal(
            random_on_device.distinct(signed(words), n), torch.from_numpy(random.distinct(words, n))
        )


def test_every_row_has_its_own_number_to_choose_from() -> None:
    words, counts = random.random_rows(3, 0, 60, 4), np.arange(4, 64)
    expected = torch.from_numpy(random.distinct(words, counts))
    assert torch.equal(random_on_device.distinct(signed(words), torch.from_numpy(counts)), expected)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_what_is_no_word_is_refused_as_numpy_does(seed: int) -> None:
    for random_rows in (
        random.random_rows,
        lambda *numbers: random_on_device.random_rows(*numbers, "cpu"),
    ):
        with pytest.raises(OverflowError):
            random_rows(seed, 0, 1, 4)


@pytest.mark.parametrize("at_once", [1, 37, 500, 2**20])
def test_a_sampler_draws_the_same_tasks(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode, "CHOSEN_AT_ONCE_ON_DEVICE", at_once)
    here, there = sampler(False), sampler(True)
    for first, count in ((0, 1), (3, 40), (41, 2), (1, 1), (10**9, 70)):
        for ours, theirs in zip(
            vars(there.draw(first, count)).values(), vars(here.draw(first, count)).values()
        ):
            assert torch.equal(ours, theirs)


def test_evaluation_has_the_same_scores() -> None:
    torch.manual_seed(0)
    model = ProtoNet(MLP((3,)), metazoo.TaskSpec((3,), 3))
    scores = evaluate(model, sampler(True), 50)
    assert torch.equal(scores, evaluate(model, sampler(False), 50))
    assert scores.std() > 0
