"""Random numbers that are a pure function of (seed, i), and what is chosen by them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from metazoo.tasks.random import distinct, random_rows, random_words, uniform


def one_by_one(words: Iterator[int], k: int, n: int) -> list[int]:
    """The definition: a Fisher-Yates shuffle of range(n), of which the first k places are read."""
    pool = list(range(n))
    for j in range(k):
        r = j + next(words) % (n - j)
        pool[j], pool[r] = pool[r], pool[j]
    return pool[:k]


@pytest.mark.parametrize(
    ("k", "n"), [(1, 1), (1, 5), (3, 4), (4, 4), (5, 1000), (16, 20), (50, 50), (60, 4112)]
)
def test_distinct_numbers_are_those_of_a_plain_shuffle(k: int, n: int) -> None:
    words = random_rows(3, 100, 200, k)
    assert distinct(words, n).tolist() == [one_by_one(iter(row), k, n) for row in words.tolist()]


@pytest.mark.parametrize("most", [16, 17, 64])
def test_every_row_has_its_own_number_to_choose_from(most: int) -> None:
    counts = np.arange(4, most + 1)
    words = random_rows(3, 0, len(counts), 4)
    chosen = distinct(words, counts)
    assert chosen.tolist() == [
        one_by_one(iter(row), 4, n) for row, n in zip(words.tolist(), counts.tolist())
    ]


def test_distinct_numbers_are_a_uniform_choice_without_repetition() -> None:
    seen = Counter(map(tuple, distinct(random_words(1, 2, 36_000).reshape(-1, 3), 4).tolist()))
    assert set(seen) == set(itertools.permutations(range(4), 3))
    assert all(abs(count - 500) < 6 * 500**0.5 for count in seen.values())


def test_rows_are_the_words_of_successive_numbers() -> None:
    rows = random_rows(5, 7, 9, 11)
    assert rows.tolist() == [random_words(5, i, 11).tolist() for i in range(7, 16)]
    fresh = np.random.Philox(key=np.array([5, 9], dtype=np.uint64)).random_raw(11)
    assert rows[2].tolist() == fresh.tolist()


def test_uniform_numbers_lie_in_the_unit_interval() -> None:
    assert uniform(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist() == [0.0, 1 - 2**-53]
    values = uniform(random_words(0, 0, 10_000))
    assert abs(values.mean() - 0.5) < 0.02
