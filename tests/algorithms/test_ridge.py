"""Ridge regression against its normal equations and against refitting, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import metazoo
from metazoo.algorithms.ridge import ONE_SHOT_PENALTY, PENALTIES, Ridge
from metazoo.backbones.mlp import MLP
from metazoo.testing import check_algorithm

UNEQUAL = torch.tensor([[0, 1, 2, 0, 2, 0, 0], [2, 1, 1, 0, 1, 1, 2]])
OPTIONS = ({}, {"power": 0.5, "whitening": 5.0}, {"penalty": 0.1, "whitening": 1.0, "rank": 3})


def build(features: int = 5, **options: object) -> Ridge:
    backbone = MLP((6,), MLP.Config(width=features, depth=1))
    config = Ridge.Config(**options)  # type: ignore[arg-type]
    return Ridge(backbone, metazoo.TaskSpec((6,), 3), config).double().eval()


def randn(*shape: int, seed: int = 2) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=noise)


def units(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def naive_scores(
    support: np.ndarray, labels: list[int], query: np.ndarray, penalty: float
) -> np.ndarray:
    """The scores (ways,) of one query (D,) by the normal equations."""
    support, query = units(support), units(query)
    ways = max(labels) + 1
    target = np.eye(ways)[labels]
    system = support.T @ support + penalty * np.eye(support.shape[1])
    scores = query @ np.linalg.solve(system, support.T @ target)
    cosines = [
        support[i] @ support[j]
        for i, first in enumerate(labels)
        for j, second in enumerate(labels)
        if i != j and first == second
    ]
    r = max(0.0, float(np.mean(cosines))) if cosines else 0.0
    counts = [labels.count(k) for k in range(ways)]
    return scores * [(1 + (n - 1) * r + penalty) / n for n in counts]


@pytest.mark.parametrize("features", [5, 40], ids=["more examples", "more features"])
@torch.no_grad()
def test_equals_the_normal_equations(features: int) -> None:
    model = build(features, penalty=0.2)
    support, query = randn(2, 7, features) + 0.3, randn(2, 4, features, seed=3)
    got = model.classify(support, UNEQUAL, query) / model.log_scale.exp()
    expected = [
        [
            naive_scores(support[b].numpy(), UNEQUAL[b].tolist(), query[b, q].numpy(), 0.2)
            for q in range(4)
        ]
        for b in range(2)
    ]
    torch.testing.assert_close(got, torch.tensor(np.array(expected)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.3, 0.0], ids=["similar classes", "unlike classes"])
@pytest.mark.parametrize("features", [5, 40], ids=["more examples", "more features"])
def test_leave_one_out_equals_refitting(features: int, shift: float) -> None:
    model = build(features, penalty=0.2)
    support = randn(2, 7, features) + shift
    got = model.leave_one_out(support, UNEQUAL)
    expected = metazoo.FeatureLearner.leave_one_out(model, support, UNEQUAL)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    alone = torch.tensor([[False, True] + [False] * 5, [False, False, False, True] + [False] * 3])
    assert torch.equal(got.isnan().all(-1), alone)


def test_leave_one_out_keeps_the_penalty_of_the_whole_support_set() -> None:
    y = (torch.arange(12) % 3)[None]
    z = randn(1, 12, 5, seed=5) + torch.eye(5, dtype=torch.float64)[y]
    chosen = naive_choice(z[0].numpy(), y[0].tolist())
    torch.testing.assert_close(
        build().leave_one_out(z, y), build(penalty=chosen).leave_one_out(z, y)
    )


def naive_choice(support: np.ndarray, labels: list[int]) -> float:
    """The penalty with the least squared error of examples that are left out, by refitting."""
    support, errors = units(support), []
    target = np.eye(max(labels) + 1)[labels]
    for penalty in PENALTIES:
        error = 0.0
        for i, label in enumerate(labels):
            if labels.count(label) > 1:
                x, t = np.delete(support, i, 0), np.delete(target, i, 0)
                system = x.T @ x + penalty * np.eye(support.shape[1])
                error += float(
                    np.square(target[i] - support[i] @ np.linalg.solve(system, x.T @ t)).sum()
                )
        errors.append(error)
    return PENALTIES[int(np.argmin(errors))]


@torch.no_grad()
def test_each_task_has_the_penalty_that_leave_one_out_prefers() -> None:
    y = torch.tensor([0, 1, 2, 0, 1, 0, 1, 0, 1]).expand(4, -1)
    # From classes far apart to noise.
    distance = torch.tensor([8.0, 3.0, 1.0, 0.0], dtype=torch.float64)[:, None, None]
    z = randn(4, 9, 5) + distance * torch.eye(5, dtype=torch.float64)[y]
    query = randn(4, 3, 5, seed=3)
    chosen = [naive_choice(z[b].numpy(), y[b].tolist()) for b in range(4)]
    assert len(set(chosen)) > 2
    got = build().classify(z, y, query)
    for b, penalty in enumerate(chosen):
        expected = build(penalty=penalty).classify(z[b : b + 1], y[b : b + 1], query[b : b + 1])
        torch.testing.assert_close(got[b : b + 1], expected)


@torch.no_grad()
def test_one_shot_has_a_penalty_of_its_own() -> None:
    z, y, query = randn(1, 3, 5), torch.tensor([[2, 0, 1]]), randn(1, 4, 5, seed=3)
    expected = build(penalty=ONE_SHOT_PENALTY).classify(z, y, query)
    torch.testing.assert_close(build().classify(z, y, query), expected)


@torch.no_grad()
def test_scores_do_not_depend_on_the_number_of_shots() -> None:
    # Examples of class k are sqrt(r) e_k + sqrt(1 - r) e_i, with an e_i for each.
    r, y = 0.6, torch.tensor([[0, 1, 1, 1, 2, 2, 2, 2, 2]])
    axes = torch.eye(3 + 9 + 3, dtype=torch.float64)
    support = math.sqrt(r) * axes[y[0]] + math.sqrt(1 - r) * axes[3:12]
    query = math.sqrt(r) * axes[:3] + math.sqrt(1 - r) * axes[12:]
    for penalty in (0.01, 1.0):
        model = build(15, penalty=penalty)
        got = model.classify(support[None], y, query[None])[0] / model.log_scale.exp()
        torch.testing.assert_close(got, r * torch.eye(3, dtype=torch.float64))


def base_classes(features: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(60) % 6
    spread = torch.linspace(0.2, 3, features, dtype=torch.float64)
    return randn(60, features, seed=7) * spread + randn(6, features, seed=8)[y], y


@pytest.mark.parametrize("power", [1.0, 0.5])
@torch.no_grad()
def test_whitening_is_by_the_inverse_root_of_the_within_class_covariance(power: float) -> None:
    model = build(whitening=0.5, power=power, penalty=0.2)
    z, y = base_classes(5)
    model.fit_base(z, y)

    def root(z: np.ndarray) -> np.ndarray:
        return np.sign(z) * np.abs(z) ** power

    x = root(z.numpy())
    means = np.stack([x[y.numpy() == k].mean(0) for k in range(6)])
    covariance = np.cov((x - means[y.numpy()]).T, bias=True)
    values, vectors = np.linalg.eigh(covariance + 0.5 * np.trace(covariance) / 5 * np.eye(5))
    inverse_root = vectors @ np.diag(values**-0.5) @ vectors.T

    support, query = randn(2, 7, 5), randn(2, 4, 5, seed=3)
    whitened = [
        torch.tensor((root(t.numpy()) - x.mean(0)) @ inverse_root) for t in (support, query)
    ]
    expected = build(penalty=0.2).classify(whitened[0], UNEQUAL, whitened[1])
    # The power is smoothed at zero.
    torch.testing.assert_close(
        model.classify(support, UNEQUAL, query), expected, rtol=1e-4, atol=1e-3
    )


@torch.no_grad()
def test_a_low_rank_whitens_the_directions_of_largest_variance() -> None:
    full, low = build(8, whitening=0.5), build(8, whitening=0.5, rank=3)
    z, y = base_classes(8)
    full.fit_base(z, y)
    low.fit_base(z, y)
    assert low.shrunk.shape == (3, 8)
    torch.testing.assert_close(low.shrunk, full.shrunk[-3:])
    sizes = full.shrunk.norm(dim=1)
    assert (sizes.diff() > 0).all()
    assert sizes[-1] < 1


@torch.no_grad()
def test_whitening_changes_nothing_until_it_has_seen_the_base_classes() -> None:
    support, query = randn(2, 7, 5), randn(2, 4, 5, seed=3)
    plain, model = build(), build(whitening=5.0)
    expected = plain.classify(support, UNEQUAL, query)
    torch.testing.assert_close(model.classify(support, UNEQUAL, query), expected)
    plain.fit_base(*base_classes(5))
    assert not any("shrunk" in name for name in plain.state_dict())
    model.fit_base(*base_classes(5))
    assert not torch.allclose(model.classify(support, UNEQUAL, query), expected, rtol=1e-2)


@pytest.mark.parametrize("options", OPTIONS, ids=["ridge", "whitened", "low rank"])
@torch.no_grad()
def test_the_order_of_the_classes_does_not_matter(options: dict[str, object]) -> None:
    model = build(**options)
    model.fit_base(*base_classes(5))
    support, query, order = randn(2, 7, 5), randn(2, 4, 5, seed=3), torch.tensor([2, 0, 1])
    expected = model.classify(support, UNEQUAL, query)
    torch.testing.assert_close(model.classify(support, order[UNEQUAL], query)[..., order], expected)


@pytest.mark.parametrize("options", OPTIONS, ids=["ridge", "whitened", "low rank"])
def test_gradients(options: dict[str, object]) -> None:
    model = build(**options)
    model.fit_base(*base_classes(5))
    support, query = randn(2, 7, 5).requires_grad_(), randn(2, 2, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, q: model.classify(s, UNEQUAL, q), (support, query))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@torch.no_grad()
def test_is_exact_enough_in_float32(size: float) -> None:
    y = torch.arange(20).repeat_interleave(5)[None]
    # Classes are close to each other and to a mean that all share.
    z = 3 + randn(1, 100, 1280) + 0.5 * randn(20, 1280, seed=4)[y[0]]
    query = z[:, ::5] + 0.1
    expected = build(1280).classify(z, y, query)
    got = build(1280).float().classify((size * z).float(), y, (size * query).float())
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("options", OPTIONS, ids=["ridge", "whitened", "low rank"])
@torch.no_grad()
def test_degenerate_features_give_finite_answers(options: dict[str, object]) -> None:
    model = build(**options).float()
    same = torch.ones(1, 7, 5)
    model.fit_base(same[0], UNEQUAL[0])  # no variance within a class
    for z in (same, torch.zeros(1, 7, 5), same.index_fill(1, torch.tensor([0, 3]), 0)):
        assert model.classify(z, UNEQUAL[:1], z).isfinite().all()
        several = UNEQUAL[:1] != 1
        assert model.leave_one_out(z, UNEQUAL[:1])[several].isfinite().all()
    # Features of a diverged network: the caller reports numbers that are not finite.
    diverged = torch.full((1, 7, 5), math.nan)
    model.fit_base(diverged[0], UNEQUAL[0])
    assert model.classify(diverged, UNEQUAL[:1], same).isnan().any()


def test_conforms_with_power_and_whitening() -> None:
    check_algorithm("ridge", {"power": 0.5, "whitening": 5.0})
