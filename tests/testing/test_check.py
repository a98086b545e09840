"""The conformance suite passes the honest and catches every sort of liar."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import metazoo
from metazoo.plugins.registry import registry
from metazoo.testing.check import check_algorithm


@pytest.mark.parametrize("name", [entry.name for entry in registry().algorithms])
def test_every_registered_algorithm_conforms(name: str) -> None:
    check_algorithm(name)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("protonet", {}),
        ("baseline", {}),
        ("matching", {"fce": True}),
        ("maml", {"batch_norm": "support"}),
    ],
)
def test_those_with_views_conform(name: str, others: dict[str, Any]) -> None:
    check_algorithm(name, {"views": "shifted", **others})


class Honest(metazoo.FeatureLearner):
    """Nearest class mean."""

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        scale: float = 1.0

    def classify(self, support_z, support_y, query_z):
        return -self.config.scale * metazoo.ops.pairwise_sqdist(
            query_z, metazoo.class_means(support_z, support_y)
        )


class Plain(metazoo.Algorithm):
    """The same without declaring that it adapts in feature space, and with regression: a mean of the support by distance."""

    regresses = True

    def forward(self, support_x, support_y, query_x):
        tasks = len(support_x)
        z = self.backbone(torch.cat([support_x.flatten(0, 1), query_x.flatten(0, 1)]))
        support_z, query_z = z.split(
            [z.shape[0] - query_x.shape[0] * query_x.shape[1], query_x.shape[0] * query_x.shape[1]]
        )
        support_z, query_z = support_z.unflatten(0, (tasks, -1)), query_z.unflatten(0, (tasks, -1))
        if self.spec.regression:
            return (-metazoo.ops.pairwise_sqdist(query_z, support_z)).softmax(-1) @ support_y
        return -metazoo.ops.pairwise_sqdist(query_z, metazoo.class_means(support_z, support_y))


def test_honest_algorithms_pass() -> None:
    check_algorithm(Honest)
    check_algorithm(Honest, {"scale": 0.5})
    check_algorithm(Plain)


def test_a_transductive_algorithm_that_says_so_passes() -> None:
    class Open(UsesOtherQueries):
        transductive = True

    check_algorithm(Open)


def test_nothing_of_the_caller_is_changed() -> None:
    torch.manual_seed(5)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        check_algorithm(Honest)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


class UsesOtherQueries(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z - query_z.mean(1, keepdim=True))


class UsesTheQueriesBefore(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z.cumsum(1))


class UsesTheQueriesBehind(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z.flip(1).cumsum(1).flip(1))


class UsesTheNumberOfQueries(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z) / query_z.shape[1]


class UsesTheNextQuery(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z + 0.1 * query_z.roll(1, 1))


class UsesBatchStatistics(Plain):
    def train(self, mode=True):
        return super().train(True)


class MixesTasks(Honest):
    def classify(self, support_z, support_y, query_z):
        scale = 1 + support_z.abs().mean((0, 1))
        return super().classify(support_z / scale, support_y, query_z / scale)


class AnswersTheFirstTask(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(
            support_z[:1].expand_as(support_z), support_y[:1].expand_as(support_y), query_z
        )


class IgnoresAParameter(Honest):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.idle = nn.Parameter(torch.zeros(3))


class CutsTheGraph(Honest):
    def loss(self, task):
        return super().loss(task).detach()


class HasInfiniteGradients(Honest):
    def loss(self, task):
        return (
            super().loss(task)
            + (self(task.support_x, task.support_y, task.query_x) * 0).abs().sqrt().sum()
        )


class ReturnsManyLosses(Honest):
    def loss(self, task):
        return self(task.support_x, task.support_y, task.query_x).mean(-1)


class LossIsNotFinite(Honest):
    def loss(self, task):
        return super().loss(task) / 0


class DrawsAtRandom(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z) * (1 + 0.01 * torch.rand(()))


class RemembersWhatItSaw(Honest):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.register_buffer("calls", torch.tensor(0))

    def classify(self, support_z, support_y, query_z):
        self.calls += 1
        return super().classify(support_z, support_y, query_z)


class LeavesGradients(Honest):
    def forward(self, support_x, support_y, query_x):
        with torch.enable_grad():
            super().forward(support_x, support_y, support_x).sum().backward()
        return super().forward(support_x, support_y, query_x)


class NeedsGradientsOn(Honest):
    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z)
        return logits if torch.is_grad_enabled() else logits + 1


class HasNoWays(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z).argmax(-1)


class HasTheWrongWays(Honest):
    def classify(self, support_z, support_y, query_z):
        return nn.functional.pad(super().classify(support_z, support_y, query_z), (0, 1))


class HasAHeadOfItsTrainingWays(Honest):
    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z)
        return nn.functional.pad(logits, (0, self.spec.outputs - logits.shape[-1]))


class AssumesEqualShots(Honest):
    def classify(self, support_z, support_y, query_z):
        means = support_z.unflatten(1, (metazoo.ways_of(support_y), -1)).mean(2)
        means[:, 1:] += 0 * support_y[:, :1, None].sub(support_y.min()).div(
            support_y[:, :1, None].sub(support_y.min())
        )
        return -metazoo.ops.pairwise_sqdist(query_z, means)


class DividesByZero(Honest):
    def classify(self, support_z, support_y, query_z):
        spread = support_z[:, support_y[0] == 0].std(1, keepdim=True, correction=0)
        return super().classify(support_z / spread, support_y, query_z / spread)


class IsDouble(Honest):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z).double()


class TakesQueryLabels(Plain):
    def forward(self, support_x, support_y, query_x, query_y=None):
        return super().forward(support_x, support_y, query_x)


class ClassifiesWithQueryLabels(Honest):
    def classify(self, support_z, support_y, query_z, query_y=None):
        return super().classify(support_z, support_y, query_z)


class AdaptsOutsideFeatureSpace(Honest):
    def forward(self, support_x, support_y, query_x):
        return super().forward(support_x - support_x.mean((1, 2), keepdim=True), support_y, query_x)


class EmbedsTogether(Honest):
    transductive = True

    def embed(self, x):
        z = super().embed(x)
        return z - z.mean(0)


class EmbedsAsMaps(Honest):
    def embed(self, x):
        return super().embed(x).unsqueeze(-1)


class KeepsStateOutside(Honest):
    count = itertools.count()

    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.direction = torch.rand(backbone.out_features)

    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z * self.direction, support_y, query_z * self.direction)


class SavesWhatIsNoTensor(Honest):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass


class StepsAtRandom(Honest):
    generator = torch.Generator().manual_seed(0)

    def loss(self, task):
        return super().loss(task) * (1 + torch.rand((), generator=self.generator))


class ClimbsTheLoss(Honest):
    def loss(self, task):
        return -super().loss(task)


class StandsStill(Honest):
    def loss(self, task):
        return 0 * super().loss(task)


class Raises(Honest):
    def classify(self, support_z, support_y, query_z):
        raise KeyError("weights")


class SharesAnOption(Honest):
    @dataclass(frozen=True)
    class Config(metazoo.Config):
        lr: float = 0.1


class CannotBeRead(Honest):
    @dataclass(frozen=True)
    class Config(metazoo.Config):
        rates: tuple[float, ...] = (0.1,)


class HasAForeignRecipe(Honest):
    recipe = {"epochs": 3}


class DrawsNothing(Honest):
    draws: Any = "tasks"


class SaysMaybe(Honest):
    transductive = None


class CannotRegress(Plain):
    def __init__(self, backbone, spec, config=None):
        if spec.regression:
            raise metazoo.OptionError("this one classifies")
        super().__init__(backbone, spec, config)


@pytest.mark.parametrize(
    ("liar", "breach"),
    [
        (UsesOtherQueries, "the other queries are taken away"),
        (UsesTheQueriesBefore, "the other queries are taken away"),
        (UsesTheQueriesBehind, "the other queries are taken away"),
        (UsesTheNumberOfQueries, "the other queries are taken away"),
        (UsesTheNextQuery, "the other queries are"),
        (UsesBatchStatistics, "changed backbone.blocks"),
        (MixesTasks, "stands in a batch with others"),
        (AnswersTheFirstTask, "stands in a batch with others"),
        (IgnoresAParameter, "no gradient reaches idle"),
        (CutsTheGraph, "`loss` has no gradient"),
        (HasInfiniteGradients, "the gradient of backbone.* is not finite"),
        (ReturnsManyLosses, "`loss` did not return a tensor of one number"),
        (LossIsNotFinite, "`loss` is inf"),
        (DrawsAtRandom, "differently the second time"),
        (RemembersWhatItSaw, "changed calls"),
        (LeavesGradients, "left a gradient in backbone"),
        (NeedsGradientsOn, r"differently under torch\.no_grad"),
        (HasNoWays, r"returned the shape \(1, 2\), not \(1, 2, 2\)"),
        (HasTheWrongWays, r"returned the shape \(1, 2, 3\), not \(1, 2, 2\)"),
        (HasAHeadOfItsTrainingWays, "built for 5 ways and asked for 3"),
        (AssumesEqualShots, "not finite"),
        (DividesByZero, "not finite"),
        (IsDouble, r"returned torch\.float64"),
        (TakesQueryLabels, r"takes \(support_x, support_y, query_x, query_y\)"),
        (ClassifiesWithQueryLabels, r"takes \(support_z, support_y, query_z, query_y\)"),
        (AdaptsOutsideFeatureSpace, "`forward` is not `classify`"),
        (EmbedsTogether, "stands in a batch with others|does not treat each example by itself"),
        (EmbedsAsMaps, r"raised|not \(N, D\)"),
        (KeepsStateOutside, "what answers depend on must be a parameter or a buffer"),
        (SavesWhatIsNoTensor, "holds _extra_state, which is no tensor"),
        (StepsAtRandom, "the same training steps from the same seed"),
        (ClimbsTheLoss, "not down"),
        (StandsStill, "not down"),
        (Raises, "raised KeyError where this was checked: Logits are finite .* It said: 'weights'"),
        (SharesAnOption, "field 'lr' .* has the name of a training option"),
        (CannotBeRead, "field 'rates'"),
        (HasAForeignRecipe, "no option 'epochs'"),
        (DrawsNothing, "`draws` is 'tasks'"),
        (SaysMaybe, "`transductive` is None"),
        (dict, "not a subclass of metazoo.Algorithm"),
    ],
)
def test_every_liar_is_caught(liar: Any, breach: str) -> None:
    with pytest.raises(AssertionError, match=breach) as caught:
        check_algorithm(liar)
    assert f"'{liar.__qualname__}'" in str(caught.value)


def test_regression_is_checked_where_it_is_claimed() -> None:
    class SaysSo(CannotRegress):
        regresses = False

    check_algorithm(SaysSo)
    with pytest.raises(AssertionError, match="this one classifies"):
        check_algorithm(CannotRegress)


def test_options_are_checked() -> None:
    with pytest.raises(AssertionError, match="no option 'scail'"):
        check_algorithm(Honest, {"scail": 2.0})


def test_it_needs_no_test_framework() -> None:
    program = "import sys; import metazoo.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
