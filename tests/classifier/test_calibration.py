"""Probabilities that mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from classified import blobs
from scipy.optimize import minimize_scalar

from metazoo import FewShotClassifier
from metazoo.classifier.calibration import DOUBT, factor_of, typical_factor
from metazoo.evaluation.calibration import expected_calibration_error


def drawn(count: int, ways: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, and labels that follow their probabilities once multiplied by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, ways, generator=generator, dtype=torch.double)
    y = (scale * logits).softmax(1).multinomial(1, generator=generator).squeeze(1)
    return logits, y


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
def test_the_factor_is_found(scale: float) -> None:
    logits, y = drawn(20_000, 5, scale)
    assert factor_of(logits, y) == pytest.approx(scale, rel=0.15)
    assert factor_of(100 * logits + 7, y) == pytest.approx(scale / 100, rel=0.15)


def test_the_factor_minimises_its_loss() -> None:
    logits, y = drawn(15, 3, 2.0)

    def loss(log_factor: float) -> float:
        log_p = (math.exp(log_factor) * logits).log_softmax(1)
        return float(-log_p[torch.arange(15), y].sum() - DOUBT * log_p.mean())

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded").x
    assert math.log(factor_of(logits, y)) == pytest.approx(best, abs=1e-3)


def test_few_examples_without_a_mistake_do_not_make_it_certain() -> None:
    logits = torch.eye(4, dtype=torch.double)
    confidence = [
        (logits.repeat(n, 1) * factor_of(logits.repeat(n, 1), torch.arange(4).repeat(n)))
        .softmax(1)
        .max()
        .item()
        for n in (1, 5, 25)
    ]
    assert confidence == sorted(confidence)
    assert 0.9 < confidence[0] < 0.97
    assert 0.995 < confidence[-1] < 1


@pytest.mark.parametrize(
    "logits", [torch.zeros(3, 2), -torch.eye(2), torch.tensor([[1.0, float("-inf"), 0.0]])]
)
def test_odd_logits_have_a_finite_factor(logits: torch.Tensor) -> None:
    factor = factor_of(logits, torch.zeros(len(logits), dtype=torch.long))
    assert 0 < factor < math.inf


def test_the_typical_factor_sets_the_gap() -> None:
    logits, y = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([0, 1])
    factor = typical_factor(logits, y, 10.0)
    own = factor * (torch.tensor([3.0, 2.0]) - torch.tensor([0.5, 0.5])).mean()
    assert own == pytest.approx(10)
    assert typical_factor(-logits, y, 10.0) == 1


def test_the_most_probable_class_stays() -> None:
    X, y = blobs(4, 5, spread=0.8)
    one, other = (FewShotClassifier(device="cpu", calibrate=c).fit(X, y) for c in (True, False))
    assert np.array_equal(one.predict(X), other.predict(X))


def test_expected_calibration_error() -> None:
    assert expected_calibration_error(np.full(10, 0.8), np.arange(10) < 8) == pytest.approx(0)
    assert expected_calibration_error(np.ones(4), np.array([1, 1, 0, 0])) == pytest.approx(0.5)
    # Two bins: 0.9 is right half of the time, 0.6 always.
    confidence, right = np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 0, 1, 1])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.4)
    assert expected_calibration_error(torch.tensor(confidence), torch.tensor(right)) == (
        pytest.approx(0.4)
    )
    with pytest.raises(ValueError, match="no answers"):
        expected_calibration_error(np.zeros(0), np.zeros(0))
