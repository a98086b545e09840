"""BatchNorm with the statistics of the batch, for networks whose weights inner steps change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten


class BatchStatistics(nn.Module):
    """BatchNorm without running statistics.

    It normalises by the statistics of the batch, or of the first `support` examples if that is set.
    `offset` (2, features) is added to weight and bias if it is set. `fused` is faster, but does not
    work under torch.func.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.features = norm.eps, norm.num_features
        self.offset: Tensor | None = None
        self.support: int | None = None
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if self.offset is not None and weight is not None and bias is not None:
            weight, bias = weight + self.offset[0], bias + self.offset[1]
        # Without `fused` this avoids F.batch_norm, whose second derivatives are wrong under vmap
        # (torch 2.13).
        if self.support is None and self.fused:
            return batch_norm(x, weight, bias, self.eps)
        axes = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x[: self.support], axes, correction=0, keepdim=True)
        x = (x - mean) * (variance + self.eps).rsqrt()
        if weight is None or bias is None:
            return x
        return x * _by_channel(weight, x) + _by_channel(bias, x)


def use_batch_statistics(network: nn.Module) -> list[BatchStatistics]:
    """Replace each BatchNorm1d and BatchNorm2d in a network and return the replacements."""
    replaced = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                replaced.append(BatchStatistics(child))
                setattr(parent, name, replaced[-1])
    return replaced


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return F.batch_norm of x (N, C, ...) in training mode, with faster second derivatives.

    PyTorch's own second derivative makes about three times as many passes over x. This one has no
    third derivative and does not work under vmap.
    """
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    return _BatchNorm.apply(x, weight, bias, eps)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, s = aten.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, s)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_Backward.apply(g, *ctx.saved_tensors, ctx.eps), None


class _Backward(torch.autograd.Function):
    """The gradients by x, weight and bias, which are differentiable once.

    Let u be the normalised x, s the reciprocal standard deviation, w the weight, n the number of
    values of a channel and <a, b> a channel's sum of products. The gradient by x is w s (g - <g, 1>
    / n - u <g, u> / n), by w it is <g, u>, and by the bias <g, 1>. The derivative in a direction v
    is, by g, the same operation on v, and by x a linear combination of u, v, g and 1.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, s: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_x, gu, g1 = _slopes(g, x, weight, mean, s, eps)
        ctx.save_for_backward(g, x, weight, mean, s, gu, g1)
        ctx.eps = eps
        return by_x, gu, g1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, v: Tensor, by_weight: Tensor, by_bias: Tensor
    ) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, s, gu, g1 = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        for_g, vu, v1 = _slopes(v, x, weight, mean, s, ctx.eps)
        vg = (v * g).sum([0, *range(2, x.dim())])
        k = vg - (v1 * g1 + vu * gu) / n
        slope = by_weight * s
        for_g.addcmul_(x, _by_channel(slope, x)).add_(_by_channel(by_bias - slope * mean, x))
        square = weight * s * s / n
        of_u = s * (square * (2 * vu * gu / n - k) - slope * gu / n)
        of_1 = square * (gu * v1 + vu * g1) / n - slope * g1 / n - of_u * mean
        for_x = torch.addcmul(_by_channel(of_1, x), x, _by_channel(of_u, x))
        for_x.addcmul_(v, _by_channel(-square * gu, x)).addcmul_(
            g, _by_channel(slope - square * vu, x)
        )
        return for_g, for_x, s * k, None, None, None


def _slopes(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, s: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, s, True, eps, [True, True, True]
    )


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))
