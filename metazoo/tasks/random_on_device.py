"""What `drawing` chooses, computed by torch on the device where the data lie: the same numbers, word for word.

A 64-bit word is an int64 tensor's bit pattern, for torch has few operations on uint64. Products wrap around, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Philox4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): multipliers, and what the key grows by.
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10
LOW = 2**32 - 1


def choose(
    seed: int, first: int, count: int, ways: int, each: int, counts: Tensor, starts: Tensor
) -> Tensor:
    """Return the rows of `EpisodeSampler.choose`, int64 (count, ways, each), on the device of `counts`.

    `counts` (classes,) says how many examples each class has, `starts` (classes,) in which row the first one lies.
    """
    words = random_rows(seed, first, count, ways * (1 + each), counts.device)
    classes = distinct(words[:, :ways], len(counts))
    chosen = distinct(words[:, ways:].reshape(-1, each), counts[classes].flatten())
    return starts[classes].unsqueeze(2) + chosen.view(count, ways, each)


def random_rows(seed: int, first: int, rows: int, count: int, device: torch.device | str) -> Tensor:
    """Return the words of (seed, i) for `rows` successive i, int64 (rows, count), those of `drawing.random_rows`."""
    blocks = -(-count // 4)
    numbers = torch.arange(rows, device=device) + _signed(first)
    key = [
        torch.full_like(numbers, _signed(seed)).unsqueeze(1),
        numbers.unsqueeze(1),
    ]  # (rows, 1) each
    nothing = torch.zeros(rows, blocks, dtype=torch.int64, device=device)
    # numpy counts before it computes: the first block is that of counter 1.
    state = [nothing + torch.arange(1, blocks + 1, device=device), nothing, nothing, nothing]
    for _ in range(ROUNDS):
        (high_0, low_0), (high_2, low_2) = (
            _product(MULTIPLIERS[0], state[0]),
            _product(MULTIPLIERS[1], state[2]),
        )
        state = [high_2 ^ state[1] ^ key[0], low_2, high_0 ^ state[3] ^ key[1], low_0]
        key = [part + _signed(step) for part, step in zip(key, KEY_STEPS)]
    return torch.stack(state, -1).flatten(1)[:, :count]


def distinct(words: Tensor, n: int | Tensor) -> Tensor:
    """Return for every row of words (R, k) k different numbers of range(n), int64 (R, k), those of `drawing.distinct`.

    `n` may be a number a row, (R,).
    """
    rows, k = words.shape
    steps = torch.arange(k, device=words.device)
    n = torch.as_tensor(n, device=words.device).expand(rows)
    taken = steps + _remainder(
        words, n.unsqueeze(1) - steps
    )  # (R, k): the place that step j exchanges with j
    # A place beyond the first k is held where the first step that takes it left it.
    ordered, order = taken.sort(dim=1, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    earliest = torch.where(new, steps, 0).cummax(1).values
    first = torch.empty_like(taken).scatter_(1, order, order.gather(1, earliest))
    held = torch.cat([steps.expand(rows, k), taken], 1)  # (R, 2k)
    where = torch.where(taken < k, taken, k + first)
    chosen = torch.empty_like(taken)
    for j in range(k):
        place = where[:, j : j + 1]
        chosen[:, j : j + 1] = held.gather(1, place)
        held.scatter_(1, place, held[:, j : j + 1].clone())
    return chosen


def _signed(word: int) -> int:
    """Return the int64 of the same bits, or raise OverflowError where it is no word, as numpy does."""
    if not 0 <= word < 2**64:
        raise OverflowError(f"{word} is no unsigned number of 64 bits")
    return word - 2**64 if word >= 2**63 else word


def _shifted(x: Tensor) -> Tensor:
    """Return words without their lower half."""
    return (x >> 32) & LOW


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 64 bits of products of words."""
    a_high, a_low, b_high, b_low = a >> 32, a & LOW, _shifted(b), b & LOW
    middle = a_high * b_low + _shifted(a_low * b_low)
    other = a_low * b_high + (middle & LOW)
    return a_high * b_high + _shifted(middle) + _shifted(other), b * _signed(a)


def _remainder(words: Tensor, n: Tensor) -> Tensor:
    """Return words modulo n, taken as unsigned."""
    half = (words >> 1) & (2**63 - 1)
    return (2 * (half % n) + (words & 1)) % n
