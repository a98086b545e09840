"""Ridge regression: Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers"
(arXiv:1805.08136)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo import Range

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Of tasks with one example a class, which leave nothing to compare penalties with.
ONE_SHOT_PENALTY = 0.3
EPSILON = 1e-6


class Ridge(metazoo.FeatureLearner):
    """Fits a linear map from features to one-hot labels in closed form, with a penalty on its size.

    As in the paper, it solves a system as large as the support set (section 3.2). Beyond it:

    - Features are scaled to unit length. Before that, `power` raises them to a power, and
      `whitening` centres and whitens them by the training classes: within-class covariance
      normalization (Hatch et al. 2006, Interspeech).
    - The penalty is chosen for each task, by leave-one-out on its support set. The map has no
      intercept.
    - If classes have different numbers of shots, their scores are made comparable.

    Whitening needs training classes; until `fit_base` has seen them, it changes nothing.
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        penalty: Annotated[
            float | None,
            "strength of the penalty; none chooses it by leave-one-out",
            Range(1e-3, 1e6),
        ] = None
        power: Annotated[
            float, "exponent of the features' absolute values; signs are kept", Range(0.1, 1)
        ] = 1.0
        whitening: Annotated[
            float | None,
            "whiten by the within-class covariance of the training classes, to whose eigenvalues "
            "this times their mean is added; none does not whiten",
            Range(1e-3, 1e6),
        ] = None
        rank: Annotated[int, "largest number of directions to whiten", Range(1, 4096)] = 256

    config: Config
    base_mean: Tensor
    shrunk: Tensor
    recipe = {"train_ways": 20, "train_queries": 5, "steps": 1000}

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        # Over a frozen encoder, only the scale could learn, and it changes no answer.
        learns = any(p.requires_grad for p in backbone.parameters())
        self.log_scale = nn.Parameter(torch.tensor(30.0).log(), requires_grad=learns)
        if self.config.whitening is not None:
            size = backbone.out_features
            self.register_buffer("base_mean", torch.zeros(size))
            # Whitening z is z - z @ shrunk.T @ shrunk, up to a factor.
            self.register_buffer("shrunk", torch.zeros(min(self.config.rank, size), size))

    @torch.no_grad()
    def fit_base(self, z: Tensor, y: Tensor) -> None:
        """Compute the mean of the training classes' features and what whitening shrinks."""
        if self.config.whitening is None:
            return
        z = self._power(z)
        residuals = z - metazoo.class_means(z[None], y[None])[0, y]
        covariance = residuals.mT @ residuals / len(z)
        floor = self.config.whitening * covariance.diagonal().mean()
        # eigh refuses NaN, which the features of a diverged network are; their mean shows it.
        variances, directions = torch.linalg.eigh(covariance.nan_to_num())  # ascending
        factors = (floor / (floor + variances.clamp_min(0))).sqrt().nan_to_num(1.0)
        rank = len(self.shrunk)
        self.shrunk.copy_(((1 - factors).sqrt() * directions).mT[-rank:])
        self.base_mean.copy_(z.mean(0))

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        support_z, query_z = self._normalize(support_z), self._normalize(query_z)
        gram, target = support_z @ support_z.mT, _one_hot(support_y, support_z)
        penalty = self._penalty(gram, target)
        weights = support_z.mT @ torch.linalg.solve_ex(_penalized(gram, penalty), target)[0]
        counts = target.sum(1, keepdim=True)
        similar = _within_class(gram, target).sum((1, 2), keepdim=True)
        factors = _comparable(counts, similar, _pairs(counts), penalty)
        return self.log_scale.exp() * factors * (query_z @ weights)

    @torch.no_grad()
    def leave_one_out(
        self, support_z: Tensor, support_y: Tensor, names_z: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, S, ways): each support example classified by all others.

        In closed form, with the penalty that the whole support set has. The row of an example that
        is the only one of its class is NaN.
        """
        support_z = self._normalize(support_z)
        gram, target = support_z @ support_z.mT, _one_hot(support_y, support_z)
        penalty = self._penalty(gram, target)
        scores = target - _residuals(gram, target, penalty)
        # What is left without each example: (B, S, ways) and (B, S, 1).
        counts = target.sum(1, keepdim=True) - target
        within = _within_class(gram, target)
        similar = within.sum((1, 2), keepdim=True) - 2 * within.sum(2, keepdim=True)
        factors = _comparable(counts.clamp_min(1), similar, _pairs(counts), penalty)
        logits = self.log_scale.exp() * factors * scores
        return logits.masked_fill((counts == 0).any(-1, keepdim=True), float("nan"))

    def _power(self, z: Tensor) -> Tensor:
        # EPSILON keeps the derivative finite at 0.
        power = self.config.power
        return z if power == 1 else z * (z.abs() + EPSILON).pow(power - 1)

    def _normalize(self, z: Tensor) -> Tensor:
        z = self._power(z)
        if self.config.whitening is not None:
            z = z - self.base_mean
            z = z - z @ self.shrunk.mT @ self.shrunk
        return F.normalize(z, dim=-1)

    @torch.no_grad()
    def _penalty(self, gram: Tensor, target: Tensor) -> Tensor:
        """Return the penalty (B, 1, 1) of each task."""
        if self.config.penalty is not None:
            return gram.new_full((len(gram), 1, 1), self.config.penalty)
        # Without its only example, a class is unknown: such examples do not count.
        several = target @ (target.sum(1) > 1).to(target.dtype).unsqueeze(-1)  # (B, S, 1)
        errors = [
            (several * _residuals(gram, target, gram.new_tensor(penalty))).square().sum((1, 2))
            for penalty in PENALTIES
        ]
        best = gram.new_tensor(PENALTIES)[torch.stack(errors).argmin(0)]
        return torch.where(several.any(1)[:, 0], best, ONE_SHOT_PENALTY).view(-1, 1, 1)


def _one_hot(y: Tensor, z: Tensor) -> Tensor:
    return F.one_hot(y, metazoo.ways_of(y)).to(z.dtype)


def _penalized(gram: Tensor, penalty: Tensor) -> Tensor:
    return gram + penalty * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _residuals(gram: Tensor, target: Tensor, penalty: Tensor) -> Tensor:
    """Return target minus the prediction for each example by all others, (B, S, ways)."""
    inverse = torch.linalg.inv_ex(_penalized(gram, penalty))[0]
    return inverse @ target / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)


def _within_class(gram: Tensor, target: Tensor) -> Tensor:
    """Return the gram matrix with only the products of two different examples of one class."""
    same = target @ target.mT
    return gram * (same - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


def _pairs(counts: Tensor) -> Tensor:
    return (counts * (counts - 1)).sum(-1, keepdim=True)


def _comparable(counts: Tensor, similar: Tensor, pairs: Tensor, penalty: Tensor) -> Tensor:
    """Return factors (B, *, ways) that make the scores of classes with `counts` examples comparable.

    The map gives the examples it was fitted to a score near 1, and new examples of a class the
    less, the fewer examples the class has. If examples of a class have unit length and a cosine r
    with each other, a new one has the score n r / (1 + (n - 1) r + penalty). The factor divides by
    it, apart from r, which is the mean cosine over all classes: `similar` / `pairs`.
    """
    r = (similar / pairs.clamp_min(1)).clamp_min(0)
    return (1 + (counts - 1) * r + penalty) / counts


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"ridge": Ridge}
