"""Why an answer: the support examples that are nearest to a query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from metazoo.classifier.support import Support


@dataclass(frozen=True)
class Neighbour:
    """A support example near a query.

    Attributes:
        label: its label.
        similarity: the cosine of its features with those of the query.
        index: its position among the labelled examples, in the order in which they were given.
        example: its text or path, or None if it was given otherwise.
    """

    label: Any
    similarity: float
    index: int
    example: str | None


def nearest(queries: Tensor, support_z: Tensor, support: Support, n: int) -> list[list[Neighbour]]:
    """Return the `n` nearest support examples of each query, the nearest first.

    Shapes: features of the queries (N, D) and of the support (S, D).
    """
    cosines = F.normalize(queries, dim=1) @ F.normalize(support_z, dim=1).T
    found = cosines.topk(min(n, len(support)), 1)
    return [
        [Neighbour(support.labels[i], cosine, i, support.raw[i]) for cosine, i in zip(near, rows)]
        for near, rows in zip(found.values.tolist(), found.indices.tolist())
    ]
