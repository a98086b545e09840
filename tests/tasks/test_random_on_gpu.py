"""The GPU's choices equal numpy's. These run on a CPU; tests/kernels/test_gpu.py runs on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.mlp import MLP
from metazoo.evaluation.measure import evaluate
from metazoo.tasks import random, random_on_gpu
from metazoo.tasks import sampler as sampler_module
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler

COUNTS = (4, 9, 5, 7, 4, 6)
LARGEST_WORD = 2**64 - 1


def sampler(on_gpu: bool) -> EpisodeSampler:
    torch.manual_seed(0)
    x = torch.rand(sum(COUNTS), 3)
    tasks = EpisodeSampler(
        Examples(x, COUNTS, tuple("abcdef"), "letters"), ways=3, shots=2, queries=2, seed=5
    )
    tasks._on_gpu = on_gpu
    return tasks


def signed(words: np.ndarray) -> Tensor:
    return torch.from_numpy(words.view(np.int64))


def assert_same_choice(words: np.ndarray, n: int | np.ndarray) -> None:
    expected = torch.from_numpy(random.choose_distinct(words, n))
    candidates = n if isinstance(n, int) else torch.from_numpy(n)
    assert torch.equal(random_on_gpu.choose_distinct(signed(words), candidates), expected)


@pytest.mark.parametrize(
    ("seed", "first", "rows", "count"),
    [(0, 0, 3, 7), (2**63 - 1, 2**63 - 2, 4, 8), (5, 2**64 - 3, 3, 1), (1, 10**6, 200, 85)],
)
def test_words_equal_those_of_numpy(seed: int, first: int, rows: int, count: int) -> None:
    expected = signed(random.random_words_batch(seed, first, rows, count))
    words = random_on_gpu.random_words_batch(seed, first, rows, count, "cpu")
    assert torch.equal(words, expected)


@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (1, 5), (3, 4), (4, 4), (5, 1000), (16, 20), (50, 50), (60, 4112)]
)
def test_chosen_numbers_equal_those_of_numpy(k: int, n: int) -> None:
    assert_same_choice(random.random_words_batch(3, 100, 200, k), n)


def test_words_are_read_as_unsigned() -> None:
    words = np.array(
        [[LARGEST_WORD, LARGEST_WORD], [2**63, 2**63 - 1], [0, LARGEST_WORD - 1]], dtype=np.uint64
    )
    for n in (2, 3, 1000, 2**40 + 1):
        assert_same_choice(words, n)


def test_each_row_may_have_its_own_number_of_candidates() -> None:
    assert_same_choice(random.random_words_batch(3, 0, 60, 4), np.arange(4, 64))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_beyond_64_bits_is_refused_as_by_numpy(seed: int) -> None:
    with pytest.raises(OverflowError):
        random.random_words_batch(seed, 0, 1, 4)
    with pytest.raises(OverflowError):
        random_on_gpu.random_words_batch(seed, 0, 1, 4, "cpu")


@pytest.mark.parametrize("block_examples", [1, 37, 500, 2**20])
def test_a_sampler_draws_the_same_tasks(
    block_examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "BLOCK_EXAMPLES_GPU", block_examples)
    by_numpy, by_torch = sampler(on_gpu=False), sampler(on_gpu=True)
    for first, count in ((0, 1), (3, 40), (41, 2), (1, 1), (10**9, 70)):
        ours, theirs = by_torch.draw(first, count), by_numpy.draw(first, count)
        for name in vars(ours):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_evaluation_has_the_same_scores() -> None:
    torch.manual_seed(0)
    model = ProtoNet(MLP((3,)), metazoo.TaskSpec((3,), 3))
    scores = evaluate(model, sampler(on_gpu=True), 50)
    assert torch.equal(scores, evaluate(model, sampler(on_gpu=False), 50))
    assert scores.std() > 0
