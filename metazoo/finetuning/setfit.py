"""SetFit: Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts" (arXiv:2209.11055)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo.base.encoder import Encoder
from metazoo.finetuning.fine_tuned import Estimate, FineTuned, minimise

PAIRS = 20  # of each kind for an example: R of section 3.1
BATCH = 16
LR = 2e-5


def setfit(
    encoder: Encoder, x: Tensor, y: Tensor, estimate: Estimate, *, pairs: int = PAIRS, seed: int = 0
) -> FineTuned:
    """Return an encoder of texts fine-tuned on pairs of labelled examples x (S, L), y (S,).

    The cosine similarity of two embeddings learns to be 1 within a class and 0 between classes.
    Each example is in `pairs` pairs of either kind, and each pair is seen once.
    """
    tuned = FineTuned(encoder)
    generator = torch.Generator().manual_seed(seed)
    first, second, same = sampled_pairs(y.cpu(), pairs, generator)
    steps = math.ceil(len(first) / BATCH)

    def losses() -> Iterator[Tensor]:
        for i in range(0, len(first), BATCH):
            part = slice(i, i + BATCH)
            a, b = tuned(torch.cat([x[first[part]], x[second[part]]])).chunk(2)
            yield F.mse_loss(F.cosine_similarity(a, b), same[part].to(a))

    minimise(tuned, losses(), steps, LR, estimate)
    return tuned


def sampled_pairs(
    y: Tensor, pairs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two sides of pairs (P,) in random order, and whether they are of one class.

    Each example gets `pairs` partners of its own class and of the others. The only example of its
    class is its own partner.
    """
    sides: list[tuple[int, int]] = []
    for i, label in enumerate(y.tolist()):
        mates = (y == label).nonzero().flatten()
        mates = mates[mates != i] if len(mates) > 1 else mates
        others = (y != label).nonzero().flatten()
        for pool in (mates, others):
            drawn = torch.randint(len(pool), (pairs,), generator=generator)
            sides += [(i, int(j)) for j in pool[drawn]]
    both = torch.tensor(sides)[torch.randperm(len(sides), generator=generator)]
    return both[:, 0], both[:, 1], y[both[:, 0]] == y[both[:, 1]]
