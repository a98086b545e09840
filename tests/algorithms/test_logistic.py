"""Logistic regression against scikit-learn's, and names of classes as evidence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import metazoo
from metazoo.algorithms.logistic import PENALTIES, Logistic, Task, parts, pose, standardize
from metazoo.backbones.mlp import MLP

WAYS, D = 4, 24
UNEQUAL = torch.tensor([[0, 1, 2, 3, 0, 2, 0, 2, 0], [3, 1, 1, 0, 2, 1, 1, 2, 3]])


def build(**options: float | None) -> Logistic:
    backbone = MLP((6,), MLP.Config(width=D, depth=1))
    return Logistic(backbone, metazoo.TaskSpec((6,), WAYS), Logistic.Config(**options)).eval()


def randn(*shape: int, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=noise)


def clusters(shots: int, noise: float, seed: int = 0) -> tuple[Tensor, ...]:
    """Return 10 tasks: support, labels, queries, their labels, and names far from all of them."""
    centres = randn(10, WAYS, D, seed=seed)
    y = torch.arange(WAYS).repeat_interleave(shots).expand(10, -1)
    query_y = torch.arange(WAYS).repeat_interleave(20).expand(10, -1)
    support, query = (
        centres.gather(1, labels[..., None].expand(-1, -1, D))
        + noise * randn(10, labels.shape[1], D, seed=seed + i)
        for i, labels in ((1, y), (2, query_y))
    )
    names = centres + 0.5 * noise * randn(10, WAYS, D, seed=seed + 3) + 5 * randn(D, seed=seed + 4)
    return support + 1, y, query + 1, query_y, names


def accuracy(logits: Tensor, y: Tensor) -> float:
    return (logits.argmax(-1) == y).double().mean().item()


def reference(
    task: Task, b: int, penalty: float, rows: Tensor, name_weight: float | None
) -> object:
    """scikit-learn's logistic regression on some support examples of a task, and on the names."""
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, y = task.z[b][rows], task.y[b][rows]
    weight = torch.ones(len(y))
    if name_weight is not None:
        x = torch.cat([x, task.names[b]])
        y = torch.cat([y, torch.arange(WAYS)])
        weight = torch.cat([weight, torch.full((WAYS,), name_weight)])
    model = sklearn.LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=10_000)
    return model.fit(x.numpy(), y.numpy(), sample_weight=weight.numpy())


@pytest.mark.parametrize("penalty", [3.0, 0.1, 0.01])
@pytest.mark.parametrize("name_weight", [None, 0.5])
def test_the_optimum_is_that_of_scikit_learn(penalty: float, name_weight: float | None) -> None:
    model = build(penalty=penalty, name_weight=name_weight)
    support, query, names = randn(2, 9, D) + 0.3, randn(2, 5, D, seed=1), randn(2, WAYS, D, seed=2)
    if name_weight is None:
        logits = model.classify(support, UNEQUAL, query)
        task = standardize(support, UNEQUAL, None)
    else:
        logits = model.classify_named(support, UNEQUAL, query, names)
        task = standardize(support, UNEQUAL, names)
    for b in range(2):
        sklearn = reference(task, b, penalty, torch.arange(9), name_weight)
        expected = sklearn.decision_function(task.scaled(query)[b].numpy())  # type: ignore[attr-defined]
        # The constant over the classes is arbitrary.
        centred = logits[b] - logits[b].mean(-1, keepdim=True)
        torch.testing.assert_close(centred, torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


def test_standardized_features() -> None:
    task = standardize(3 * randn(2, 9, D) + 1, UNEQUAL, randn(2, WAYS, D, seed=1) - 2)
    means = metazoo.class_means(task.z, task.y)
    for z in (means, task.names):
        torch.testing.assert_close(z.mean(1), torch.zeros(2, D, dtype=torch.float64))
    for z in (task.z, task.names):
        torch.testing.assert_close(z.square().sum(-1).mean(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name_weight", [None, 1.0])
def test_leave_one_out_is_refitting(name_weight: float | None) -> None:
    model = build(penalty=0.1, name_weight=name_weight)
    support, names = (
        randn(2, 9, D) + 0.3,
        None if name_weight is None else randn(2, WAYS, D, seed=2),
    )
    logits = model.leave_one_out(support, UNEQUAL, names)
    task = standardize(support, UNEQUAL, names)
    alone = task.alone() if names is None else torch.zeros_like(UNEQUAL, dtype=torch.bool)
    assert torch.equal(logits.isnan().any(-1), alone)
    part = parts(task, alone)
    for b, i in (~alone).nonzero().tolist():
        others = (part[b] != part[b, i]).nonzero()[:, 0]
        sklearn = reference(task, b, 0.1, others, name_weight)
        expected = sklearn.decision_function(task.z[b, i : i + 1].numpy())[0]  # type: ignore[attr-defined]
        centred = logits[b, i] - logits[b, i].mean()
        torch.testing.assert_close(centred, torch.from_numpy(expected), rtol=0.02, atol=0.02)


def test_parts_share_every_class_and_ignore_the_order() -> None:
    y = torch.tensor([[0] * 25 + [1] * 3 + [2]])
    task = standardize(randn(1, 29, D), y, None)
    part = parts(task, task.alone())
    assert part[0, :25].bincount().tolist() == [3] * 5 + [2] * 5
    assert sorted(part[0, 25:28].tolist()) == [0, 1, 2]
    assert part[0, 28] == -1
    order = torch.randperm(29, generator=torch.Generator().manual_seed(0))
    moved = task._replace(z=task.z[:, order], y=y[:, order], member=task.member[:, order])
    assert torch.equal(parts(moved, moved.alone()), part[:, order])


def test_the_penalty_grows_with_the_noise() -> None:
    model, penalties = build(), []
    for noise in (0.3, 3.0):
        support, y, *_ = clusters(10, noise)
        task = standardize(support, y, None)
        weight = torch.zeros(10, dtype=torch.float64)
        penalties.append(model._penalty(task, weight, pose(task, weight)))
    assert penalties[0].mean() < 0.8 * penalties[1].mean()
    assert all(((p >= min(PENALTIES)) & (p <= max(PENALTIES))).all() for p in penalties)


def test_a_chosen_penalty_beats_a_wrong_one() -> None:
    support, y, query, query_y, _ = clusters(5, 1.5)
    chosen = accuracy(build().classify(support, y, query), query_y)
    fixed = [accuracy(build(penalty=p).classify(support, y, query), query_y) for p in PENALTIES]
    assert chosen > max(fixed) - 0.02


@pytest.mark.parametrize("shots", [1, 5])
def test_names_help_and_shuffled_names_do_not_matter(shots: int) -> None:
    support, y, query, query_y, names = clusters(shots, 1.5)
    model = build()
    without = model.classify(support, y, query)
    named = model.classify_named(support, y, query, names)
    assert accuracy(named, query_y) > accuracy(without, query_y) + (0.05 if shots == 1 else 0)
    shuffled = model.classify_named(support, y, query, names.roll(1, 1))
    assert accuracy(shuffled, query_y) > accuracy(without, query_y) - 0.01
    forced = build(name_weight=1.0).classify_named(support, y, query, names.roll(1, 1))
    assert accuracy(forced, query_y) < accuracy(shuffled, query_y) - 0.05


def test_names_of_one_weight_count_as_examples() -> None:
    support, y, query, _, names = clusters(2, 1.0)
    as_names = build(penalty=0.1, name_weight=1.0).classify_named(support, y, query, names)
    never = build(penalty=0.1, name_weight=0.0).classify_named(support, y, query, names)
    without = build(penalty=0.1).classify(support, y, query)
    torch.testing.assert_close(never, without, rtol=1e-4, atol=1e-4)
    assert (as_names - without).abs().max() > 0.1


def test_no_examples_at_all() -> None:
    _, _, query, query_y, names = clusters(1, 0.5)
    empty = query[:, :0]
    logits = build().classify_named(empty, query_y[:, :0], query, names)
    # The queries' own centre is unknown, so classes are preferred for no reason.
    assert logits.shape == (10, 80, WAYS)
    assert logits.isfinite().all()
    centred = query - query.mean(1, keepdim=True)
    assert accuracy(build().classify_named(empty, query_y[:, :0], centred, names), query_y) > 0.8


def test_a_class_without_examples_is_known_by_its_name() -> None:
    support, y, query, query_y, names = clusters(3, 0.5)
    seen = y[0] < WAYS - 1
    logits = build().classify_named(support[:, seen], y[:, seen], query, names)
    last = query_y[0] == WAYS - 1
    assert accuracy(logits[:, last], query_y[:, last]) > 0.8
    assert build().leave_one_out(support[:, seen], y[:, seen], names).isfinite().all()


def test_leave_one_out_of_one_shot_needs_names() -> None:
    support, y, _, _, names = clusters(1, 0.5)
    model = build()
    assert model.leave_one_out(support, y).isnan().all()
    assert accuracy(model.leave_one_out(support, y, names), y) > 0.8
    assert model.leave_one_out(support, y, names.roll(1, 1)).isnan().all()


@pytest.mark.parametrize("shots", [1, 5])
def test_tasks_and_precision_do_not_matter(shots: int) -> None:
    support, y, query, _, _ = clusters(shots, 1.0)
    model = build()
    exact = model.classify(support, y, query)
    alone = torch.cat(
        [model.classify(*(t[b : b + 1] for t in (support, y, query))) for b in range(10)]
    )
    torch.testing.assert_close(alone, exact, rtol=1e-3, atol=1e-3)
    single = model.classify(support.float(), y, query.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-2, atol=1e-2)
    half = model.classify(support.bfloat16(), y, query.bfloat16())
    assert half.dtype == torch.float32


def test_equal_features_have_finite_answers() -> None:
    same = torch.ones(2, 9, D)
    for name_weight in (None, 1.0):
        model = build(name_weight=name_weight)
        assert model.classify(same, UNEQUAL, same).isfinite().all()
        assert model.classify_named(same, UNEQUAL, same, same[:, :WAYS]).isfinite().all()
        assert model.classify(0 * same, UNEQUAL, same).isfinite().all()


def test_gradients_reach_the_features() -> None:
    support, y, query, query_y, _ = (
        t.requires_grad_(t.is_floating_point()) for t in clusters(2, 1.0)
    )
    F.cross_entropy(build().classify(support, y, query).flatten(0, 1), query_y.flatten()).backward()
    for z in (support, query):
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert z.grad.abs().max() > 0
