"""Random numbers that are a pure function of (seed, i), and choices made from them, many tasks at a time.

Random numbers come as raw 64-bit words from Philox (Salmon et al. 2011), keyed by (seed, i), and are turned into choices here:
the words are fixed by the algorithm's definition, whereas numpy's higher functions may change between releases.
"""

from __future__ import annotations

import numpy as np

# Up to so many times as many numbers as are chosen, laying them all out is quicker than sorting out which ones matter.
LAID_OUT = 4


def random_words(seed: int, i: int, count: int) -> np.ndarray:
    """Return `count` uniform 64-bit words, a pure function of (seed, i)."""
    return random_rows(seed, i, 1, count)[0]


def random_rows(seed: int, first: int, rows: int, count: int) -> np.ndarray:
    """Return the words of (seed, i) for `rows` successive i, uint64 (rows, count)."""
    philox = np.random.Philox(key=np.array([seed, first], dtype=np.uint64))
    state = philox.state
    words = np.empty((rows, count), np.uint64)
    for row in range(rows):
        # A new key in an old generator: a new generator costs several times as much.
        state["state"]["key"][1] = first + row
        philox.state = state
        words[row] = philox.random_raw(count)
    return words


def uniform(words: np.ndarray) -> np.ndarray:
    """Return uniform doubles in [0, 1) with 53 bits, one a word."""
    return (words >> np.uint64(11)) * 2.0**-53


def distinct(words: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Return for every row of words (R, k) k different numbers of range(n), in random order, as int64 (R, k).

    `n` may be a number a row, (R,). A Fisher-Yates shuffle of the first k places that, where n is large, keeps only what they
    and the places they are exchanged with hold, so that the cost does not grow with n. The bias of `word % n` is below
    n / 2**64.
    """
    rows, k = words.shape
    n = np.broadcast_to(np.asarray(n), (rows,))
    steps = np.arange(k)
    left = n[:, None] - steps  # (R, k)
    taken = steps + (words % left.astype(np.uint64)).astype(
        np.int64
    )  # (R, k): the place that step j exchanges with j
    largest = int(n.max(initial=0))
    if largest <= LAID_OUT * k:
        held, where = np.tile(np.arange(largest), (rows, 1)), taken
    else:
        # A place beyond the first k is held where the first step that takes it left it.
        order = taken.argsort(1, kind="stable")
        ordered = np.take_along_axis(taken, order, 1)
        new = np.ones((rows, k), bool)
        new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        earliest = np.maximum.accumulate(np.where(new, steps, 0), 1)
        first = np.empty_like(taken)
        np.put_along_axis(first, order, np.take_along_axis(order, earliest, 1), 1)
        held = np.concatenate([np.broadcast_to(steps, (rows, k)), taken], 1)  # (R, 2k)
        where = np.where(taken < k, taken, k + first)
    starts, values = held.shape[1] * np.arange(rows), held.reshape(-1)
    chosen = np.empty((k, rows), np.int64)
    for j, places in enumerate(np.ascontiguousarray(where.T) + starts):
        chosen[j] = values[places]
        values[places] = values[starts + j]
    return chosen.T
