"""Correct few-shot learners, from which tests derive incorrect ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import metazoo


class Correct(metazoo.FeatureLearner):
    """Nearest class mean."""

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        scale: float = 1.0

    def classify(self, support_z, support_y, query_z):
        return -self.config.scale * metazoo.ops.pairwise_sqdist(
            query_z, metazoo.class_means(support_z, support_y)
        )


class Plain(metazoo.Algorithm):
    """Nearest class mean without FeatureLearner; regression weighs the support by distance."""

    supports_regression = True

    def forward(self, support_x, support_y, query_x):
        tasks = len(support_x)
        z = self.backbone(torch.cat([support_x.flatten(0, 1), query_x.flatten(0, 1)]))
        support_z, query_z = z.split(
            [z.shape[0] - query_x.shape[0] * query_x.shape[1], query_x.shape[0] * query_x.shape[1]]
        )
        support_z, query_z = support_z.unflatten(0, (tasks, -1)), query_z.unflatten(0, (tasks, -1))
        if self.spec.regression:
            return (-metazoo.ops.pairwise_sqdist(query_z, support_z)).softmax(-1) @ support_y
        return -metazoo.ops.pairwise_sqdist(query_z, metazoo.class_means(support_z, support_y))
