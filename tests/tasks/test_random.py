"""Random words are pure functions of (seed, i); choices are those of a plain shuffle."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from metazoo.tasks.random import choose_distinct, random_words, random_words_batch, uniform


def plain_shuffle(words: Iterator[int], k: int, n: int) -> list[int]:
    """The definition: the first k places of range(n) after k steps of a Fisher-Yates shuffle."""
    pool = list(range(n))
    for j in range(k):
        r = j + next(words) % (n - j)
        pool[j], pool[r] = pool[r], pool[j]
    return pool[:k]


@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (1, 5), (3, 4), (4, 4), (5, 1000), (16, 20), (50, 50), (60, 4112)]
)
def test_chosen_numbers_are_those_of_a_plain_shuffle(k: int, n: int) -> None:
    words = random_words_batch(3, 100, 200, k)
    expected = [plain_shuffle(iter(row), k, n) for row in words.tolist()]
    assert choose_distinct(words, n).tolist() == expected


@pytest.mark.parametrize("most", [16, 17, 64])
def test_each_row_may_have_its_own_number_of_candidates(most: int) -> None:
    counts = np.arange(4, most + 1)
    words = random_words_batch(3, 0, len(counts), 4)
    chosen = choose_distinct(words, counts)
    assert chosen.tolist() == [
        plain_shuffle(iter(row), 4, n) for row, n in zip(words.tolist(), counts.tolist())
    ]


def test_chosen_numbers_are_distinct_and_uniform() -> None:
    words = random_words(1, 2, 36_000).reshape(-1, 3)
    seen = Counter(map(tuple, choose_distinct(words, 4).tolist()))
    assert set(seen) == set(itertools.permutations(range(4), 3))
    assert all(abs(count - 500) < 6 * 500**0.5 for count in seen.values())


def test_a_batch_holds_the_words_of_successive_numbers() -> None:
    rows = random_words_batch(5, 7, 9, 11)
    assert rows.tolist() == [random_words(5, i, 11).tolist() for i in range(7, 16)]
    fresh = np.random.Philox(key=np.array([5, 9], dtype=np.uint64)).random_raw(11)
    assert rows[2].tolist() == fresh.tolist()


def test_uniform_numbers_lie_in_the_unit_interval() -> None:
    assert uniform(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist() == [0.0, 1 - 2**-53]
    values = uniform(random_words(0, 0, 10_000))
    assert abs(values.mean() - 0.5) < 0.02
