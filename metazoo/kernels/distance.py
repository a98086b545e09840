"""Squared Euclidean distances: the operators `metazoo::sqdist` and `sqdist_backward`.

The gradient of the distances d(x, y) is G(w, x, y) = (2 sum_n w (x - y), 2 sum_q w (y - x)), and
the derivatives of G by x and y are G(w, ., .) again. Kernels therefore compute derivatives of every
order, except the derivative of G by w, which is `inner`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .loading import covers
from .operators import declare, differentiated, fold, or_zeros, sum_dtype, unfold, without_autocast

# Products in float32 have an error of some eps (|x|^2 + |y|^2). Distances below this part of the
# norms are computed again as differences. The relative error is then at most about 2e-4, and mostly
# 1e-6 (tests/kernels/test_ops.py).
CLOSE = 1 / 32
# Differences are faster than products up to B * Q * N * D of this size.
SMALL_FOR_PRODUCTS = 2**17
# Largest number of elements in a temporary copy.
CHUNK = 2**22


def sqdist(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (B, Q, N) of x (B, Q, D) and y (B, N, D), in plain PyTorch."""
    if x.dtype != sum_dtype(x.dtype):
        return sqdist(x.float(), y.float()).to(x.dtype)
    with without_autocast(x):
        size = x.shape[0] * x.shape[1] * y.shape[1] * x.shape[2]
        if x.device.type == "cpu" and size > SMALL_FOR_PRODUCTS:
            return _by_products(x, y)
        return _by_differences(x, y)


def sqdist_backward(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients (B, Q, D) and (B, N, D) from g (B, Q, N), in plain PyTorch."""
    # Products are inexact here as well. Float64 is exact enough and costs little on a CPU.
    wide = torch.float64 if x.device.type == "cpu" else sum_dtype(x.dtype)
    if x.dtype != wide:
        gx, gy = sqdist_backward(g.to(wide), x.to(wide), y.to(wide))
        return gx.to(x.dtype), gy.to(y.dtype)
    if not g.numel():
        return torch.zeros_like(x), torch.zeros_like(y)
    with without_autocast(x):
        x, y = centred(x, y)
        gx = torch.baddbmm(g.sum(2, keepdim=True) * x, g, y, beta=2, alpha=-2)
        gy = torch.baddbmm(g.sum(1).unsqueeze(2) * y, g.mT, x, beta=2, alpha=-2)
    return gx, gy


def centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both minus the mean of y, which makes their products more exact."""
    centre = y.mean(1, keepdim=True)
    return x - centre, y - centre


def _by_differences(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _squares(x: Tensor) -> Tensor:
    # One pass over x; x.square().sum(-1) makes three.
    return torch.linalg.vector_norm(x, dim=-1).square_()


def _by_products(x: Tensor, y: Tensor) -> Tensor:
    """Return |x|^2 + |y|^2 - 2xy, corrected by differences where it is inexact.

    On a CPU products are several times faster.
    """
    a, b = centred(x, y)
    norms = _squares(a).unsqueeze(2) + _squares(b).unsqueeze(1)
    distance = torch.baddbmm(norms, a, b.mT, alpha=-2)
    surplus = torch.sub(distance, norms, alpha=CLOSE)
    # A NaN compares as False, and is corrected too.
    if surplus.amin() >= 0:
        return distance
    index = (surplus >= 0).logical_not_().nonzero()
    if len(index) * 16 > distance.numel():
        return _by_differences(x, y)
    for part in index.split(max(1, CHUNK // x.shape[2])):
        task, q, n = part.unbind(1)
        distance[task, q, n] = (x[task, q] - y[task, n]).square().sum(-1)
    return distance


declare("sqdist(Tensor x, Tensor y) -> Tensor", sqdist)
declare("sqdist_backward(Tensor g, Tensor x, Tensor y) -> (Tensor, Tensor)", sqdist_backward)


@torch.library.register_fake("metazoo::sqdist")
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], y.shape[1])


@torch.library.register_fake("metazoo::sqdist_backward")
def _(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


@torch.library.register_vmap("metazoo::sqdist")
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    x, y = fold(info.batch_size, in_dims, x, y)
    return unfold(info.batch_size, torch.ops.metazoo.sqdist(x, y)), 0


@torch.library.register_vmap("metazoo::sqdist_backward")
def _(
    info: Any, in_dims: tuple[int | None, ...], g: Tensor, x: Tensor, y: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    gx, gy = torch.ops.metazoo.sqdist_backward(*fold(info.batch_size, in_dims, g, x, y))
    return (unfold(info.batch_size, gx), unfold(info.batch_size, gy)), (0, 0)


def inner(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return sum_d (x_q - y_n) (a_q - b_n), (B, Q, N), for x and a (B, Q, D), y and b (B, N, D)."""
    with without_autocast(x):
        (x, y), (a, b) = centred(x, y), centred(a, b)
        return (x * a).sum(-1).unsqueeze(2) + (y * b).sum(-1).unsqueeze(1) - x @ b.mT - a @ y.mT


class Distances(torch.autograd.Function):
    """`sqdist` with derivatives of every order, also under torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return torch.ops.metazoo.sqdist(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return Gradient.apply(g, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dy: Tensor | None) -> Tensor:  # type: ignore[override]
        x, y = ctx.saved_tensors
        return 2 * inner(x, y, or_zeros(dx, x), or_zeros(dy, y))


class Gradient(torch.autograd.Function):
    """`sqdist_backward` with derivatives of every order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.metazoo.sqdist_backward(g, x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        g, x, y = ctx.saved_tensors
        return 2 * inner(x, y, a, b), *Gradient.apply(g, a, b)

    @staticmethod
    def jvp(
        ctx: Any, dg: Tensor | None, dx: Tensor | None, dy: Tensor | None
    ) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        g, x, y = ctx.saved_tensors
        by_g = Gradient.apply(or_zeros(dg, g), x, y)
        by_points = Gradient.apply(g, or_zeros(dx, x), or_zeros(dy, y))
        return by_g[0] + by_points[0], by_g[1] + by_points[1]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (B, Q, N), differentiable to every order."""
    if differentiated(x, y):
        return Distances.apply(x, y)
    # The dispatcher takes as long as a small problem.
    if type(x) is type(y) is Tensor and not covers(x.device.type):
        return sqdist(x, y)
    return torch.ops.metazoo.sqdist(x, y)
