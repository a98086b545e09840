"""Which examples to label next."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Examples of the pool that stand for all of it, and those among which to choose: each choice compares
# all of the one with all of the other.
REPRESENTATIVES = 2000
CANDIDATES = 20_000


def suggest(labelled: Tensor, pool: Tensor, n: int) -> list[int]:
    """Return the `n` examples of a pool that, once labelled, stand best for the rest of it.

    They are chosen one by one. Each adds most to the sum, over the pool, of the cosine similarity to
    the most similar example that is labelled or chosen (facility location; the greedy choice is
    within 63 % of the best, Nemhauser et al. 1978). That favours dense regions that no label is
    near. Of a large pool, a random part is compared, always the same.

    Args:
        labelled: features (S, D).
        pool: features (N, D).
        n: at most N.
    """
    pool = F.normalize(pool, dim=1)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pool), generator=generator).to(pool.device)
    candidates = order[: max(n, CANDIDATES)]
    targets = pool[order[:REPRESENTATIVES]]
    # The similarity of each target to each candidate, and to the nearest label so far.
    similarity = targets @ pool[candidates].T
    nearest = similarity.new_full((len(targets),), -1.0)
    if len(labelled):
        nearest = (targets @ F.normalize(labelled, dim=1).T).amax(1)
    free = torch.ones(len(candidates), dtype=torch.bool, device=pool.device)
    chosen = []
    for _ in range(n):
        gain = (similarity - nearest[:, None]).clamp_min_(0).sum(0)
        best = int(gain.masked_fill_(~free, -1.0).argmax())
        chosen.append(int(candidates[best]))
        free[best] = False
        nearest = torch.maximum(nearest, similarity[:, best])
    return chosen
