"""Queries that belong to no class: how unlike the classes a query is, and when it is rejected."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo.classifier.head import Head

# Weight of the doubt between the classes beside the squared distance to the nearest one, which is at
# most 4. Chosen on validation classes of CLINC150 and Caltech-101 (docs/notes/classifier.md).
DOUBT = 0.2
# If no class has two examples: the share of them that other classes may accept.
ACCEPTED = 0.25


class Novelty:
    """How unlike all classes queries are: a number that grows with the distance and with the doubt.

    It is the squared distance to the nearest class mean, minus `DOUBT` times the logarithm of the
    largest probability. The distance alone misses queries between classes, and the probability
    alone those far from every class. Features have length 1. Without features, only the doubt
    counts.

    Args:
        head: the learner with its support set.
    """

    def __init__(self, head: Head):
        self.head = head
        if not head.model.adapts_features:
            return
        self.z = F.normalize(head.values, dim=-1)
        self.counts = head.y.bincount(minlength=head.ways)
        sums = self.z.new_zeros(head.ways, self.z.shape[1]).index_add(0, head.y, self.z)
        self.means = sums / self.counts.clamp_min(1)[:, None]
        if head.names_z is not None:
            named = self.counts == 0
            self.means[named] = F.normalize(head.names_z, dim=-1)[named]

    def __call__(self, queries: Tensor, logits: Tensor) -> Tensor:
        """Return the novelty (N,) of features (N, D), or examples, with calibrated logits (N, ways)."""
        if not self.head.model.adapts_features:
            return self._combined(torch.zeros_like(logits), logits)
        return self._combined(self._distances(F.normalize(queries, dim=-1)), logits)

    def _distances(self, z: Tensor) -> Tensor:
        return torch.cdist(z, self.means).square()

    def _combined(self, distances: Tensor, logits: Tensor) -> Tensor:
        seen = self.head.seen
        doubt = -logits[:, seen].log_softmax(1).amax(1)
        return distances[:, seen].amin(1) + DOUBT * doubt

    def threshold(self, rows: Tensor, left_out: Tensor, factor: float) -> float:
        """Return the novelty above which a query is rejected; infinity if it cannot be told.

        As many support examples would be rejected, each judged without itself, as would be
        accepted, each judged without its class.

        Args:
            rows: the support examples (N,) that could be left out.
            left_out: their calibrated logits (N, ways) without themselves.
            factor: by which logits are multiplied to calibrate them.
        """
        head, own = self.head, F.one_hot(self.head.y, self.head.ways).bool()
        if len(head.seen) < 2 or not len(head.y):
            return math.inf
        logits = head.logits(head.values) * factor
        logits[rows] = left_out
        distances = torch.zeros_like(logits)
        if head.model.adapts_features:
            distances = self._distances(self.z)
            distances[own] = self._without_themselves()
        kept = self._combined(distances, logits)[rows]
        foreign = self._foreign(distances, logits, own)
        return _equal_errors(kept, foreign) if len(kept) else foreign.quantile(ACCEPTED).item()

    def _foreign(self, distances: Tensor, logits: Tensor, own: Tensor) -> Tensor:
        """Return the novelty (S,) of support examples for all classes but their own."""
        infinity = float("inf")
        return self._combined(
            distances.masked_fill(own, infinity), logits.masked_fill(own, -infinity)
        )

    def _without_themselves(self) -> Tensor:
        """Return squared distances (S,) of support examples to the mean of the rest of their class.

        They are scaled to that of a query to the mean of the whole class.
        """
        count = self.counts[self.head.y].to(self.z.dtype)
        others = (count - 1).clamp_min(1)[:, None]
        means = (self.means[self.head.y] * count[:, None] - self.z) / others
        scale = (1 + 1 / count) / (1 + 1 / others.squeeze(1))
        return (self.z - means).square().sum(1) * scale


def _equal_errors(kept: Tensor, foreign: Tensor) -> float:
    """Return where the share of `kept` above is nearest to the share of `foreign` below."""
    values = torch.cat([kept, foreign]).sort().values
    between = (values[1:] + values[:-1]) / 2
    above = 1 - torch.searchsorted(kept.sort().values, between, right=True) / len(kept)
    below = torch.searchsorted(foreign.sort().values, between, right=True) / len(foreign)
    apart = (above - below).abs()
    return between[apart == apart.min()].mean().item()
