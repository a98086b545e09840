"""Transfer learning: Chen et al. 2019, "A Closer Look at Few-shot Classification" (arXiv:1904.04232)."""

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
TINY = 1e-6


class Baseline(metazoo.FeatureLearner):
    """Learns to tell the base classes apart; a new task gets a new head, trained on its support over the frozen backbone.

    The head is linear (Baseline), or a scaled cosine to one vector a class (Baseline++) with the scale learned on the base
    classes. New heads are trained on all support examples at once, by gradient descent with momentum, a linear one from
    zero and a cosine one from the class means: where the paper draws random batches of four, nothing here is random.
    Raises OptionError where there are no base classes.
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        head: Annotated[
            Literal["linear", "cosine"], "linear (Baseline), or cosine (Baseline++)"
        ] = "linear"
        finetune_steps: Annotated[int, "gradient steps of a new head", Range(0)] = 100
        finetune_lr: Annotated[float, "learning rate of a new head (momentum 0.9)", Range(0)] = 2.0
        finetune_decay: Annotated[float, "weight decay of a new linear head", Range(0)] = 1e-3

    recipe = {"steps": 4000, "batch_size": 128}
    draws = "batches"

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        if not spec.classes:
            raise metazoo.OptionError(
                "algorithm 'baseline' learns from base classes, and these data have none",
                "choose a data set whose training split has classes, or an algorithm that takes regression, such as 'maml'",
            )
        self.classifier = nn.Linear(
            backbone.out_features, spec.classes, bias=self.config.head == "linear"
        )
        self.log_scale = (
            nn.Parameter(torch.tensor(10.0).log()) if self.config.head == "cosine" else None
        )

    def loss(self, task: metazoo.Episode | metazoo.Batch) -> Tensor:
        """Return the cross-entropy over the base classes."""
        assert isinstance(task, metazoo.Batch)
        z = self.embed(task.x)
        if self.log_scale is None:
            return metazoo.task_loss(self.classifier(z), task.y)
        cosines = ops.cosine_similarity(
            z.unsqueeze(0), self.classifier.weight.unsqueeze(0)
        ).squeeze(0)
        return metazoo.task_loss(self.log_scale.exp() * cosines, task.y)

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        target = F.one_hot(support_y, metazoo.ways_of(support_y)).to(support_z.dtype)
        if self.log_scale is not None:
            scale, unit_z = self.log_scale.exp(), F.normalize(support_z, dim=-1)
            head = F.normalize(metazoo.class_means(unit_z, support_y), dim=-1)
            head = self.descend(head, lambda head: cosine_slope(head, unit_z, target, scale))
            return scale * ops.cosine_similarity(query_z, head)
        # Centred and of mean square 1, features give the same family of linear heads, but at one learning rate for all
        # backbones: the loss's curvature is then at most 1, for which descent with this momentum is stable up to a rate of 3.8.
        centre = support_z.mean(1, keepdim=True)
        size = (
            (support_z - centre)
            .square()
            .sum(-1, keepdim=True)
            .mean(1, keepdim=True)
            .sqrt()
            .clamp_min(TINY)
        )
        # The weights of a constant feature are the bias.
        support_z, query_z = (
            F.pad((z - centre) / size, (0, 1), value=1.0) for z in (support_z, query_z)
        )
        head = support_z.new_zeros(len(support_z), target.shape[-1], support_z.shape[-1])
        head = self.descend(
            head, lambda head: linear_slope(head, support_z, target), self.config.finetune_decay
        )
        return query_z @ head.mT

    @torch.no_grad()
    def descend(
        self, head: Tensor, slope: Callable[[Tensor], Tensor], decay: float = 0.0
    ) -> Tensor:
        """Return the heads (B, ways, D) of all tasks after `finetune_steps` steps from these, all at once."""
        flat = head.flatten(1).clone()
        velocity = torch.zeros_like(flat)
        for _ in range(self.config.finetune_steps):
            gradient = slope(flat.view_as(head)).flatten(1)
            ops.sgd_update_(
                flat,
                gradient,
                self.config.finetune_lr,
                velocity=velocity,
                momentum=MOMENTUM,
                weight_decay=decay,
            )
        return flat.view_as(head)


class BaselinePlusPlus(Baseline):
    """`Baseline` with a cosine head: Baseline++ of the same paper."""

    @dataclass(frozen=True)
    class Config(Baseline.Config):
        head: Annotated[
            Literal["linear", "cosine"], "linear (Baseline), or cosine (Baseline++)"
        ] = "cosine"


def linear_slope(head: Tensor, z: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of each task's mean cross-entropy by its head (B, ways, D).

    Shapes: features z (B, S, D), target (B, S, ways) one-hot.
    """
    return ((z @ head.mT).softmax(-1) - target).mT @ z / z.shape[1]


def cosine_slope(head: Tensor, unit_z: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Return the same for a head that takes scaled cosines, over scale squared: as the curvature grows, so the step shrinks."""
    length = head.norm(dim=-1, keepdim=True).clamp_min(TINY)
    unit = head / length
    slope = linear_slope(scale * unit, unit_z, target) / scale
    return (slope - (slope * unit).sum(-1, keepdim=True) * unit) / length


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"baseline": Baseline, "baseline++": BaselinePlusPlus}
