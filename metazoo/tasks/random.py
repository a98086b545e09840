"""Random words and choices that are pure functions of (seed, i), computed by numpy on the CPU.

The words come from Philox (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"),
whose definition fixes them. They are turned into choices here, because numpy's higher-level
functions may change between releases.

`random_on_gpu` makes the same choices with torch on a GPU; the CPU keeps this version because numpy
chooses several times faster there (docs/performance.md).
"""

from __future__ import annotations

import numpy as np

# Up to this many candidates for each number chosen, storing all candidates is faster than storing
# only the places that change.
FULL_SHUFFLE_RATIO = 4


def random_words(seed: int, i: int, count: int) -> np.ndarray:
    """Return `count` uniform 64-bit words, uint64 (count,), a pure function of (seed, i)."""
    return random_words_batch(seed, i, 1, count)[0]


def random_words_batch(seed: int, first: int, rows: int, count: int) -> np.ndarray:
    """Return the words of `rows` successive numbers i, uint64 (rows, count)."""
    philox = np.random.Philox(key=np.array([seed, first], dtype=np.uint64))
    state = philox.state
    words = np.empty((rows, count), np.uint64)
    for row in range(rows):
        # One generator gets a new key for each row: creating a new generator costs several times as
        # much.
        state["state"]["key"][1] = first + row
        philox.state = state
        words[row] = philox.random_raw(count)
    return words


def uniform(words: np.ndarray) -> np.ndarray:
    """Return one uniform double in [0, 1) with 53 random bits for each word."""
    return (words >> np.uint64(11)) * 2.0**-53


def choose_distinct(words: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Return k distinct numbers of range(n) in random order for each row of words (R, k).

    The algorithm is a Fisher-Yates shuffle that stops after k steps. For large n it stores only the
    places that change, so that its cost does not grow with n. The bias of `word % n` is below
    n / 2**64.

    Args:
        words: uniform words, uint64 (R, k).
        n: number of candidates, the same for all rows or one for each row, (R,).

    Returns:
        int64 (R, k).
    """
    rows, k = words.shape
    n = np.broadcast_to(np.asarray(n), (rows,))
    steps = np.arange(k)
    left = n[:, None] - steps  # (R, k)
    # Step j swaps place j with place partner[:, j].
    partner = steps + (words % left.astype(np.uint64)).astype(np.int64)  # (R, k)
    largest = int(n.max(initial=0))
    if largest <= FULL_SHUFFLE_RATIO * k:
        return _swap(np.tile(np.arange(largest), (rows, 1)), partner)
    return _swap(*_touched_places(partner))


def _touched_places(partner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the contents of the places that a shuffle touches, and each partner's column in them.

    The contents have shape (R, 2k). The first k columns are the places 0, ..., k - 1. Column k + j
    is the partner of step j if that lies beyond them and no earlier step has the same partner. The
    columns of the partners have shape (R, k).
    """
    rows, k = partner.shape
    steps = np.arange(k)
    order = partner.argsort(1, kind="stable")
    ordered = np.take_along_axis(partner, order, 1)
    is_new = np.ones((rows, k), bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    earliest = np.maximum.accumulate(np.where(is_new, steps, 0), 1)
    first_step = np.empty_like(partner)
    np.put_along_axis(first_step, order, np.take_along_axis(order, earliest, 1), 1)
    contents = np.concatenate([np.broadcast_to(steps, (rows, k)), partner], 1)
    return contents, np.where(partner < k, partner, k + first_step)


def _swap(contents: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """Swap column j of each row with column partner[:, j], for each j in turn.

    Returns what the first k columns hold in the end, int64 (R, k).
    """
    rows, k = partner.shape
    starts, values = contents.shape[1] * np.arange(rows), contents.reshape(-1)
    chosen = np.empty((k, rows), np.int64)
    for j, places in enumerate(np.ascontiguousarray(partner.T) + starts):
        chosen[j] = values[places]
        values[places] = values[starts + j]
    return chosen.T
