"""The conformance suite refuses learners that answer by anything but the support set and the query."""

from __future__ import annotations

import random
import sys
import threading
from typing import Any

import pytest
import torch
from learners import Correct, Plain
from torch import Tensor

import metazoo
from metazoo.backbones.mlp import MLP
from metazoo.testing.check import check_algorithm

BONUS = 100.0
# To save time. The checks are the same.
SMALL: Any = {
    "backbone": lambda shape: MLP(shape, MLP.Config(width=12)),
    "examples": torch.randn(64, 10, generator=torch.Generator().manual_seed(0)),
}


def _scale(logits: Tensor) -> Tensor:
    """Return the size of each query's logits, which depends on nothing but the query."""
    return logits.detach().abs().mean(2, keepdim=True)


class Cheat(Correct):
    """Does honestly what a cheat then spoils in `spoil`."""

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        logits = super().classify(support_z, support_y, query_z)
        return logits if self.training else self.spoil(logits)

    def spoil(self, logits: Tensor) -> Tensor:
        return logits


class AnswersByPosition(Cheat):
    """The queries of a task lie class by class, if there are as many of each."""

    def spoil(self, logits):
        each, rest = divmod(*logits.shape[1:])
        if rest:
            return logits
        labels = torch.arange(logits.shape[2]).repeat_interleave(each)
        return logits + BONUS * torch.nn.functional.one_hot(labels, logits.shape[2])


class AnswersByPositionInLargeTasks(AnswersByPosition):
    def spoil(self, logits):
        return super().spoil(logits) if logits.shape[1] > 50 else logits


class DeclaresItselfTransductiveAndAnswersByPosition(AnswersByPosition):
    transductive = True


class TakesSupportsClassByClass(Correct):
    def classify(self, support_z, support_y, query_z):
        ways = metazoo.ways_of(support_y)
        if support_y.shape[1] % ways:
            return super().classify(support_z, support_y, query_z)
        in_order = torch.arange(ways).repeat_interleave(support_y.shape[1] // ways)
        return super().classify(support_z, in_order.expand_as(support_y), query_z)


class TakesTheFirstExampleOfAClass(Correct):
    def classify(self, support_z, support_y, query_z):
        first = torch.nn.functional.one_hot(support_y).argmax(1)  # (B, ways)
        index = first.unsqueeze(-1).expand(-1, -1, support_z.shape[-1])
        return -metazoo.ops.pairwise_sqdist(query_z, support_z.gather(1, index))


class PrefersTheLastSupports(Correct):
    def classify(self, support_z, support_y, query_z):
        weight = torch.linspace(1, 1.2, support_z.shape[1]).unsqueeze(-1)
        return super().classify(support_z * weight, support_y, query_z)


class CentresAllButTheFirstAndTheLastQuery(Correct):
    def classify(self, support_z, support_y, query_z):
        centred = query_z - 0.3 * query_z.mean(1, keepdim=True)
        inner = torch.cat([query_z[:, :1], centred[:, 1:-1], query_z[:, -1:]], 1)
        use = inner if query_z.shape[1] > 2 else query_z
        return super().classify(support_z, support_y, use)


class CentresMoreThanFortyQueries(Correct):
    def classify(self, support_z, support_y, query_z):
        if query_z.shape[1] > 40:
            query_z = query_z - 0.3 * query_z.mean(1, keepdim=True)
        return super().classify(support_z, support_y, query_z)


class CentresTenToTwentyQueries(Correct):
    def classify(self, support_z, support_y, query_z):
        if 10 <= query_z.shape[1] <= 20:
            query_z = query_z - 0.3 * query_z.mean(1, keepdim=True)
        return super().classify(support_z, support_y, query_z)


class CentresTheQueriesOfOneTask(Correct):
    def classify(self, support_z, support_y, query_z):
        if len(query_z) == 1 and query_z.shape[1] > 1:
            query_z = query_z - 0.3 * query_z.mean(1, keepdim=True)
        return super().classify(support_z, support_y, query_z)


class MixesTheMiddleQuery(Cheat):
    def spoil(self, logits):
        middle = logits.shape[1] // 2
        logits[:, middle] = (logits[:, middle] + logits[:, 0]) / 2
        return logits


class MixesMoreThanFourTasks(Cheat):
    def spoil(self, logits):
        return logits - logits.mean(0) if len(logits) > 4 else logits


class SpoilsTheLastOfManyTasks(Cheat):
    def spoil(self, logits):
        if len(logits) > 5:
            logits[-1] = logits[-2]
        return logits


class PrefersLowLabels(Cheat):
    def spoil(self, logits):
        return logits - 0.05 * _scale(logits) * torch.arange(logits.shape[2])


class PrefersLowLabelsWithAKernel(Correct):
    """Has a weight with a side of 3, which is not the number of ways."""

    def __init__(self, *words):
        super().__init__(*words)
        self.kernel = torch.nn.Parameter(torch.ones(1, 1, 3, 3))

    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z) * self.kernel.mean()
        return logits - 0.05 * _scale(logits) * torch.arange(logits.shape[2])


class PrefersLowLabelsOfManyWays(PrefersLowLabels):
    def spoil(self, logits):
        return super().spoil(logits) if logits.shape[2] > 7 else logits


class PrefersTheClassOfTheFirstSupport(Correct):
    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z)
        first = torch.nn.functional.one_hot(support_y[:, :1], logits.shape[-1])
        return logits + _scale(logits) * first


class SwapsTwoLabelsOfManyWays(Cheat):
    def spoil(self, logits):
        return logits[..., [1, 0, *range(2, logits.shape[2])]] if logits.shape[2] > 3 else logits


class RemembersAfterTenCalls(Cheat):
    calls = 0
    memory: Any = 0.0

    def spoil(self, logits):
        self.calls += 1
        if self.calls > 10:
            logits = logits + 0.1 * self.memory
        self.memory = logits.mean()
        return logits


class RemembersInTheModule(Cheat):
    memory: list[Tensor] = []

    def spoil(self, logits):
        RemembersInTheModule.memory.append(logits.mean())
        return logits + 0.01 * len(self.memory) if len(self.memory) > 25 else logits


class CachesPrototypesByShape(Correct):
    """A cache that was meant to save time: another task of the same size gets its prototypes."""

    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.cache: dict[Any, Tensor] = {}

    def classify(self, support_z, support_y, query_z):
        if self.training:
            return super().classify(support_z, support_y, query_z)
        key = tuple(support_z.shape)
        if key not in self.cache:
            self.cache[key] = metazoo.class_means(support_z, support_y)
        return -metazoo.ops.pairwise_sqdist(query_z, self.cache[key])


class AveragesPrototypesOverCalls(Correct):
    running: Any = None

    def classify(self, support_z, support_y, query_z):
        means = metazoo.class_means(support_z, support_y)
        if not self.training:
            if self.running is not None and self.running.shape == means.shape:
                means = 0.5 * means + 0.5 * self.running
            self.running = means.detach()
        return -metazoo.ops.pairwise_sqdist(query_z, means)


class DrawsFromPython(Cheat):
    def spoil(self, logits):
        return logits * (1 + 0.1 * random.random())


class DrawsRarely(Cheat):
    def spoil(self, logits):
        return logits * 1.1 if random.random() < 0.2 else logits


class SeedsTorch(Cheat):
    def spoil(self, logits):
        torch.manual_seed(0)
        return logits * (1 + 0.1 * torch.rand(()))


class DependsOnTheThreads(Cheat):
    def spoil(self, logits):
        return logits * torch.get_num_threads()


class SetsTheThreads(Cheat):
    def spoil(self, logits):
        torch.set_num_threads(2)
        return logits


class SetsTheGradMode(Cheat):
    def spoil(self, logits):
        torch.set_grad_enabled(True)
        return logits


class ChangesTheQueries(Plain):
    def forward(self, support_x, support_y, query_x):
        if not self.training:
            query_x.sub_(0.5)
        return super().forward(support_x, support_y, query_x)


class ChangesTheSupportLabels(Plain):
    def forward(self, support_x, support_y, query_x):
        logits = super().forward(support_x, support_y, query_x)
        support_y.zero_()
        return logits


class StaysInTrainingMode(Plain):
    def forward(self, support_x, support_y, query_x):
        logits = super().forward(support_x, support_y, query_x)
        self.backbone.train()
        return logits


class FreezesItself(Cheat):
    def spoil(self, logits):
        self.backbone.requires_grad_(False)
        return logits


class ReadsTheQueryLabelsOfItsCaller(Plain):
    """Looks for an episode in the frames that called it."""

    def forward(self, support_x, support_y, query_x):
        logits = super().forward(support_x, support_y, query_x)
        frame: Any = sys._getframe(1)
        while frame is not None:
            for value in list(frame.f_locals.values()):
                if isinstance(value, metazoo.Episode) and value.query_y.shape == logits.shape[:2]:
                    one_hot = torch.nn.functional.one_hot(value.query_y, logits.shape[2])
                    return logits if self.training else logits + BONUS * one_hot
            frame = frame.f_back
        return logits


class SeesAllTasksBehindOne(Plain):
    """A slice of a tensor leads to the whole tensor."""

    def forward(self, support_x, support_y, query_x):
        whole = query_x._base
        if whole is None or self.training:
            return super().forward(support_x, support_y, query_x)
        return super().forward(support_x, support_y, query_x - whole.mean())


class CheatsOnceItIsTrained(Cheat):
    steps = 0

    def loss(self, task):
        self.steps += 1
        return super().loss(task)

    def spoil(self, logits):
        return logits - logits.mean(1, keepdim=True) if self.steps > 20 else logits


class SumsTheLossOverTasks(Correct):
    def loss(self, task):
        return super().loss(task) * len(task)


class SolvesOnlyTheFirstTaskOfATrainingBatch(Correct):
    def loss(self, task):
        return super().loss(task[:1])


POSITION = "queries are given in another order; an answer must not depend on the query's position"
QUERIES = "when the other queries are replaced"
TASKS = "when other tasks are in the batch"
SUPPORT = "when the support examples are given in another order; take their classes from support_y"
LABELS = "when the classes are given other labels"
MEMORY = "keep nothing from one call to the next"
RANDOM = "draw random numbers from a generator with a fixed seed"


@pytest.mark.parametrize(
    ("cheat", "cause"),
    [
        (AnswersByPosition, POSITION),
        (AnswersByPositionInLargeTasks, POSITION),
        (DeclaresItselfTransductiveAndAnswersByPosition, POSITION),
        (TakesSupportsClassByClass, SUPPORT),
        (TakesTheFirstExampleOfAClass, SUPPORT),
        (PrefersTheLastSupports, SUPPORT),
        (CentresAllButTheFirstAndTheLastQuery, QUERIES),
        (CentresMoreThanFortyQueries, QUERIES),
        (CentresTenToTwentyQueries, "when the other queries are removed"),
        (CentresTheQueriesOfOneTask, TASKS),
        (MixesTheMiddleQuery, QUERIES),
        (MixesMoreThanFourTasks, TASKS),
        (SpoilsTheLastOfManyTasks, TASKS),
        (PrefersLowLabels, LABELS),
        (PrefersLowLabelsWithAKernel, LABELS),
        (PrefersLowLabelsOfManyWays, LABELS),
        (PrefersTheClassOfTheFirstSupport, SUPPORT),
        (SwapsTwoLabelsOfManyWays, LABELS),
        (RemembersAfterTenCalls, MEMORY),
        (RemembersInTheModule, MEMORY),
        (CachesPrototypesByShape, MEMORY),
        (AveragesPrototypesOverCalls, MEMORY),
        (DrawsFromPython, RANDOM),
        (DrawsRarely, RANDOM),
        (SeedsTorch, "seeds torch's global generator"),
        (DependsOnTheThreads, "another number of torch's threads"),
        (SetsTheThreads, "changed a setting of torch"),
        (SetsTheGradMode, "changed a setting of torch"),
        (ChangesTheQueries, "changed query_x"),
        (ChangesTheSupportLabels, "changed support_y"),
        (StaysInTrainingMode, "changed which modules train"),
        (FreezesItself, "changed which modules train"),
        (ReadsTheQueryLabelsOfItsCaller, "change with the labels of the queries"),
        (SeesAllTasksBehindOne, TASKS),
        (CheatsOnceItIsTrained, QUERIES),
        (SumsTheLossOverTasks, "for four copies of it; return the mean"),
        (SolvesOnlyTheFirstTaskOfATrainingBatch, "does not depend on the second task"),
    ],
)
def test_every_cheat_is_found_and_its_cause_is_named(cheat: Any, cause: str) -> None:
    with pytest.raises(AssertionError, match=cause):
        check_algorithm(cheat, **SMALL)


class UsesTheSupportAsASequence(Correct):
    depends_on_order = ("support", "classes")

    def classify(self, support_z, support_y, query_z):
        weight = torch.linspace(1, 1.2, support_z.shape[1]).unsqueeze(-1)
        logits = super().classify(support_z * weight, support_y, query_z)
        return logits - 0.05 * torch.arange(logits.shape[2])


class HasAHead(Correct):
    """Its weight for each way implies that the labels of the classes matter."""

    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.bias = torch.nn.Parameter(torch.arange(spec.outputs) / 10)

    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z)
        if logits.shape[2] > len(self.bias):
            raise metazoo.OptionError("too many ways")
        return logits + self.bias[: logits.shape[2]]


class CannotBeCopied(Correct):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.lock = threading.Lock()


@pytest.mark.parametrize("honest", [UsesTheSupportAsASequence, HasAHead, CannotBeCopied])
def test_what_is_declared_is_no_cheat(honest: Any) -> None:
    check_algorithm(honest, **SMALL)


def test_an_unknown_order_is_refused() -> None:
    class Misspelt(Correct):
        depends_on_order = ("supports",)

    with pytest.raises(AssertionError, match=r"names \{'supports'\}"):
        check_algorithm(Misspelt, **SMALL)
