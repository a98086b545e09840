"""The conformance suite passes correct algorithms and finds every planted mistake."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from learners import Correct, Plain
from torch import nn

import metazoo
from metazoo.plugins.registry import registry
from metazoo.testing.check import Check, algorithm_checks, check_algorithm


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
def test_algorithms_with_test_time_augmentation_conform(name: str, others: dict[str, Any]) -> None:
    check_algorithm(name, {"tta": "shifted", **others})


def test_correct_algorithms_pass() -> None:
    check_algorithm(Correct)
    check_algorithm(Correct, {"scale": 0.5})
    check_algorithm(Plain)
    check_algorithm(TrainsOnBatches)


def test_an_algorithm_that_declares_itself_transductive_passes() -> None:
    class Declared(UsesOtherQueries):
        transductive = True

    check_algorithm(Declared)


def test_the_state_of_torch_is_restored() -> None:
    torch.manual_seed(5)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        check_algorithm(Correct)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


class UsesOtherQueries(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z - query_z.mean(1, keepdim=True))


class UsesTheQueriesBefore(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z.cumsum(1))


class UsesTheQueriesAfter(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z.flip(1).cumsum(1).flip(1))


class UsesTheNumberOfQueries(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z) / query_z.shape[1]


class UsesTheNextQuery(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z + 0.1 * query_z.roll(1, 1))


class UsesBatchStatistics(Plain):
    def train(self, mode=True):
        return super().train(True)


class MixesTasks(Correct):
    def classify(self, support_z, support_y, query_z):
        scale = 1 + support_z.abs().mean((0, 1))
        return super().classify(support_z / scale, support_y, query_z / scale)


class AnswersOnlyTheFirstTask(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(
            support_z[:1].expand_as(support_z), support_y[:1].expand_as(support_y), query_z
        )


class IgnoresAParameter(Correct):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.idle = nn.Parameter(torch.zeros(3))


class CutsTheGraph(Correct):
    def loss(self, task):
        return super().loss(task).detach()


class HasInfiniteGradients(Correct):
    def loss(self, task):
        return (
            super().loss(task)
            + (self(task.support_x, task.support_y, task.query_x) * 0).abs().sqrt().sum()
        )


class ReturnsManyLosses(Correct):
    def loss(self, task):
        return self(task.support_x, task.support_y, task.query_x).mean(-1)


class ReturnsAnInfiniteLoss(Correct):
    def loss(self, task):
        return super().loss(task) / 0


class DrawsAtRandom(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z) * (1 + 0.01 * torch.rand(()))


class CountsItsCalls(Correct):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.register_buffer("calls", torch.tensor(0))

    def classify(self, support_z, support_y, query_z):
        self.calls += 1
        return super().classify(support_z, support_y, query_z)


class LeavesGradients(Correct):
    def forward(self, support_x, support_y, query_x):
        with torch.enable_grad():
            super().forward(support_x, support_y, support_x).sum().backward()
        return super().forward(support_x, support_y, query_x)


class DependsOnGradMode(Correct):
    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z)
        return logits if torch.is_grad_enabled() else logits + 1


class ReturnsLabels(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z).argmax(-1)


class ReturnsOneWayTooMany(Correct):
    def classify(self, support_z, support_y, query_z):
        return nn.functional.pad(super().classify(support_z, support_y, query_z), (0, 1))


class AnswersWithItsTrainingWays(Correct):
    def classify(self, support_z, support_y, query_z):
        logits = super().classify(support_z, support_y, query_z)
        return nn.functional.pad(logits, (0, self.spec.outputs - logits.shape[-1]))


class AssumesEqualShots(Correct):
    def classify(self, support_z, support_y, query_z):
        means = support_z.unflatten(1, (metazoo.ways_of(support_y), -1)).mean(2)
        means[:, 1:] += 0 * support_y[:, :1, None].sub(support_y.min()).div(
            support_y[:, :1, None].sub(support_y.min())
        )
        return -metazoo.ops.pairwise_sqdist(query_z, means)


class DividesByZero(Correct):
    def classify(self, support_z, support_y, query_z):
        spread = support_z[:, support_y[0] == 0].std(1, keepdim=True, correction=0)
        return super().classify(support_z / spread, support_y, query_z / spread)


class IsDouble(Correct):
    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z, support_y, query_z).double()


class TakesQueryLabels(Plain):
    def forward(self, support_x, support_y, query_x, query_y=None):
        return super().forward(support_x, support_y, query_x)


class ClassifiesWithQueryLabels(Correct):
    def classify(self, support_z, support_y, query_z, query_y=None):
        return super().classify(support_z, support_y, query_z)


class AdaptsOutsideFeatureSpace(Correct):
    def forward(self, support_x, support_y, query_x):
        return super().forward(support_x - support_x.mean((1, 2), keepdim=True), support_y, query_x)


class EmbedsExamplesJointly(Correct):
    transductive = True

    def embed(self, x):
        z = super().embed(x)
        return z - z.mean(0)


class EmbedsAsMaps(Correct):
    def embed(self, x):
        return super().embed(x).unsqueeze(-1)


class KeepsStateOutside(Correct):
    count = itertools.count()

    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.direction = torch.rand(backbone.out_features)

    def classify(self, support_z, support_y, query_z):
        return super().classify(support_z * self.direction, support_y, query_z * self.direction)


class SavesMoreThanTensors(Correct):
    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass


class TrainsAtRandom(Correct):
    generator = torch.Generator().manual_seed(0)

    def loss(self, task):
        return super().loss(task) * (1 + torch.rand((), generator=self.generator))


class ClimbsTheLoss(Correct):
    def loss(self, task):
        return -super().loss(task)


class DoesNotLearn(Correct):
    def loss(self, task):
        return 0 * super().loss(task)


class Raises(Correct):
    def classify(self, support_z, support_y, query_z):
        raise KeyError("weights")


class TakesTheNameOfATrainingOption(Correct):
    @dataclass(frozen=True)
    class Config(metazoo.Config):
        lr: float = 0.1


class HasAnOptionOfUnknownType(Correct):
    @dataclass(frozen=True)
    class Config(metazoo.Config):
        rates: tuple[float, ...] = (0.1,)


class HasAnUnknownRecipeOption(Correct):
    recipe = {"epochs": 3}


class HasNoBatchLoss(Correct, metazoo.BatchLearner):
    pass


class TrainsOnBatches(Correct, metazoo.BatchLearner):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        self.classifier = nn.Linear(backbone.out_features, spec.classes)

    def batch_loss(self, batch):
        return metazoo.task_loss(self.classifier(self.embed(batch.x)), batch.y)


class TakesBatchesForTasks(TrainsOnBatches):
    def batch_loss(self, batch):
        return super().loss(batch)


class IsMaybeTransductive(Correct):
    transductive = None


class CannotRegress(Plain):
    def __init__(self, backbone, spec, config=None):
        if spec.regression:
            raise metazoo.OptionError("this one classifies")
        super().__init__(backbone, spec, config)


@pytest.mark.parametrize(
    ("mistaken", "message"),
    [
        (UsesOtherQueries, "when the other queries are replaced"),
        (UsesTheQueriesBefore, "when the other queries are replaced"),
        (UsesTheQueriesAfter, "when the other queries are replaced"),
        (UsesTheNumberOfQueries, "when the other queries are removed"),
        (UsesTheNextQuery, "when the other queries are replaced"),
        (UsesBatchStatistics, "changed backbone.blocks"),
        (MixesTasks, "when other tasks are in the batch"),
        (AnswersOnlyTheFirstTask, "when other tasks are in the batch"),
        (IgnoresAParameter, "no gradient reaches idle"),
        (CutsTheGraph, "`loss` has no gradient"),
        (HasInfiniteGradients, "the gradient of backbone.* is NaN or infinite"),
        (ReturnsManyLosses, "`loss` must return a scalar tensor"),
        (ReturnsAnInfiniteLoss, "`loss` returned inf"),
        (DrawsAtRandom, "draw random numbers from a generator with a fixed seed"),
        (CountsItsCalls, "changed calls"),
        (LeavesGradients, "left a gradient in backbone"),
        (DependsOnGradMode, r"differently under torch\.no_grad"),
        (ReturnsLabels, r"returned the shape \(1, 2\), not \(1, 2, 2\)"),
        (ReturnsOneWayTooMany, r"returned the shape \(1, 2, 3\), not \(1, 2, 2\)"),
        (AnswersWithItsTrainingWays, "built for 5 ways and given 3"),
        (AssumesEqualShots, "returned NaN or infinity"),
        (DividesByZero, "returned NaN or infinity"),
        (IsDouble, r"returned torch\.float64"),
        (TakesQueryLabels, r"takes \(support_x, support_y, query_x, query_y\)"),
        (ClassifiesWithQueryLabels, r"takes \(support_z, support_y, query_z, query_y\)"),
        (AdaptsOutsideFeatureSpace, "`forward` is not `classify`"),
        (
            EmbedsExamplesJointly,
            "when other tasks are in the batch|must treat each example independently",
        ),
        (EmbedsAsMaps, r"raised|not \(N, D\)"),
        (KeepsStateOutside, "everything that answers depend on must be a parameter or a buffer"),
        (SavesMoreThanTensors, "holds _extra_state, which is not a tensor"),
        (TrainsAtRandom, "two trainings with the same seed give different values"),
        (ClimbsTheLoss, "loss did not fall"),
        (DoesNotLearn, "loss did not fall"),
        (Raises, "raised KeyError: 'weights'\n.* in the check `returns_logits`: Logits are finite"),
        (TakesTheNameOfATrainingOption, "field 'lr' .* is also a training option"),
        (HasAnOptionOfUnknownType, "field 'rates'"),
        (HasAnUnknownRecipeOption, "no option 'epochs'"),
        (HasNoBatchLoss, "raised NotImplementedError"),
        (TakesBatchesForTasks, "raised AttributeError: 'Batch' object has no attribute"),
        (IsMaybeTransductive, "`transductive` is None"),
        (dict, "not a subclass of metazoo.Algorithm"),
    ],
)
def test_every_mistake_is_found(mistaken: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_algorithm(mistaken)
    assert f"'{mistaken.__qualname__}'" in str(caught.value)


def test_regression_is_checked_if_it_is_supported() -> None:
    class OnlyClassifies(CannotRegress):
        supports_regression = False

    check_algorithm(OnlyClassifies)
    with pytest.raises(AssertionError, match="this one classifies"):
        check_algorithm(CannotRegress)


def test_options_are_checked() -> None:
    with pytest.raises(AssertionError, match="no option 'scail'"):
        check_algorithm(Correct, {"scail": 2.0})


class TrainsNothing(Correct):
    """Nearest class mean of fixed features."""

    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone.requires_grad_(False), spec, config)


def test_an_algorithm_with_nothing_to_train_passes() -> None:
    check_algorithm(TrainsNothing)


CHECKS = algorithm_checks(Plain)


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_can_be_a_test(check: Check, request: pytest.FixtureRequest) -> None:
    check()
    assert request.node.name == f"test_each_check_can_be_a_test[{check.name}]"


def test_checks_have_different_names() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names) > 30
    assert {"separates_queries", "separates_queries-regression"} <= set(names)


def test_a_check_that_fails_does_not_hide_the_others() -> None:
    failed = set()
    for check in algorithm_checks(CountsItsCalls):
        try:
            check()
        except AssertionError:
            failed.add(check.name)
    assert failed == {"evaluates_without_side_effects"}


class Embedding(metazoo.Backbone):
    """The mean of the embeddings of token ids."""

    def __init__(self, input_shape, config=None):
        super().__init__(input_shape, config)
        self.out_features = 16
        self.table = nn.Embedding(50, 16)

    def forward(self, x):
        return self.table(x).mean(1)


class NotTwice(Embedding):
    """torch has no second derivative of this operation."""

    def forward(self, x):
        return nn.functional.embedding_bag(x, self.table.weight)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return 3 * slope * ctx.saved_tensors[0] ** 2


class NotTwiceSilently(Embedding):
    """torch.autograd.grad leaves out its second derivative without an error."""

    def forward(self, x):
        return Cube.apply(super().forward(x))


TOKENS = torch.randint(50, (40, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["protonet", "matching", "maml"])
def test_examples_may_be_integers(name: str) -> None:
    check_algorithm(
        name, {"tasks": "loop"} if name == "maml" else {}, backbone=Embedding, examples=TOKENS
    )


@pytest.mark.parametrize("backbone", [NotTwice, NotTwiceSilently])
def test_a_backbone_without_a_second_derivative_is_named(backbone: Any) -> None:
    words = f"backbone {backbone.__name__} has no second derivative, which this algorithm needs"
    with pytest.raises(AssertionError, match=words):
        check_algorithm("maml", {"tasks": "loop"}, backbone=backbone, examples=TOKENS)
    first_order = {"tasks": "loop", "first_order": True}
    check_algorithm("maml", first_order, backbone=backbone, examples=TOKENS)


def test_an_algorithm_is_checked_with_a_registered_backbone() -> None:
    check_algorithm(Correct, backbone="mlp")


def test_it_does_not_import_pytest() -> None:
    program = "import sys; import metazoo.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
