"""Whether probabilities mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from metazoo.errors import InputError


def expected_calibration_error(confidence: Any, correct: Any, bins: int = 15) -> float:
    """Return the mean difference between confidence and accuracy, over bins of equal width.

    Naeini et al. 2015 (AAAI), as used by Guo et al. 2017 (arXiv:1706.04599).

    Args:
        confidence: the probability of each answer, (N,), in [0, 1].
        correct: whether each answer is correct, (N,).
        bins: a bin counts as much as the answers in it.

    Raises InputError if there are no answers.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if not len(confidence):
        raise InputError("there are no answers", "give at least one")
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))
