"""The operations with kernels; every algorithm calls them here.

On a GPU they run as the kernels of `csrc/` (docs/kernels.md), elsewhere as pure PyTorch, with the
same results. All but `sgd_update_` are differentiable to every order. They work under `torch.func`,
`torch.compile(fullgraph=True)` and autocast; autocast computes distances in float32, as for
torch.cdist. Distances and norms of float16 and bfloat16 are summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo import kernels
from metazoo.kernels.operators import has_autocast, sum_dtype

# As in torch.nn.utils.clip_grad_norm_.
CLIP_EPSILON = 1e-6
# On a CPU, differences in torch's own operations are fastest up to B * Q * N * D of this size.
SMALL = 2**16


def pairwise_sqdist(x: Tensor, y: Tensor, *, root: bool = False) -> Tensor:
    """Return squared Euclidean distances (B, Q, N) between x (B, Q, D) and y (B, N, D).

    With `root`, return the distances. B of x or y may be 1.

    Close points of large norm keep their precision; the expansion |x|^2 + |y|^2 - 2xy would be off
    by a third and more in float32. Second derivatives are right where points coincide, unlike those
    of `torch.cdist`; there the derivative of the root is 0. Raises ValueError for shapes that do
    not match.
    """
    x, y = _points(x, y, "pairwise_sqdist")
    dtype, wide = x.dtype, sum_dtype(x.dtype)
    size = x.shape[0] * x.shape[1] * y.shape[1] * x.shape[2]
    small = size <= SMALL and not kernels.covers(x.device.type)
    # The square of a float16 distance may overflow float16.
    if dtype != wide and (small or root):
        x, y = x.to(wide), y.to(wide)
    if small:
        distance = (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)
    else:
        distance = kernels.distance.distances(x, y)
    distance = _root(distance) if root else distance
    return distance if distance.dtype == dtype else distance.to(dtype)


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return cosines (B, Q, N) between x (B, Q, D) and y (B, N, D)."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


def prototypical_nll(query: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood under a softmax over negative squared distances.

    Shapes: query (B, Q, D), prototypes (B, N, D), integer targets (B, Q) in [0, N). Raises
    ValueError for shapes that do not match. A target out of range raises IndexError in PyTorch; a
    kernel returns NaN instead. Snell et al. 2017 (arXiv:1703.05175), eq. 2.
    """
    query, prototypes = _points(query, prototypes, "prototypical_nll")
    if target.shape != query.shape[:2]:
        raise ValueError(
            f"prototypical_nll takes one target per query, {tuple(query.shape[:2])}, not {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"prototypical_nll takes targets that are whole numbers, not {target.dtype}"
        )
    target = target.long()
    if kernels.covers(query.device.type):
        return kernels.prototypical.mean_nll(query, prototypes, target).to(query.dtype)
    dtype = sum_dtype(query.dtype)
    logits = -pairwise_sqdist(query.to(dtype), prototypes.to(dtype)).flatten(0, 1)
    # The default ignore_index, -100, would hide targets that are out of range.
    nothing = torch.iinfo(torch.int64).min
    loss = F.cross_entropy(logits, target.flatten(), ignore_index=nothing)
    return loss.to(query.dtype)


@overload
def sgd_update(
    params: Tensor,
    grads: Tensor | Sequence[Tensor],
    lr: Tensor | float,
    *,
    velocity: None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> Tensor: ...


@overload
def sgd_update(
    params: Tensor,
    grads: Tensor | Sequence[Tensor],
    lr: Tensor | float,
    *,
    velocity: Tensor,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> tuple[Tensor, Tensor]: ...


def sgd_update(
    params: Tensor,
    grads: Tensor | Sequence[Tensor],
    lr: Tensor | float,
    *,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the parameters of all tasks after an inner step of SGD.

    With `velocity`, also return the new velocity.

    The step is that of torch.optim.SGD after clip_grad_norm_: each task's gradient is scaled down
    to `max_norm`, `weight_decay` times the parameters is added, and the velocity v becomes
    `momentum` * v plus the result. Raises ValueError for shapes or types that do not match, and for
    momentum without velocity.

    Args:
        params: (T, P), or (P,) for one task
        grads: like params, or tensors (T, *) that make up params in this order; one launch gathers
            them
        lr: a number, or a tensor that broadcasts against params: (), (P,), (T, 1), (T, P)
        velocity: like params
        momentum: factor of the velocity
        weight_decay: factor of the parameters
        max_norm: largest norm of a task's gradient
    """
    update = _Step(params, grads, lr, velocity, momentum, weight_decay, max_norm)
    if update.has_kernel:
        after, v = kernels.sgd.updated(
            update.params,
            update.grads,
            update.lr,
            update.velocity,
            update.scale,
            update.factor,
            momentum,
            weight_decay,
        )
    else:
        # Without momentum, decay or clipping, one operation of torch has less overhead than ours.
        v = kernels.sgd.change(
            update.params, update.grads, update.velocity, update.scale, momentum, weight_decay
        )
        after = kernels.sgd.step(update.params, v, update.lr, update.factor)
    after = after.view(params.shape)
    return after if velocity is None else (after, v.view(params.shape))


@torch.no_grad()
def sgd_update_(
    params: Tensor,
    grads: Tensor | Sequence[Tensor],
    lr: Tensor | float,
    *,
    velocity: Tensor | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> Tensor:
    """Take the step of `sgd_update` in place, on contiguous params and velocity, and return params.

    It records no derivatives. Raises ValueError as `sgd_update` does, and for a buffer that is not
    contiguous.
    """
    if not params.is_contiguous() or (velocity is not None and not velocity.is_contiguous()):
        raise ValueError(
            "sgd_update_ takes contiguous buffers; call .contiguous() on params and velocity first"
        )
    update = _Step(params, grads, lr, velocity, momentum, weight_decay, max_norm)
    take = torch.ops.metazoo.sgd_update_ if update.has_kernel else kernels.sgd.sgd_update_
    take(
        update.params,
        update.grads,
        update.lr,
        update.velocity,
        update.scale,
        update.factor,
        momentum,
        weight_decay,
    )
    if update.has_kernel and not torch.compiler.is_compiling():
        # Autograd does not see a kernel's writes, and must know that saved buffers have changed.
        torch.autograd.graph.increment_version([params] if velocity is None else [params, velocity])
    return params


class _Step:
    """The checked arguments of a step, in the operator's form.

    `params` and `velocity` are (T, P), `grads` is a list of (T, *), `lr` is (T or 1, P or 1), and
    `scale` (T,) is each task's clipping factor.
    """

    def __init__(
        self,
        params: Tensor,
        grads: Tensor | Sequence[Tensor],
        lr: Tensor | float,
        velocity: Tensor | None,
        momentum: float,
        weight_decay: float,
        max_norm: float | None,
    ):
        _mark_for_compiler()
        if momentum and velocity is None:
            raise ValueError(
                "sgd_update takes momentum together with velocity; begin with torch.zeros_like(params)"
            )
        listed = [grads] if isinstance(grads, Tensor) else list(grads)
        _check_buffers(params, velocity)
        _check_types(params, listed, velocity)
        single = params.dim() == 1
        self.params = params.unsqueeze(0) if single else params
        self.velocity = velocity.unsqueeze(0) if velocity is not None and single else velocity
        self.grads = self._gradients(listed, single)
        self.factor = 1.0 if isinstance(lr, Tensor) else lr
        self.lr = self._rate(lr) if isinstance(lr, Tensor) else None
        covered = kernels.covers(params.device.type)
        self.has_kernel = covered and (
            len(listed) > 1 or velocity is not None or weight_decay != 0 or max_norm is not None
        )
        self.scale = None if max_norm is None else self._clipping(max_norm, covered)

    def _gradients(self, given: list[Tensor], single: bool) -> list[Tensor]:
        grads = [g.unsqueeze(0) for g in given] if single else given
        # The gradient of a scalar parameter is (T,).
        grads = [g.unsqueeze(1) if g.dim() == 1 else g for g in grads]
        tasks, size = self.params.shape
        if (
            not grads
            or sum(g.shape[1:].numel() for g in grads) != size
            or any(g.shape[0] != tasks for g in grads)
        ):
            raise ValueError(
                f"sgd_update takes gradients of all of params {tuple(self.params.shape[single:])}, not {[tuple(g.shape) for g in given]}"
            )
        return grads

    def _rate(self, lr: Tensor) -> Tensor:
        rate = lr.to(self.params.device, self.params.dtype)
        rate = rate.view(*[1] * (2 - rate.dim()), *rate.shape) if rate.dim() < 2 else rate
        if rate.dim() > 2 or any(r not in (1, p) for r, p in zip(rate.shape, self.params.shape)):
            raise ValueError(
                f"sgd_update takes a rate that broadcasts against params {tuple(self.params.shape)}, not {tuple(lr.shape)}; "
                "one for each task is (T, 1)"
            )
        return rate

    def _clipping(self, max_norm: float, covered: bool) -> Tensor:
        if max_norm <= 0:
            raise ValueError(f"sgd_update takes a max_norm above 0, not {max_norm}")
        square = kernels.sgd.squared if covered else kernels.sgd.square_norm
        return (max_norm / (_root(square(self.grads)) + CLIP_EPSILON)).clamp(max=1.0)


def _check_buffers(params: Tensor, velocity: Tensor | None) -> None:
    if params.dim() not in (1, 2) or (velocity is not None and velocity.shape != params.shape):
        given = f"{tuple(params.shape)}"
        if velocity is not None:
            given += f" and velocity {tuple(velocity.shape)}"
        raise ValueError(
            f"sgd_update takes params (T, P) or (P,), and velocity like params, not params {given}"
        )


def _check_types(params: Tensor, grads: Sequence[Tensor | None], velocity: Tensor | None) -> None:
    if any(g is None for g in grads):
        raise ValueError(
            "sgd_update takes a gradient for every parameter; where one is None, give zeros"
        )
    types = {t.dtype for t in (params, *grads, velocity) if t is not None}
    if len(types) > 1 or not params.is_floating_point():
        raise ValueError(
            f"sgd_update takes floating-point numbers of one type, not {', '.join(sorted(map(str, types)))}"
        )


def _points(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return both as (B, *, D) of one type, with B broadcast; float32 under autocast."""
    _mark_for_compiler()
    if (
        x.dim() != 3
        or y.dim() != 3
        or x.shape[2] != y.shape[2]
        or (x.shape[0] != y.shape[0] and 1 not in (x.shape[0], y.shape[0]))
    ):
        raise ValueError(
            f"{name} takes points of shape (B, Q, D) and (B, N, D), not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    dtype = torch.promote_types(x.dtype, y.dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"{name} takes floating-point numbers, not {x.dtype} and {y.dtype}")
    if has_autocast(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = sum_dtype(dtype)
    if x.shape[0] != y.shape[0]:
        tasks = y.shape[0] if x.shape[0] == 1 else x.shape[0]
        x, y = x.expand(tasks, -1, -1), y.expand(tasks, -1, -1)
    return x if x.dtype == dtype else x.to(dtype), y if y.dtype == dtype else y.to(dtype)


def _mark_for_compiler() -> None:
    if torch.compiler.is_compiling():
        from metazoo.kernels import compiling  # noqa: F401  its import sets the marks


def _root(square: Tensor) -> Tensor:
    """Return the square root, with derivative 0 at 0."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
