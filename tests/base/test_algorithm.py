"""The contract of algorithms and the functions that they use."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import metazoo
from metazoo import options
from metazoo.backbones.conv4 import Conv4
from metazoo.backbones.mlp import MLP


class Nearest(metazoo.FeatureLearner):
    """The smallest feature learner there is."""

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        return -metazoo.ops.pairwise_sqdist(query_z, metazoo.class_means(support_z, support_y))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def nearest() -> Nearest:
    torch.manual_seed(0)
    return Nearest(Conv4((1, 16, 16), Conv4.Config(width=8)), metazoo.TaskSpec((1, 16, 16), 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y, q: (x, y[0], q),
        lambda x, y, q: (x, y, q[0]),
        lambda x, y, q: (x, y[:, 1:], q),
        lambda x, y, q: (x, y, q[1:]),
        lambda x, y, q: (x, y, q[..., 1:]),
        lambda x, y, q: (x[..., 1:], y, q[..., 1:]),
        lambda x, y, q: (x, y.unsqueeze(2), q),
    ],
)
def test_wrong_shapes_are_refused_with_the_shapes_given(
    change: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> None:
    given = change(images(2, 6), UNEQUAL, images(2, 4))
    with pytest.raises(metazoo.DataError) as caught:
        nearest()(*given)
    assert (
        "(B, S, 1, 16, 16), support_y (B, S) and query_x (B, Q, 1, 16, 16)" in caught.value.message
    )
    assert all(str(tuple(x.shape)) in caught.value.message for x in given)
    assert "support_y one label per support example" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            lambda x, y, q: (x, y + 1, q),
            "support_y has a class without an example",
            "0, 1, ..., N - 1",
        ),
        (
            lambda x, y, q: (x, y - 1, q),
            "support_y has a class without an example",
            "0, 1, ..., N - 1",
        ),
        (
            lambda x, y, q: (x, 2 * y, q),
            "support_y has a class without an example",
            "0, 1, ..., N - 1",
        ),
        (
            lambda x, y, q: (x, y.clamp(max=torch.tensor([[2], [1]])), q),
            "has a class without an example",
            "have the same N",
        ),
        (lambda x, y, q: (x, y + 10**10, q), "has a class without an example", "0, 1, ..., N - 1"),
        (
            lambda x, y, q: (x, y + 2**63 - 3, q),
            "has a class without an example",
            "0, 1, ..., N - 1",
        ),
        (
            lambda x, y, q: (x[:, :0], y[:, :0], q),
            "has a class without an example",
            "0, 1, ..., N - 1",
        ),
        (lambda x, y, q: (x, y.float(), q), r"support_y is torch\.float32", "int64"),
        (lambda x, y, q: (x, y.int(), q), r"support_y is torch\.int32", r"y\.long"),
        (lambda x, y, q: ((255 * x).byte(), y, q), "support_x is uint8", "255"),
        (lambda x, y, q: (x, y, (255 * q).byte()), "query_x is uint8", "255"),
        (lambda x, y, q: (x, y.tolist(), q), "support_y is a list, not a tensor", "as_tensor"),
        (lambda x, y, q: (x, y, q.numpy()), "query_x is a ndarray, not a tensor", "as_tensor"),
    ],
)
def test_wrong_labels_and_types_are_refused(
    change: Callable[..., tuple[Any, Any, Any]], message: str, hint: str
) -> None:
    with pytest.raises(metazoo.DataError, match=message) as caught:
        nearest()(*change(images(2, 6), UNEQUAL, images(2, 4)))
    assert re.search(hint, str(caught.value.hint))


def test_the_hint_for_a_missing_task_dimension_says_how_to_add_it() -> None:
    x, y, q = images(6), UNEQUAL[0], images(4)
    with pytest.raises(metazoo.DataError, match="for a single task pass support_x"):
        nearest()(x, y, q)
    assert nearest()(x[None], y[None], q[None]).shape == (1, 4, 3)


class Sum(metazoo.Algorithm):
    """Returns the sum of the query and the mean of the support labels; reads no single label."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return support_y.float().flatten(1).mean(1)[:, None, None] + query_x.flatten(2)


def test_a_regressor_takes_targets_of_three_dimensions() -> None:
    line = Sum(MLP((1,)), metazoo.TaskSpec((1,), 1, regression=True))
    x, y, q = torch.zeros(2, 3, 1), torch.ones(2, 3, 1), torch.full((2, 5, 1), 2.0)
    assert torch.equal(line(x, y, q), torch.full((2, 5, 1), 3.0))
    with pytest.raises(metazoo.DataError, match=r"support_y \(B, S, D\)"):
        line(x, y[..., 0], q)


def test_only_shapes_are_checked_where_labels_cannot_be_read() -> None:
    """Under vmap, in torch.compile and on the device "meta"."""
    model = Sum(MLP((4,)), metazoo.TaskSpec([4], 3))  # type: ignore[arg-type]
    x, y, q = torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.ones(2, 5, 4)
    each = torch.func.vmap(lambda x, y, q: model(x[None], y[None], q[None])[0])
    assert torch.equal(each(x, y, q), model(x, y, q))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, y, q), model(x, y, q))
    assert model(*(t.to("meta") for t in (x, y, q))).shape == (2, 5, 4)


UNEQUAL = torch.tensor([[0, 1, 2, 0, 2, 0], [2, 1, 1, 0, 1, 1]])


def test_class_means_with_unequal_shots_in_any_order() -> None:
    z = torch.randn(
        2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    means = metazoo.class_means(z, UNEQUAL)
    assert means.shape == (2, 3, 4)
    for b in range(2):
        for k in range(3):
            rows = [s for s in range(6) if UNEQUAL[b, s] == k]
            torch.testing.assert_close(means[b, k], sum(z[b, s] for s in rows) / len(rows))
    assert torch.autograd.gradcheck(lambda z: metazoo.class_means(z, UNEQUAL), z)


def test_task_loss_of_labels_is_the_mean_cross_entropy() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, 3, 2], [1, 1, 3]])
    terms = [
        -math.log(math.exp(logits[b, q, target[b, q]]) / sum(math.exp(v) for v in logits[b, q]))
        for b in range(2)
        for q in range(3)
    ]
    assert metazoo.task_loss(logits, target).item() == pytest.approx(sum(terms) / 6, rel=1e-9)
    assert metazoo.task_loss(logits[0], target[0]).item() == pytest.approx(
        sum(terms[:3]) / 3, rel=1e-9
    )


def test_task_loss_of_numbers_is_the_mean_squared_error() -> None:
    prediction, target = (
        torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]),
        torch.tensor([[[1.0], [4.0]], [[0.0], [5.0]]]),
    )
    assert metazoo.task_loss(prediction, target).item() == pytest.approx((0 + 4 + 9 + 1) / 4)


def test_tasks_of_a_meta_batch_do_not_share_statistics_in_training() -> None:
    model = nearest().train()
    episode = metazoo.Episode(
        images(2, 6), UNEQUAL, images(2, 4, seed=1), torch.tensor([[0, 1, 2, 0], [1, 0, 2, 2]])
    )
    parts = [
        metazoo.Episode(
            *(
                t[i : i + 1]
                for t in (episode.support_x, episode.support_y, episode.query_x, episode.query_y)
            )
        )
        for i in range(2)
    ]
    torch.testing.assert_close(
        model.loss(episode), torch.stack([model.loss(part) for part in parts]).mean()
    )


def test_default_loss_is_the_task_loss_of_the_queries() -> None:
    model = nearest()
    episode = metazoo.Episode(
        images(2, 6), UNEQUAL, images(2, 4, seed=1), torch.tensor([[0, 1, 2, 0], [1, 0, 2, 2]])
    )
    expected = metazoo.task_loss(
        model(episode.support_x, episode.support_y, episode.query_x), episode.query_y
    )
    assert torch.equal(model.loss(episode), expected)


@torch.no_grad()
def test_feature_learner_forward_is_classify_of_embed_in_eval_mode() -> None:
    model = nearest()
    support, query = images(2, 6), images(2, 4, seed=1)
    model(support, UNEQUAL, query)  # moves BatchNorm's running statistics away from their start
    model.eval()
    support_z = torch.stack([torch.cat([model.embed(x[None]) for x in task]) for task in support])
    query_z = torch.stack([torch.cat([model.embed(x[None]) for x in task]) for task in query])
    expected = model.classify(support_z, UNEQUAL, query_z)
    torch.testing.assert_close(model(support, UNEQUAL, query), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_feature_learner_in_training_normalises_support_and_queries_together() -> None:
    model = nearest()
    support, query = images(1, 6), images(1, 4, seed=1)
    support_z, query_z = model.embed_both(support, query)
    together = model.embed(torch.cat([support.flatten(0, 1), query.flatten(0, 1)]))
    torch.testing.assert_close(
        torch.cat([support_z.flatten(0, 1), query_z.flatten(0, 1)]), together
    )
    assert not torch.allclose(
        model.embed(support.flatten(0, 1)), support_z.flatten(0, 1), atol=1e-3
    )


@torch.no_grad()
def test_a_feature_learner_accepts_zero_queries() -> None:
    assert nearest().eval()(images(2, 6), UNEQUAL, images(2, 0)).shape == (2, 0, 3)


def test_the_default_config_is_that_of_the_class() -> None:
    class Config(metazoo.Config):
        pass

    backbone, spec = MLP((1,)), metazoo.TaskSpec((1,), 1)
    config = Config()
    assert metazoo.Algorithm(backbone, spec, config).config is config
    assert type(metazoo.Algorithm(backbone, spec).config) is metazoo.Algorithm.Config


def test_an_algorithm_is_inductive_and_trains_on_episodes_by_default() -> None:
    model = nearest()
    assert model.transductive is False
    assert not isinstance(model, metazoo.BatchLearner)


def test_every_option_of_the_recipe_has_help() -> None:
    declared = options.read(metazoo.Recipe)
    assert [option.name for option in declared if not option.help] == []
    by_name = {option.name: option for option in declared}
    assert by_name["train_ways"].optional
    assert by_name["train_ways"].parse("none") is None
    assert by_name["train_ways"].parse("20") == 20
    assert {"constant", "cosine"} < set(by_name["schedule"].choices)
    with pytest.raises(metazoo.OptionError, match="'ways'"):
        by_name["ways"].parse("1")


class Named(Nearest):
    """Nearest class mean, in which a class's name is one more example."""

    uses_names = True

    def classify_named(
        self, support_z: Tensor, support_y: Tensor, query_z: Tensor, names_z: Tensor
    ) -> Tensor:
        labels = torch.arange(names_z.shape[1]).expand(len(names_z), -1)
        return self.classify(
            torch.cat([support_z, names_z], 1), torch.cat([support_y, labels], 1), query_z
        )


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_leave_one_out_refits_without_each_example(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metazoo.base.algorithm.LEFT_OUT_AT_ONCE", at_once)
    z, y = features(2, 7), torch.tensor([[0, 1, 1, 0, 2, 1, 0], [2, 1, 0, 0, 1, 1, 0]])
    logits = nearest().leave_one_out(z, y)
    assert logits.shape == (2, 7, 3)
    for task in range(2):
        for i in range(7):
            rest = [j for j in range(7) if j != i]
            if (y[task] == y[task, i]).sum() == 1:
                assert logits[task, i].isnan().all()
            else:
                alone = nearest().classify(
                    z[task : task + 1, rest], y[task : task + 1, rest], z[task, None, i, None]
                )
                torch.testing.assert_close(logits[task, i], alone[0, 0])


def test_leave_one_out_of_one_example_a_class_is_nan() -> None:
    logits = nearest().leave_one_out(features(1, 3), torch.tensor([[2, 0, 1]]))
    assert logits.shape == (1, 3, 3)
    assert logits.isnan().all()


def test_a_head_is_fitted_once_for_many_queries() -> None:
    z, y, queries = features(1, 5), torch.tensor([[0, 1, 1, 0, 2]]), features(1, 4, seed=1)
    learner = nearest()
    assert torch.equal(learner.head(z, y)(queries), learner.classify(z, y, queries))
    model = Named(MLP((6,)), metazoo.TaskSpec((6,), 3))
    names = features(1, 3, seed=2)
    assert torch.equal(model.head(z, y, names)(queries), model.classify_named(z, y, queries, names))


def test_leave_one_out_with_names_needs_one_example_of_a_class() -> None:
    model = Named(MLP((6,)), metazoo.TaskSpec((6,), 3))
    z, y, names = features(1, 3), torch.tensor([[0, 2, 2]]), features(1, 3, seed=1)
    logits = model.leave_one_out(z, y, names)
    assert logits.isfinite().all()
    without = model.classify_named(z[:, 1:], y[:, 1:], z[:, :1], names)
    torch.testing.assert_close(logits[:, 0], without[:, 0])
