"""Transfer learning: Chen et al. 2019, "A Closer Look at Few-shot Classification"
(arXiv:1904.04232)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo import Range, ops

MOMENTUM = 0.9
EPSILON = 1e-6


class Baseline(metazoo.FeatureLearner, metazoo.BatchLearner):
    """Learns to classify the base classes; trains a new head on the support set of each task.

    The backbone stays fixed in a task. The head is linear (Baseline), or a scaled cosine to one
    vector per class (Baseline++); the scale is learned on the base classes. A linear head starts
    from zero, a cosine head from the class means. Heads are trained by gradient descent with
    momentum on the whole support set, while the paper draws random batches of four: adaptation is
    deterministic. Raises OptionError if the data have no base classes.
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        head: Annotated[
            Literal["linear", "cosine"], "linear (Baseline), or cosine (Baseline++)"
        ] = "linear"
        finetune_steps: Annotated[int, "gradient steps of a new head", Range(0, 10**5)] = 100
        finetune_lr: Annotated[float, "learning rate of a new head (momentum 0.9)", Range(0)] = 2.0
        finetune_decay: Annotated[float, "weight decay of a new linear head", Range(0)] = 1e-3

    config: Config
    equal_shots = True
    recipe = {"steps": 4000, "batch_size": 128}

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        if not spec.classes:
            raise metazoo.OptionError(
                "algorithm 'baseline' trains on base classes, but these data have no classes",
                "choose a data set with classes, or an algorithm for regression, such as 'maml'",
            )
        cosine = self.config.head == "cosine"
        self.classifier = nn.Linear(backbone.out_features, spec.classes, bias=not cosine)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log()) if cosine else None

    def batch_loss(self, batch: metazoo.Batch) -> Tensor:
        """Return the mean cross-entropy over the base classes."""
        z = self.embed(batch.x)
        if self.log_scale is None:
            return metazoo.task_loss(self.classifier(z), batch.y)
        cosines = ops.cosine_similarity(z[None], self.classifier.weight[None])[0]
        return metazoo.task_loss(self.log_scale.exp() * cosines, batch.y)

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        target = F.one_hot(support_y, metazoo.ways_of(support_y)).to(support_z.dtype)
        if self.log_scale is None:
            return self._classify_linear(support_z, target, query_z)
        scale, unit_z = self.log_scale.exp(), F.normalize(support_z, dim=-1)
        head = F.normalize(metazoo.class_means(unit_z, support_y), dim=-1)
        head = self._descend(head, lambda head: cosine_gradient(head, unit_z, target, scale))
        return scale * ops.cosine_similarity(query_z, head)

    def _classify_linear(self, support_z: Tensor, target: Tensor, query_z: Tensor) -> Tensor:
        # Centring and scaling to mean square norm 1 make one learning rate fit every backbone: the
        # loss then has a curvature of at most 1, and descent is stable up to a rate of 3.8.
        mean = support_z.mean(1, keepdim=True)
        size = (support_z - mean).square().sum(-1, keepdim=True).mean(1, keepdim=True).sqrt()

        def standardize(z: Tensor) -> Tensor:
            # The weights of the constant feature are the bias.
            return F.pad((z - mean) / size.clamp_min(EPSILON), (0, 1), value=1.0)

        support_z, query_z = standardize(support_z), standardize(query_z)
        head = support_z.new_zeros(len(support_z), target.shape[-1], support_z.shape[-1])
        decay = self.config.finetune_decay
        head = self._descend(head, lambda head: linear_gradient(head, support_z, target), decay)
        return query_z @ head.mT

    @torch.no_grad()
    def _descend(
        self, head: Tensor, gradient: Callable[[Tensor], Tensor], weight_decay: float = 0.0
    ) -> Tensor:
        """Return the heads (B, ways, D) of all tasks after `finetune_steps` gradient steps."""
        flat = head.flatten(1).clone()
        velocity = torch.zeros_like(flat)
        for _ in range(self.config.finetune_steps):
            ops.sgd_update_(
                flat,
                gradient(flat.view_as(head)).flatten(1),
                self.config.finetune_lr,
                velocity=velocity,
                momentum=MOMENTUM,
                weight_decay=weight_decay,
            )
        return flat.view_as(head)


class BaselinePlusPlus(Baseline):
    """Baseline++ of the same paper: `Baseline` with a cosine head."""

    @dataclass(frozen=True)
    class Config(Baseline.Config):
        head: Annotated[
            Literal["linear", "cosine"], "linear (Baseline), or cosine (Baseline++)"
        ] = "cosine"


def linear_gradient(head: Tensor, z: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of each task's mean cross-entropy with respect to its head (B, ways, D).

    Shapes: features z (B, S, D), one-hot target (B, S, ways).
    """
    return ((z @ head.mT).softmax(-1) - target).mT @ z / z.shape[1]


def cosine_gradient(head: Tensor, unit_z: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient for a cosine head, divided by scale squared.

    The curvature of the loss grows with scale squared, so the division keeps steps stable.
    """
    norm = head.norm(dim=-1, keepdim=True).clamp_min(EPSILON)
    unit = head / norm
    gradient = linear_gradient(scale * unit, unit_z, target) / scale
    return (gradient - (gradient * unit).sum(-1, keepdim=True) * unit) / norm


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"baseline": Baseline, "baseline++": BaselinePlusPlus}
