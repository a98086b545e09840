"""Probabilities that mean what they say: a temperature from the support set.

Guo et al. 2017 (arXiv:1706.04599) divide logits by the temperature that minimises the loss of held
out examples. Here each support example is held out in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Weight of an example that belongs to every class equally. Few examples without a mistake do not
# prove that there are none; without it their temperature would be 0. Chosen on validation classes
# of CLINC150 and Caltech-101, at 2 to 10 shots (docs/classifier.md).
DOUBT = 0.25
# Sharpest and flattest factor, relative to the spread of the logits.
RANGE = 1e-4, 1e4
HALVINGS = 60


def factor_of(logits: Tensor, y: Tensor) -> float:
    """Return the factor (1 / temperature) by which logits are multiplied.

    It minimises the cross-entropy of held-out logits (N, ways) with their labels (N,), and of one
    more example of average logits and uniform label with weight `DOUBT`. Returns 1 if N is 0, or if
    the logits of each example are equal.
    """
    seen = logits.isfinite().all(0)
    x = logits[:, seen].double()
    if not len(x) or (spread := x.std(1, correction=0).mean().item()) == 0:
        return 1.0
    right = logits.double().gather(1, y[:, None]).squeeze(1)

    def slope(factor: float) -> float:
        expected = ((x * factor).softmax(1) * x).sum(1)
        return float((expected - right).sum() + DOUBT * (expected - x.mean(1)).mean())

    # The loss is convex in the factor, so its slope changes sign once.
    low, high = (torch.tensor(limit / spread).log().item() for limit in RANGE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if slope(torch.tensor(middle).exp().item()) < 0:
            low = middle
        else:
            high = middle
    return torch.tensor(high).exp().item()
