"""The choices of `metazoo.tasks.random`, computed by torch on the device that holds the data.

Every word and every choice is the same as numpy's. A 64-bit word is stored as the bits of an int64,
because torch has few operations on uint64.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Philox4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3").
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10
LOW = 2**32 - 1


def choose(
    seed: int, first: int, count: int, ways: int, each: int, counts: Tensor, starts: Tensor
) -> Tensor:
    """Return the rows that `EpisodeSampler.choose` returns, on the device of `counts`.

    Args:
        seed, first, count: the sampler's seed, the first task, the number of tasks.
        ways: classes in a task.
        each: examples drawn from each class, support and query together.
        counts: number of examples of each class, int64 (classes,).
        starts: row of the first example of each class, int64 (classes,).

    Returns:
        int64 (count, ways, each).
    """
    words = random_words_batch(seed, first, count, ways * (1 + each), counts.device)
    classes = choose_distinct(words[:, :ways], len(counts))
    chosen = choose_distinct(words[:, ways:].reshape(-1, each), counts[classes].flatten())
    return starts[classes].unsqueeze(2) + chosen.view(count, ways, each)


def random_words_batch(
    seed: int, first: int, rows: int, count: int, device: torch.device | str
) -> Tensor:
    """Return the words of `random.random_words_batch`, int64 (rows, count).

    Raises OverflowError if `seed` or `first` does not fit in 64 bits, as numpy does.
    """
    blocks = -(-count // 4)
    numbers = torch.arange(rows, device=device) + _signed(first)
    key = [
        torch.full_like(numbers, _signed(seed)).unsqueeze(1),
        numbers.unsqueeze(1),
    ]  # (rows, 1) each
    zeros = torch.zeros(rows, blocks, dtype=torch.int64, device=device)
    # numpy increments the counter before it computes a block, so the first counter is 1.
    state = [zeros + torch.arange(1, blocks + 1, device=device), zeros, zeros, zeros]
    for _ in range(ROUNDS):
        high_0, low_0 = _product(MULTIPLIERS[0], state[0])
        high_2, low_2 = _product(MULTIPLIERS[1], state[2])
        state = [high_2 ^ state[1] ^ key[0], low_2, high_0 ^ state[3] ^ key[1], low_0]
        key = [part + _signed(step) for part, step in zip(key, KEY_STEPS)]
    return torch.stack(state, -1).flatten(1)[:, :count]


def choose_distinct(words: Tensor, n: int | Tensor) -> Tensor:
    """Return the choices of `random.choose_distinct`, int64 (R, k), from words (R, k).

    `n` is the number of candidates, the same for all rows or one for each row, (R,).
    """
    rows, k = words.shape
    steps = torch.arange(k, device=words.device)
    n = torch.as_tensor(n, device=words.device).expand(rows)
    # Step j swaps place j with place partner[:, j].
    partner = steps + _remainder(words, n.unsqueeze(1) - steps)  # (R, k)
    # Only the places that the shuffle touches are stored: the first k, and those of the partners.
    # A partner beyond the first k is stored in the column of the first step that swaps with it.
    ordered, order = partner.sort(dim=1, stable=True)
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    earliest = torch.where(is_new, steps, 0).cummax(1).values
    first_step = torch.empty_like(partner).scatter_(1, order, order.gather(1, earliest))
    contents = torch.cat([steps.expand(rows, k), partner], 1)  # (R, 2k)
    partner = torch.where(partner < k, partner, k + first_step)
    chosen = torch.empty_like(partner)
    for j in range(k):
        place = partner[:, j : j + 1]
        chosen[:, j : j + 1] = contents.gather(1, place)
        contents.scatter_(1, place, contents[:, j : j + 1].clone())
    return chosen


def _signed(word: int) -> int:
    """Return the int64 with the bits of a word, or raise OverflowError as numpy does."""
    if not 0 <= word < 2**64:
        raise OverflowError(f"{word} does not fit in an unsigned 64-bit number")
    return word - 2**64 if word >= 2**63 else word


def _upper_half(x: Tensor) -> Tensor:
    """Return the upper 32 bits of each word."""
    return (x >> 32) & LOW


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower 64 bits of the products of two words."""
    a_high, a_low, b_high, b_low = a >> 32, a & LOW, _upper_half(b), b & LOW
    middle = a_high * b_low + _upper_half(a_low * b_low)
    other = a_low * b_high + (middle & LOW)
    return a_high * b_high + _upper_half(middle) + _upper_half(other), b * _signed(a)


def _remainder(words: Tensor, n: Tensor) -> Tensor:
    """Return the words, read as unsigned, modulo n."""
    half = (words >> 1) & (2**63 - 1)
    return (2 * (half % n) + (words & 1)) % n
