"""BatchNorm by the statistics of the batch alone, for weights that inner steps change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchStatistics(nn.Module):
    """BatchNorm that keeps no running statistics.

    It normalises by the statistics of the batch or, where `support` is a number, by those of the first `support` examples.
    `offset` (2, features), where there is one, is added to weight and bias.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps, self.features = norm.weight, norm.bias, norm.eps, norm.num_features
        self.offset: Tensor | None = None
        self.support: int | None = None
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if self.offset is not None and weight is not None and bias is not None:
            weight, bias = weight + self.offset[0], bias + self.offset[1]
        # Under vmap the second derivatives of F.batch_norm are wrong (torch 2.13): with it tests/test_maml.py fails by a fifth.
        if self.support is None and self.fused:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        axes = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x[: self.support], axes, correction=0, keepdim=True)
        x = (x - mean) * (variance + self.eps).rsqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x if weight is None or bias is None else x * weight.view(shape) + bias.view(shape)


def use_batch_statistics(network: nn.Module) -> list[BatchStatistics]:
    """Replace every BatchNorm of a network by a `BatchStatistics` and return the replacements."""
    replaced = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                replaced.append(BatchStatistics(child))
                setattr(parent, name, replaced[-1])
    return replaced
