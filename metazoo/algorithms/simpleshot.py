"""SimpleShot: Wang et al. 2019, "SimpleShot: Revisiting Nearest-Neighbor Classification for
Few-Shot Learning" (arXiv:1911.04623)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo import ops


class SimpleShot(metazoo.FeatureLearner):
    """Classifies a query by its nearest class mean, after centring and scaling to unit length.

    The paper centres by the mean of the training classes (CL2N); here also by that of the support
    set. Class means are scaled to unit length too, which the paper does not do: its Euclidean
    distance prefers classes with more examples. The mean of the training classes is zero until
    `fit_base` has seen them.
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        center: Annotated[
            Literal["base", "support", "none"],
            "subtract the mean of the training classes, or of the support set",
        ] = "base"

    config: Config
    base_mean: Tensor
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
        self.log_scale = nn.Parameter(torch.tensor(20.0).log(), requires_grad=learns)
        if self.config.center == "base":
            self.register_buffer("base_mean", torch.zeros(backbone.out_features))

    @torch.no_grad()
    def fit_base(self, z: Tensor, y: Tensor) -> None:
        """Compute the mean of the training classes' features."""
        if self.config.center == "base":
            self.base_mean.copy_(z.mean(0))

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        if self.config.center != "none":
            center = self._center(support_z, support_y)
            support_z, query_z = support_z - center, query_z - center
        means = metazoo.class_means(F.normalize(support_z, dim=-1), support_y)
        return self.log_scale.exp() * ops.cosine_similarity(query_z, means)

    def _center(self, support_z: Tensor, support_y: Tensor) -> Tensor:
        if self.config.center == "base":
            return self.base_mean
        # Of class means, so that each class counts alike.
        return metazoo.class_means(support_z, support_y).mean(1, keepdim=True)


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"simpleshot": SimpleShot}
