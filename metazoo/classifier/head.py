"""A learner that has seen its support set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo.base.algorithm import FeatureLearner
from metazoo.classifier.models import Model
from metazoo.evaluation.score import require_numbers

# Queries that a learner answers at once, unless it is a FeatureLearner.
QUERIES_AT_ONCE = 500
# Numbers in the features that are classified at once.
CLASSIFIED_AT_ONCE = 2**24
# Support examples up to which each is left out by itself, if the learner has no fast way to do so.
MOST_LEFT_OUT = 64
FOLDS = 10


class Head:
    """A learner with its support set.

    Args:
        model: the learner.
        values: features (S, D) of the support examples, or the examples (S, *) themselves if the
            learner does not adapt in feature space.
        y: their classes (S,), int64.
        ways: the number of classes; a class may lack examples.
        names_z: features (ways, D) of the names of the classes, if they are evidence.
    """

    def __init__(
        self, model: Model, values: Tensor, y: Tensor, ways: int, names_z: Tensor | None = None
    ):
        self.model, self.values, self.y, self.ways, self.names_z = model, values, y, ways, names_z
        # The classes that the learner sees, and their numbers among them.
        self.seen = y.unique() if names_z is None else torch.arange(ways, device=y.device)
        number = torch.zeros(ways, dtype=torch.long, device=y.device)
        number[self.seen] = torch.arange(len(self.seen), device=y.device)
        self._y = number[y]

    @torch.no_grad()
    def logits(self, queries: Tensor) -> Tensor:
        """Return logits (N, ways) of features (N, D), or of examples (N, *).

        A class without examples and names has -inf. Raises NotANumber if the model returns NaN or
        infinity.
        """
        if not len(queries):
            return self.values.new_zeros(0, self.ways)
        size = QUERIES_AT_ONCE
        if self.model.adapts_features:
            size = max(1, CLASSIFIED_AT_ONCE // queries[0].numel())
        elif self.model.learner.transductive:
            size = len(queries)
        return self._of_all_classes(torch.cat([*map(self.logits_of_seen, queries.split(size))]))

    @torch.no_grad()
    def logits_of_seen(self, queries: Tensor) -> Tensor:
        """Return logits (N, seen) of the classes that the learner sees."""
        learner = self.model.learner
        if isinstance(learner, FeatureLearner):
            return self._answer(queries[None])[0]
        return learner(self.values[None], self._y[None], queries[None])[0]

    @functools.cached_property
    def _answer(self) -> Callable[[Tensor], Tensor]:
        """The learner's function from features (1, N, D) to logits (1, N, seen)."""
        learner = self.model.learner
        assert isinstance(learner, FeatureLearner)
        names_z = None if self.names_z is None else self.names_z[None]
        return learner.head(self.values[None], self._y[None], names_z)

    def of_support(self) -> tuple[Tensor, Tensor]:
        """Return logits (N, seen) and labels of the support examples; of the names if there are none."""
        if len(self.y) or self.names_z is None:
            return self.logits_of_seen(self.values), self._y
        return self.logits_of_seen(self.names_z), self.seen

    def _of_all_classes(self, logits: Tensor) -> Tensor:
        require_numbers(logits)
        if len(self.seen) == self.ways:
            return logits
        return logits.new_full((len(logits), self.ways), float("-inf")).index_copy(
            1, self.seen, logits
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_answer"}

    @torch.no_grad()
    def left_out(self) -> tuple[Tensor, Tensor]:
        """Return the rows (N,) of examples that can be left out, and their logits (N, ways).

        Each is classified by the others. That is not possible for the only example of a class
        without a name, nor if the learner is transductive. If the learner has no `leave_one_out` of
        its own, and there are many examples, a tenth of each class is left out at a time.
        """
        learner = self.model.learner
        if learner.transductive or not len(self.y):
            return self.y[:0], self.values.new_zeros(0, self.ways)
        if isinstance(learner, FeatureLearner) and (
            type(learner).leave_one_out is not FeatureLearner.leave_one_out
            or len(self.y) <= MOST_LEFT_OUT
        ):
            names_z = None if self.names_z is None else self.names_z[None]
            logits = learner.leave_one_out(self.values[None], self._y[None], names_z)[0]
        else:
            logits = self._in_folds()
        rows = (~logits.isnan().any(1)).nonzero().squeeze(1)
        return rows, self._of_all_classes(logits[rows])

    def _in_folds(self) -> Tensor:
        """Return logits (S, seen), in which the rows of classes with one example are NaN."""
        counts = F.one_hot(self.y, self.ways).cumsum(0)
        place = counts.gather(1, self.y[:, None]).squeeze(1) - 1  # of each example in its class
        several = counts[-1][self.y] > 1
        logits = self.values.new_full((len(self.y), len(self.seen)), float("nan"))
        for fold in range(min(FOLDS, int(place.max()) + 1)):
            out = several & (place % FOLDS == fold)
            rest = Head(self.model, self.values[~out], self.y[~out], self.ways, self.names_z)
            logits[out] = rest.logits(self.values[out])[:, self.seen]
        return logits
