"""Learners that cheat: the conformance suite refuses each, and passes the honest ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metazoo import Algorithm, class_means, ops
from metazoo.testing import check_algorithm

from .material import Material
from .subject import Case, Subject, must

HONEST = ("protonet", "matching", "maml", "baseline", "baseline++")


class Nearest(Algorithm):
    """The nearest class mean. It honestly keeps to the contract; cheats change `logits`."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return self.logits(self.embed(support_x), support_y, self.embed(query_x))

    def embed(self, x: Tensor) -> Tensor:
        return self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def logits(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        return -ops.pairwise_sqdist(query, class_means(support, labels))


Logits = Callable[[Nearest, Tensor, Tensor, Tensor], Tensor]


def _by_place(rng: random.Random) -> Logits:
    """Queries lie class by class: the place of one tells its class."""
    size = rng.choice((1.0, 10.0, 100.0))

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        ways = int(labels.max()) + 1
        found = Nearest.logits(self, support, labels, query)
        place = torch.arange(query.shape[1]) * ways // query.shape[1]
        return found + size * torch.nn.functional.one_hot(place, ways)

    return logits


def _by_neighbour(rng: random.Random) -> Logits:
    """Queries lie class by class: one has the class of the one before. It says it is transductive."""
    share = rng.choice((0.3, 0.5))

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        found = Nearest.logits(self, support, labels, query)
        return found + share * found.roll(1, 1)

    return logits


def _support_in_order(rng: random.Random) -> Logits:
    """Support examples are taken class by class, whatever their labels are."""

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        return Nearest.logits(self, support, labels.sort(1).values, query)

    return logits


def _first_support(rng: random.Random) -> Logits:
    """Of each class only the first example counts, so that their order matters."""

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        ways = int(labels.max()) + 1
        first = torch.stack([(labels == way).int().argmax(1) for way in range(ways)], 1)
        chosen = support.gather(1, first.unsqueeze(-1).expand(-1, -1, support.shape[-1]))
        return -ops.pairwise_sqdist(query, chosen)

    return logits


def _centred_inside(rng: random.Random) -> Logits:
    """Queries are centred, except the first and the last."""

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        query = query.clone()
        query[:, 1:-1] -= query.mean(1, keepdim=True) / 2
        return Nearest.logits(self, support, labels, query)

    return logits


def _centred_if_many(rng: random.Random) -> Logits:
    """Queries are centred if there are many of them."""
    many = rng.choice((20, 40, 60, 70))

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        if query.shape[1] > many:
            query = query - query.mean(1, keepdim=True) / 2
        return Nearest.logits(self, support, labels, query)

    return logits


def _mixed_if_many(rng: random.Random) -> Logits:
    """Tasks share their mean if there are several."""
    many = rng.choice((2, 4, 6))

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        if len(query) > many:
            query = query - query.mean((0, 1), keepdim=True) / 2
        return Nearest.logits(self, support, labels, query)

    return logits


def _low_labels(rng: random.Random) -> Logits:
    """Low labels are likelier: answers change if labels are exchanged."""
    size = rng.choice((0.1, 1.0, 10.0))

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        found = Nearest.logits(self, support, labels, query)
        return found - size * torch.arange(found.shape[-1])

    return logits


def _remembers(rng: random.Random) -> Logits:
    """After some calls, answers depend on those before."""
    calls = rng.choice((5, 30, 40))

    def logits(self: Nearest, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        seen = self.__dict__.setdefault("seen", [])  # of this model, not of all
        if not self.training:
            seen.append(float(query.mean()))
        found = Nearest.logits(self, support, labels, query)
        return found * (1 + len(seen)) if len(seen) > calls else found

    return logits


CHEATS: tuple[Callable[[random.Random], Logits], ...] = (
    _by_place,
    _by_neighbour,
    _support_in_order,
    _first_support,
    _centred_inside,
    _centred_if_many,
    _mixed_if_many,
    _low_labels,
    _remembers,
)


def subjects(material: Material) -> list[Subject]:
    def run_cheat(case: Case) -> Any:
        cheat = CHEATS[case.number % len(CHEATS)]
        case.note(cheat.__name__[1:])
        body = {
            "__doc__": cheat.__doc__,
            "logits": cheat(case.rng),
            "transductive": cheat is _by_neighbour,
        }
        learner = type("Cheat", (Nearest,), body)
        try:
            check_algorithm(learner)
        except AssertionError as refusal:
            return str(refusal)
        must(False, "check_algorithm passes it")

    def run_honest(case: Case) -> Any:
        learner = (Nearest, *HONEST)[case.number % (1 + len(HONEST))]
        case.note(str(learner))
        check_algorithm(learner)

    return [
        Subject("cheats", "learners that cheat", run_cheat, 36, len(CHEATS), 60.0),
        Subject("honest", "honest learners", run_honest, 6, 1, 60.0, together=2),
    ]
