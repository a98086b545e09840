"""The baseline: new heads compared with torch.optim, and training on base classes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo.algorithms.baseline import Baseline, BaselinePlusPlus, register_algorithms
from metazoo.backbones.mlp import MLP

SPEC = metazoo.TaskSpec((6,), 3, classes=7)
UNEQUAL = torch.tensor([[0, 1, 2, 0, 2, 0], [2, 1, 1, 0, 1, 1]])
HEADS = ["linear", "cosine"]


def build(**options: object) -> Baseline:
    torch.manual_seed(1)
    return Baseline(
        MLP((6,), MLP.Config(width=4, depth=1)), SPEC, Baseline.Config(**options)
    ).double()  # type: ignore[arg-type]


def randn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear_logits(model: Baseline, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Train nn.Linear on one task with torch.optim.SGD, on standardised features."""
    mean = support.mean(0)
    size = math.sqrt(sum(((z - mean) ** 2).sum().item() for z in support) / len(support))
    head = nn.Linear(4, 3).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    config = model.config
    optimizer = torch.optim.SGD(
        head.parameters(), config.finetune_lr, momentum=0.9, weight_decay=config.finetune_decay
    )
    for _ in range(config.finetune_steps):
        optimizer.zero_grad()
        F.cross_entropy(head((support - mean) / size), labels).backward()
        optimizer.step()
    return head((query - mean) / size).detach()


def cosine_logits(model: Baseline, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
    """Train one vector per class with torch.optim.SGD, at the rate over the scale squared."""
    assert model.log_scale is not None
    scale = model.log_scale.exp().item()
    start = torch.stack([F.normalize(support[labels == k], dim=1).mean(0) for k in range(3)])
    head = F.normalize(start, dim=1).requires_grad_()
    optimizer = torch.optim.SGD([head], model.config.finetune_lr / scale**2, momentum=0.9)
    for _ in range(model.config.finetune_steps):
        optimizer.zero_grad()
        cosines = F.cosine_similarity(support.unsqueeze(1), head.unsqueeze(0), dim=-1)
        F.cross_entropy(scale * cosines, labels).backward()
        optimizer.step()
    return scale * F.cosine_similarity(query.unsqueeze(1), head.unsqueeze(0), dim=-1).detach()


@pytest.mark.parametrize(
    "options", [{}, {"finetune_steps": 7, "finetune_lr": 0.3, "finetune_decay": 0.1}], ids=str
)
@pytest.mark.parametrize(
    ("head", "naive"), [("linear", linear_logits), ("cosine", cosine_logits)], ids=HEADS
)
def test_new_heads_equal_those_of_an_optimizer_run_task_by_task(
    head: str, naive: object, options: dict[str, object]
) -> None:
    model = build(head=head, **options)
    support, query = 3 + 5 * randn(2, 6, 4), 3 + 5 * randn(2, 5, 4, seed=3)
    expected = torch.stack([naive(model, support[b], UNEQUAL[b], query[b]) for b in range(2)])  # type: ignore[operator]
    with torch.no_grad():
        torch.testing.assert_close(
            model.classify(support, UNEQUAL, query), expected, rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("ways", [2, 9])
def test_heads_have_the_ways_of_the_task(head: str, ways: int) -> None:
    model = build(head=head).eval()
    labels = torch.arange(ways).repeat(2, 1)
    with torch.inference_mode():
        logits = model(randn(2, ways, 6), labels, randn(2, 4, 6, seed=3))
    assert logits.shape == (2, 4, ways)
    assert logits.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_the_scale_of_features_does_not_matter(head: str) -> None:
    model = build(head=head)
    support, query = randn(2, 6, 4), randn(2, 5, 4, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(
            model.classify(1e4 * support, UNEQUAL, 1e4 * query),
            model.classify(support, UNEQUAL, query),
        )


@pytest.mark.parametrize("head", HEADS)
def test_identical_features_give_finite_logits(head: str) -> None:
    model = build(head=head)
    for z in (torch.zeros(2, 6, 4, dtype=torch.float64), torch.ones(2, 6, 4, dtype=torch.float64)):
        with torch.no_grad():
            assert model.classify(z, UNEQUAL, z).isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_fine_tuning_fits_the_support_and_beats_the_nearest_centroid(head: str) -> None:
    # Classes differ in two weak directions; two strong directions are noise.
    generator = torch.Generator().manual_seed(4)
    spread = torch.tensor([3.0, 3.0, 0.3, 0.3], dtype=torch.float64)
    centres = torch.tensor([[0, 0, 1, 0], [0, 0, -1, 1], [0, 0, -1, -1]], dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(20).repeat(10, 1)
    support, query = (
        centres[labels] + spread * torch.randn(10, 60, 4, dtype=torch.float64, generator=generator)
        for _ in range(2)
    )
    model = build(head=head)
    with torch.no_grad():
        tuned = (model.classify(support, labels, query).argmax(-1) == labels).double().mean()
        means = metazoo.class_means(support, labels)
        nearest = (metazoo.ops.pairwise_sqdist(query, means).argmin(-1) == labels).double().mean()
    assert tuned > nearest + 0.1


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_cross_entropy_over_the_base_classes(head: str) -> None:
    model = build(head=head)
    x, y = randn(5, 6), torch.tensor([6, 0, 3, 3, 1])
    weight = model.classifier.weight.detach()
    assert weight.shape == (7, 4)
    terms = []
    for z, label in zip(model.backbone(x).detach(), y.tolist()):
        if model.log_scale is None:
            logits = weight @ z + model.classifier.bias.detach()
        else:
            norms = torch.tensor(
                [math.hypot(*w) * math.hypot(*z.tolist()) for w in weight.tolist()],
                dtype=torch.float64,
            )
            logits = model.log_scale.exp().item() * (weight @ z) / norms
        terms.append(-math.log(logits.exp()[label] / logits.exp().sum()))
    assert model.batch_loss(metazoo.Batch(x, y)).item() == pytest.approx(sum(terms) / 5, rel=1e-9)


def test_both_names_are_registered_with_their_heads() -> None:
    heads = {name: algorithm.Config().head for name, algorithm in register_algorithms().items()}  # type: ignore[attr-defined]
    assert heads == {"baseline": "linear", "baseline++": "cosine"}


@pytest.mark.parametrize("algorithm", [Baseline, BaselinePlusPlus])
def test_no_base_classes_is_an_error_with_a_hint(algorithm: type[Baseline]) -> None:
    with pytest.raises(metazoo.OptionError, match="base classes") as caught:
        algorithm(MLP((1,)), metazoo.TaskSpec((1,), 1, regression=True))
    assert "maml" in (caught.value.hint or "")
