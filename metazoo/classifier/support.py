"""Examples as a model takes them, and the labelled ones among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metazoo.classifier.examples import Given, parts
from metazoo.classifier.looks import Pictures
from metazoo.classifier.models import Model
from metazoo.tasks.examples import as_bytes


@dataclass(frozen=True)
class Examples:
    """Examples that were read.

    Attributes:
        values: features (N, D), or the examples (N, *) if the model does not adapt in feature
            space.
        digests: what tells each example from all others.
        pictures: what they look like, if they are pictures.
    """

    values: Tensor
    digests: list[bytes] = field(repr=False)
    pictures: Pictures

    def __len__(self) -> int:
        return len(self.digests)

    def order(self, *keys: Sequence[Any]) -> Tensor:
        """Return an order (N,) that depends only on what the examples are, and on further keys."""
        rows = list(zip(self.digests, *keys))
        order = sorted(range(len(rows)), key=rows.__getitem__)
        return torch.tensor(order, dtype=torch.long, device=self.values.device)


@dataclass(frozen=True)
class Support(Examples):
    """Labelled examples, in the order in which they were given; `raw` are their texts or paths."""

    labels: list[Any] = field(default_factory=list)
    raw: list[str | None] = field(default_factory=list)

    def plus(self, other: Support) -> Support:
        """Return these examples followed by the others."""
        return Support(
            torch.cat([self.values, other.values]),
            self.digests + other.digests,
            self.pictures.plus(other.pictures),
            self.labels + other.labels,
            self.raw + other.raw,
        )

    def contradictions(self) -> list[str]:
        """Return what to warn of: equal examples with different labels."""
        first: dict[bytes, Any] = {}
        return [
            f"one example has both labels {first[digest]!r} and {label!r}"
            for digest, label in zip(self.digests, self.labels)
            if first.setdefault(digest, label) != label
        ]


def read(given: Given, model: Model) -> Examples:
    """Read examples, and embed them if the model adapts in feature space."""
    pictures = Pictures()
    values: list[Tensor] = [model.empty()]
    digests: list[bytes] = []
    for part in parts(given, model):
        if model.kind == "image":
            pictures.add(part)
        digests += digests_of(part)
        values.append(model.embed(part))
    return Examples(torch.cat(values), digests, pictures)


def read_support(given: Given, model: Model, labels: Iterable[Any]) -> Support:
    """Read labelled examples."""
    found = read(given, model)
    return Support(found.values, found.digests, found.pictures, list(labels), given.raw)


def digests_of(x: Tensor) -> list[bytes]:
    """Return the sha256 of each example of x (N, *)."""
    return [hashlib.sha256(as_bytes(row)).digest() for row in x.cpu()]
