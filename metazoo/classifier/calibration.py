"""Probabilities that mean what they say: a temperature from the support set.

Guo et al. 2017 (arXiv:1706.04599) divide logits by the temperature that minimises the loss of held
out examples. Here each support example is held out in turn.
"""

from __future__ import annotations

import math

from torch import Tensor

# Weight of an example that belongs to every class equally. Few examples without a mistake do not
# prove that there are none; without it their temperature would be 0. Chosen on validation classes
# of CLINC150 and Caltech-101, at 2 to 10 shots (docs/notes/classifier.md).
DOUBT = 0.25
# Without an example that could be left out: how far above the other classes the logit of a support
# example's own class should lie. This suits all heads on frozen encoders, and rows of numbers less.
GAP, GAP_OF_ROWS = 17.0, 4.0
# Sharpest and flattest factor, relative to the spread of the logits.
RANGE = 1e-4, 1e4
HALVINGS = 60


def factor_of(logits: Tensor, y: Tensor) -> float:
    """Return the factor (1 / temperature) by which logits are multiplied.

    It minimises the cross-entropy of held-out logits (N, ways) with their labels (N,), and of one
    more example of average logits and uniform label with weight `DOUBT`. Returns 1 if the logits of
    each example are equal.
    """
    x = logits[:, logits.isfinite().all(0)].double()
    spread = x.std(1, correction=0).mean().item()
    if spread == 0:
        return 1.0
    right = logits.double().gather(1, y[:, None]).squeeze(1)

    def slope(factor: float) -> float:
        expected = ((x * factor).softmax(1) * x).sum(1)
        return float((expected - right).sum() + DOUBT * (expected - x.mean(1)).mean())

    # The loss is convex in the factor, so its slope changes sign once.
    low, high = (limit / spread for limit in RANGE)
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def typical_factor(logits: Tensor, y: Tensor, gap: float) -> float:
    """Return the factor that usually fits, if nothing can be left out.

    With it, the logit of a support example's own class is `gap` above the mean of the others.

    Args:
        logits: logits (N, ways) of the support examples, by a head that has seen them.
        y: their labels (N,).
    """
    logits = logits.double()
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = (logits.sum(1) - own) / max(1, logits.shape[1] - 1)
    found = (own - others).mean().item()
    return gap / found if found > 0 else 1.0
