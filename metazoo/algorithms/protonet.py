"""Prototypical Networks: Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot
Learning" (arXiv:1703.05175)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

import metazoo
from metazoo import ops


class ProtoNet(metazoo.FeatureLearner):
    """Classifies a query by its distance to each class's prototype, the mean of its embeddings.

    The paper uses the squared Euclidean distance, for which the mean is optimal because it is a
    Bregman divergence (section 2.3). It compares with cosine, which here has a learned temperature;
    without one it hardly trains. Training tasks have more ways than test tasks (section 2.6).
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        distance: Annotated[
            Literal["euclidean", "cosine"], "squared Euclidean distance, or cosine"
        ] = "euclidean"

    config: Config
    recipe = {"train_ways": 60, "train_queries": 5, "steps": 1000}

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        cosine = self.config.distance == "cosine"
        # Over a frozen encoder, only the scale could learn, and it changes no answer.
        learns = any(p.requires_grad for p in backbone.parameters())
        scale = nn.Parameter(torch.tensor(10.0).log(), requires_grad=learns)
        self.log_scale = scale if cosine else None

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        prototypes = metazoo.class_means(support_z, support_y)  # (B, ways, D), equation 1
        if self.log_scale is not None:
            return self.log_scale.exp() * ops.cosine_similarity(query_z, prototypes)
        return -ops.pairwise_sqdist(query_z, prototypes)  # equation 2

    def loss(self, task: metazoo.Episode) -> Tensor:
        if self.log_scale is not None:
            return super().loss(task)
        # The same loss as one fused operation.
        support_z, query_z = self.embed_both(task.support_x, task.query_x)
        prototypes = metazoo.class_means(support_z, task.support_y)
        return ops.prototypical_nll(query_z, prototypes, task.query_y)


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"protonet": ProtoNet}
