"""Transfer learning: Chen et al. 2019, "A Closer Look at Few-shot Classification" (arXiv:1904.04232)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo import Range, ops

MOMENTUM = 0.9


class Baseline(metazoo.FeatureLearner):
    """Learns to tell the base classes apart; a new task gets a new head, trained on its support over the frozen backbone.

    The head is linear (Baseline) or a scaled cosine to one vector a class (Baseline++). New heads see features of unit
    length (Tian et al. 2020, arXiv:2003.11539), so that one learning rate suits every backbone, and are trained by gradient
    descent with momentum on the whole support set: where the paper draws random batches of four, nothing here is random.
    A linear head starts at zero, a cosine head at the class means. Raises OptionError where there are no base classes.
    """

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        head: Annotated[Literal["linear", "cosine"], "linear (Baseline), or cosine (Baseline++)"] = "linear"
        finetune_steps: Annotated[int, "gradient steps of a new head", Range(0)] = 100
        finetune_lr: Annotated[float, "learning rate of a new head (momentum 0.9)", Range(0)] = 1.0
        finetune_decay: Annotated[float, "weight decay of a new head", Range(0)] = 1e-3

    recipe = {"steps": 4000, "batch_size": 128}
    draws = "batches"

    def __init__(self, backbone: metazoo.Backbone, spec: metazoo.TaskSpec, config: metazoo.Config | None = None):
        super().__init__(backbone, spec, config)
        if not spec.classes:
            raise metazoo.OptionError(
                "algorithm 'baseline' learns from base classes, and these data have none",
                "choose a data set whose training split has classes, or an algorithm that takes regression, such as 'maml'",
            )
        self.classifier = nn.Linear(backbone.out_features, spec.classes, bias=self.config.head == "linear")
        self.log_scale = nn.Parameter(torch.tensor(10.0).log()) if self.config.head == "cosine" else None

    def loss(self, task: metazoo.Episode | metazoo.Batch) -> Tensor:
        """Return the cross-entropy over the base classes."""
        assert isinstance(task, metazoo.Batch)
        z = self.embed(task.x)
        if self.log_scale is None:
            return metazoo.task_loss(self.classifier(z), task.y)
        cosines = ops.cosine_similarity(z.unsqueeze(0), self.classifier.weight.unsqueeze(0)).squeeze(0)
        return metazoo.task_loss(self.log_scale.exp() * cosines, task.y)

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        support_z, query_z = F.normalize(support_z, dim=-1), F.normalize(query_z, dim=-1)
        if self.log_scale is None:
            # A constant feature, whose weights are the bias.
            support_z, query_z = F.pad(support_z, (0, 1), value=1.0), F.pad(query_z, (0, 1), value=1.0)
        with torch.no_grad():
            head = self.finetune(support_z, support_y)  # (B, ways, D)
        if self.log_scale is None:
            return query_z @ head.mT
        return self.log_scale.exp() * ops.cosine_similarity(query_z, head)

    def finetune(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the heads (B, ways, D) of all tasks, trained at once on features (B, S, D) with labels (B, S)."""
        target = F.one_hot(y, metazoo.ways_of(y)).to(z.dtype)
        means = metazoo.class_means(z, y)
        head = torch.zeros_like(means) if self.log_scale is None else F.normalize(means, dim=-1)
        scale = 1.0 if self.log_scale is None else self.log_scale.exp()
        velocity = torch.zeros_like(head)
        for _ in range(self.config.finetune_steps):
            length = 1.0 if self.log_scale is None else head.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            unit = head / length
            error = (scale * z @ unit.mT).softmax(-1) - target  # gradient of the cross-entropy by the logits
            slope = scale * error.mT @ z / z.shape[1]
            if self.log_scale is not None:
                # A cosine does not change along its vector.
                slope = (slope - (slope * unit).sum(-1, keepdim=True) * unit) / length
            velocity = MOMENTUM * velocity + slope + self.config.finetune_decay * head
            head = head - self.config.finetune_lr * velocity
        return head


class BaselinePlusPlus(Baseline):
    """`Baseline` with a cosine head: Baseline++ of the same paper."""

    @dataclass(frozen=True)
    class Config(Baseline.Config):
        head: Annotated[Literal["linear", "cosine"], "linear (Baseline), or cosine (Baseline++)"] = "cosine"


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"baseline": Baseline, "baseline++": BaselinePlusPlus}
