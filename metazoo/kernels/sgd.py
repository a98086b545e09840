"""Inner-loop steps: the operators `metazoo::sgd_update`, `sgd_update_` and `square_norm`.

With h = scale * gradient + weight_decay * params and v = momentum * velocity + h, a step returns
params - factor * lr * v. `params` and `velocity` are (T, P), `lr` is (T or 1, P or 1), `scale` is
(T,). The gradient is a list of tensors (T, *) that make up params in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .operators import declare, differentiated, fold, or_zeros, sum_dtype, unfold


def gather(gradient: Sequence[Tensor]) -> Tensor:
    """Return tensors (T, *) concatenated to (T, P)."""
    rows = [g.flatten(1) for g in gradient]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def change(
    params: Tensor,
    gradient: Sequence[Tensor],
    velocity: Tensor | None,
    scale: Tensor | None,
    momentum: float,
    weight_decay: float,
) -> Tensor:
    """Return v (T, P), which a step multiplies by the rate."""
    h = gather(gradient)
    if scale is not None:
        h = (scale.unsqueeze(1) * h).to(params.dtype)
    if weight_decay:
        h = torch.add(h, params, alpha=weight_decay)
    return h if velocity is None else torch.add(h, velocity, alpha=momentum)


def step(params: Tensor, by: Tensor, lr: Tensor | None, factor: float) -> Tensor:
    """Return params - factor * lr * by."""
    return (
        torch.sub(params, by, alpha=factor)
        if lr is None
        else torch.addcmul(params, lr, by, value=-factor)
    )


def sgd_update(
    params: Tensor,
    gradient: Sequence[Tensor],
    lr: Tensor | None,
    velocity: Tensor | None,
    scale: Tensor | None,
    factor: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """Return the new parameters and velocity (empty if there is none), in plain PyTorch."""
    v = change(params, gradient, velocity, scale, momentum, weight_decay)
    after = step(params, v, lr, factor)
    # An operator must not return the same tensor twice or a view of an input.
    if velocity is None:
        return after, params.new_empty(0, params.shape[1])
    return after, v


def sgd_update_(
    params: Tensor,
    gradient: Sequence[Tensor],
    lr: Tensor | None,
    velocity: Tensor | None,
    scale: Tensor | None,
    factor: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Take a step in place, in plain PyTorch."""
    if lr is None and velocity is None and scale is None and not weight_decay:
        # A plain subtraction does not need the gathered copy.
        for piece, g in zip(params.split([g.shape[1:].numel() for g in gradient], 1), gradient):
            piece.sub_(g.flatten(1), alpha=factor)
        return
    v = change(params, gradient, velocity, scale, momentum, weight_decay)
    if velocity is not None:
        velocity.copy_(v)
    if lr is None:
        params.sub_(v, alpha=factor)
    else:
        params.addcmul_(lr, v, value=-factor)


def square_norm(gradient: Sequence[Tensor]) -> Tensor:
    """Return each task's sum of squares over all tensors, (T,), in plain PyTorch.

    The sum of half types is float32.
    """
    dtype = sum_dtype(gradient[0].dtype)
    return torch.stack([g.flatten(1).to(dtype).square().sum(1) for g in gradient]).sum(0)


_ARGUMENTS = (
    "Tensor[] gradient, Tensor? lr, {velocity} velocity, Tensor? scale, "
    "float factor, float momentum, float weight_decay"
)
declare(
    f"sgd_update(Tensor params, {_ARGUMENTS.format(velocity='Tensor?')}) -> (Tensor, Tensor)",
    sgd_update,
)
declare(
    f"sgd_update_(Tensor(a!) params, {_ARGUMENTS.format(velocity='Tensor(b!)?')}) -> ()",
    sgd_update_,
)
declare("square_norm(Tensor[] gradient) -> Tensor", square_norm)


@torch.library.register_fake("metazoo::sgd_update")
def _(
    params: Tensor, gradient: list[Tensor], lr: Tensor | None, velocity: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    tasks, size = params.shape
    v = params.new_empty(0 if velocity is None else tasks, size)
    return params.new_empty(params.shape), v


@torch.library.register_fake("metazoo::sgd_update_")
def _(*_: Any) -> None:
    return None


@torch.library.register_fake("metazoo::square_norm")
def _(gradient: list[Tensor]) -> Tensor:
    return gradient[0].new_empty(gradient[0].shape[0], dtype=sum_dtype(gradient[0].dtype))


def _batched_update(
    info: Any,
    in_dims: tuple[Any, ...],
    params: Tensor,
    gradient: list[Tensor],
    lr: Tensor | None,
    velocity: Tensor | None,
    scale: Tensor | None,
    factor: float,
    momentum: float,
    weight_decay: float,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    size = info.batch_size
    tasks = params.shape[0] if in_dims[0] is None else params.movedim(in_dims[0], 0).shape[1]
    if lr is not None and not (in_dims[2] is None and lr.shape[0] == 1):
        lr = lr.unsqueeze(0) if in_dims[2] is None else lr.movedim(in_dims[2], 0)
        lr = lr.expand(size, tasks, lr.shape[-1]).flatten(0, 1)
    after, v = torch.ops.metazoo.sgd_update(
        fold(size, in_dims[:1], params)[0],
        fold(size, in_dims[1], *gradient),
        lr,
        None if velocity is None else fold(size, in_dims[3:4], velocity)[0],
        None if scale is None else fold(size, in_dims[4:5], scale)[0],
        factor,
        momentum,
        weight_decay,
    )
    return (unfold(size, after), unfold(size, v)), (0, 0)


torch.library.register_vmap("metazoo::sgd_update", _batched_update)


@torch.library.register_vmap("metazoo::sgd_update_")
def _(
    info: Any, in_dims: tuple[Any, ...], params: Tensor, gradient: list[Tensor], *rest: Any
) -> tuple[None, None]:
    velocity = rest[1]
    if in_dims[0] is None or (velocity is not None and in_dims[3] is None):
        raise RuntimeError(
            "vmap: sgd_update_ cannot write several steps into one buffer; give each its own, or use sgd_update"
        )
    (after, v), _ = _batched_update(info, in_dims, params, gradient, *rest)
    params.movedim(in_dims[0], 0).copy_(after)
    if velocity is not None:
        velocity.movedim(in_dims[3], 0).copy_(v)
    return None, None


@torch.library.register_vmap("metazoo::square_norm")
def _(info: Any, in_dims: tuple[Any, ...], gradient: list[Tensor]) -> tuple[Tensor, int]:
    squares = torch.ops.metazoo.square_norm(fold(info.batch_size, in_dims[0], *gradient))
    return unfold(info.batch_size, squares), 0


class SGDUpdate(torch.autograd.Function):
    """`sgd_update` with derivatives of every order, also under torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        params: Tensor,
        lr: Tensor | None,
        velocity: Tensor | None,
        scale: Tensor | None,
        factor: float,
        momentum: float,
        weight_decay: float,
        *gradient: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.metazoo.sgd_update(
            params, list(gradient), lr, velocity, scale, factor, momentum, weight_decay
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        params, lr, velocity, scale, ctx.factor, ctx.momentum, ctx.weight_decay, *gradient = inputs
        ctx.set_materialize_grads(False)
        if velocity is None:
            ctx.mark_non_differentiable(output[1])
        tensors = (params, lr, velocity, scale, *gradient)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, g_velocity: Tensor | None
    ) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        params, lr, velocity, scale, *gradient = ctx.saved_tensors
        rate = ctx.factor if lr is None else ctx.factor * lr
        g_v = _sum(None if g is None else -rate * g, g_velocity)
        if g_v is None:
            return (None,) * (7 + len(gradient))
        by_params = _sum(g, ctx.weight_decay * g_v if ctx.weight_decay else None)
        by_lr = None
        if lr is not None and g is not None and ctx.needs_input_grad[1]:
            taken = change(params, gradient, velocity, scale, ctx.momentum, ctx.weight_decay)
            by_lr = (-ctx.factor * g * taken).sum_to_size(lr.shape)
        by_scale = None
        if scale is not None and ctx.needs_input_grad[3]:
            by_scale = (g_v * gather(gradient)).sum(1).to(scale.dtype)
        by_velocity = None if velocity is None else ctx.momentum * g_v
        flat = g_v if scale is None else (scale.unsqueeze(1) * g_v).to(g_v.dtype)
        pieces = flat.split([g.shape[1:].numel() for g in gradient], 1)
        by_gradient = [piece.reshape(g.shape) for piece, g in zip(pieces, gradient)]
        return by_params, by_lr, by_velocity, by_scale, None, None, None, *by_gradient

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        params, lr, velocity, scale, *gradient = ctx.saved_tensors
        d_params = or_zeros(tangents[0], params)
        d_velocity = None if velocity is None else or_zeros(tangents[2], velocity)
        d_gradient = [or_zeros(d, g) for d, g in zip(tangents[7:], gradient)]
        d_v = change(d_params, d_gradient, d_velocity, scale, ctx.momentum, ctx.weight_decay)
        if scale is not None and tangents[3] is not None:
            d_v = d_v + (tangents[3].unsqueeze(1) * gather(gradient)).to(d_v.dtype)
        d_after = step(d_params, d_v, lr, ctx.factor)
        if lr is not None and tangents[1] is not None:
            taken = change(params, gradient, velocity, scale, ctx.momentum, ctx.weight_decay)
            d_after = step(d_after, taken, tangents[1], ctx.factor)
        return d_after, None if velocity is None else d_v


class SquareNorm(torch.autograd.Function):
    """`square_norm` with derivatives of every order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*gradient: Tensor) -> Tensor:
        return torch.ops.metazoo.square_norm(list(gradient))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(
            (2 * g.view(-1, *[1] * (t.dim() - 1)) * t).to(t.dtype) for t in ctx.saved_tensors
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
        pairs = zip(ctx.saved_tensors, tangents)
        return torch.stack([2 * (t * or_zeros(d, t)).flatten(1).sum(1) for t, d in pairs]).sum(0)


def updated(
    params: Tensor,
    gradient: Sequence[Tensor],
    lr: Tensor | None,
    velocity: Tensor | None,
    scale: Tensor | None,
    factor: float,
    momentum: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """Return the operator `sgd_update`, differentiable to every order."""
    if not differentiated(params, lr, velocity, scale, *gradient):
        return torch.ops.metazoo.sgd_update(
            params, gradient, lr, velocity, scale, factor, momentum, weight_decay
        )
    return SGDUpdate.apply(params, lr, velocity, scale, factor, momentum, weight_decay, *gradient)


def squared(gradient: Sequence[Tensor]) -> Tensor:
    """Return the operator `square_norm`, differentiable to every order."""
    if differentiated(*gradient):
        return SquareNorm.apply(*gradient)
    return torch.ops.metazoo.square_norm(gradient)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients; None is zero."""
    return b if a is None else a if b is None else a + b
