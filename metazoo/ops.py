"""The operations that kernels exist for; every algorithm reaches them through here.

On a GPU they run as the kernels of `csrc/` (docs/kernels.md), elsewhere as pure PyTorch, with the same answers. All but the one
in place are differentiable to every order, and work under `torch.func`, `torch.compile(fullgraph=True)` and autocast, where
distances are float32 as torch.cdist's are. Distances and norms of float16 and bfloat16 are summed up in float32.
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
# Up to so many numbers (B * Q * N * D) the differences themselves, in torch's own operations, are the quickest on a CPU.
FEW = 2**16


def pairwise_sqdist(x: Tensor, y: Tensor, *, root: bool = False) -> Tensor:
    """Return squared Euclidean distances (B, Q, N) between x (B, Q, D) and y (B, N, D), or with `root` the distances.

    Close points of large norm are told apart: of those the expansion |x|^2 + |y|^2 - 2xy is off by a third and more, in
    float32. Coincident points have the right second derivative, for which `torch.cdist` has none or a wrong one; the derivative
    of their root is 0. Either B may be 1. Raises ValueError where the shapes do not fit together.
    """
    x, y = _points(x, y, "pairwise_sqdist")
    dtype, wide = x.dtype, sum_dtype(x.dtype)
    few = (
        not kernels.covers(x.device.type)
        and x.shape[0] * x.shape[1] * y.shape[1] * x.shape[2] <= FEW
    )
    if dtype != wide and (
        few or root
    ):  # the square of a distance that float16 can hold may be one that it cannot
        x, y = x.to(wide), y.to(wide)
    distance = (
        (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)
        if few
        else kernels.distance.distances(x, y)
    )
    distance = _root(distance) if root else distance
    return distance if distance.dtype == dtype else distance.to(dtype)


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return cosines (B, Q, N) between x (B, Q, D) and y (B, N, D)."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


def prototypical_nll(query: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of targets (B, Q) under a softmax over negative squared distances.

    Shapes: query (B, Q, D), prototypes (B, N, D); targets are int64 in [0, N). Snell et al. 2017 (arXiv:1703.05175), eq. 2.
    Raises ValueError where the shapes do not fit together. A target out of range raises IndexError or, in a kernel, which
    cannot raise, makes the result NaN.
    """
    query, prototypes = _points(query, prototypes, "prototypical_nll")
    if target.shape != query.shape[:2]:
        raise ValueError(
            f"prototypical_nll takes a target for each query, {tuple(query.shape[:2])}, not {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"prototypical_nll takes targets that are whole numbers, not {target.dtype}"
        )
    target = target.long()
    if kernels.covers(query.device.type):
        return kernels.prototypical.mean_nll(query, prototypes, target).to(query.dtype)
    dtype = sum_dtype(query.dtype)
    logits = -pairwise_sqdist(query.to(dtype), prototypes.to(dtype))
    # No number stands for "leave this one out", as -100 does by default.
    nothing = torch.iinfo(torch.int64).min
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=nothing).to(
        query.dtype
    )


@overload
def sgd_update(
    params: Tensor, grads: Tensor | Sequence[Tensor], lr: Tensor | float, *, velocity: None = None, momentum: float = 0.0,
    weight_decay: float = 0.0, max_norm: float | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def sgd_update(
    params: Tensor, grads: Tensor | Sequence[Tensor], lr: Tensor | float, *, velocity: Tensor, momentum: float = 0.0,
    weight_decay: float = 0.0, max_norm: float | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def sgd_update(
    params: Tensor, grads: Tensor | Sequence[Tensor], lr: Tensor | float, *, velocity: Tensor | None = None,
    momentum: float = 0.0, weight_decay: float = 0.0, max_norm: float | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Return the parameters of all tasks after an inner step of gradient descent; with `velocity`, also the new velocity.

    Shapes: params (T, P), or (P,) for one task; grads the same, or the tensors (T, *) that lie in params one behind the other,
    which are gathered in the same launch; lr a number, or a tensor that broadcasts against params: (), (P,), (T, 1), (T, P).

    As torch.optim.SGD after clip_grad_norm_: each task's gradient is scaled down to `max_norm`, `weight_decay` times the
    parameters are added, and with velocity v the step is lr * (momentum * v + that). Raises ValueError where shapes or types do
    not fit together, or there is momentum and no velocity.
    """
    at = _Step(params, grads, lr, velocity, momentum, weight_decay, max_norm)
    if at.worth_a_kernel:
        after, v = kernels.sgd.updated(
            at.params, at.grads, at.lr, at.velocity, at.scale, at.factor, momentum, weight_decay
        )
    else:
        # One flat gradient at a rate is one operation of torch's own, with less overhead than ours.
        v = kernels.sgd.change(at.params, at.grads, at.velocity, at.scale, momentum, weight_decay)
        after = kernels.sgd.step(at.params, v, at.lr, at.factor)
    return (
        after.view(params.shape)
        if velocity is None
        else (after.view(params.shape), v.view(params.shape))
    )


@torch.no_grad()
def sgd_update_(
    params: Tensor, grads: Tensor | Sequence[Tensor], lr: Tensor | float, *, velocity: Tensor | None = None,
    momentum: float = 0.0, weight_decay: float = 0.0, max_norm: float | None = None,
) -> Tensor:  # fmt: skip
    """Take the step of `sgd_update` in place, on contiguous params and velocity, and return params.

    It is for adaptation at test time: nothing is recorded for derivatives. Raises ValueError where `sgd_update` does, and where
    a buffer is not contiguous.
    """
    if not params.is_contiguous() or (velocity is not None and not velocity.is_contiguous()):
        raise ValueError(
            "sgd_update_ changes contiguous buffers alone; call .contiguous() on params and velocity first"
        )
    at = _Step(params, grads, lr, velocity, momentum, weight_decay, max_norm)
    take = torch.ops.metazoo.sgd_update_ if at.worth_a_kernel else kernels.sgd.sgd_update_
    take(at.params, at.grads, at.lr, at.velocity, at.scale, at.factor, momentum, weight_decay)
    if at.worth_a_kernel and not torch.compiler.is_compiling():
        # A kernel writes behind autograd's back; whoever saved these buffers for a derivative must hear of it.
        torch.autograd.graph.increment_version([params] if velocity is None else [params, velocity])
    return params


class _Step:
    """The arguments of a step in the operator's form: (T, P) buffers, a list of gradients, a rate of (T or 1, P or 1)."""

    def __init__(
        self, params: Tensor, grads: Tensor | Sequence[Tensor], lr: Tensor | float, velocity: Tensor | None, momentum: float,
        weight_decay: float, max_norm: float | None,
    ):  # fmt: skip
        _mark_for_compiler()
        if momentum and velocity is None:
            raise ValueError(
                "sgd_update takes momentum together with velocity; begin with torch.zeros_like(params)"
            )
        if params.dim() not in (1, 2) or (velocity is not None and velocity.shape != params.shape):
            given = (
                tuple(params.shape)
                if velocity is None
                else f"{tuple(params.shape)} and velocity {tuple(velocity.shape)}"
            )
            raise ValueError(
                f"sgd_update takes params (T, P) or (P,), and velocity like params, not params {given}"
            )
        listed = [grads] if isinstance(grads, Tensor) else list(grads)
        if None in [g if g is None else 0 for g in listed]:
            raise ValueError(
                "sgd_update takes a gradient for every parameter; where one is None, give zeros"
            )
        types = {
            params.dtype,
            *(g.dtype for g in listed),
            *(() if velocity is None else (velocity.dtype,)),
        }
        if types != {params.dtype} or not params.is_floating_point():
            raise ValueError(
                f"sgd_update takes floating-point numbers of one type, not {', '.join(sorted(map(str, types)))}"
            )
        single = params.dim() == 1
        self.params = params.unsqueeze(0) if single else params
        self.velocity = velocity.unsqueeze(0) if velocity is not None and single else velocity
        self.grads = [g.unsqueeze(0) for g in listed] if single else listed
        self.grads = [
            g.unsqueeze(1) if g.dim() == 1 else g for g in self.grads
        ]  # of a parameter that is one number
        size = sum(g.shape[1:].numel() for g in self.grads)
        if (
            not listed
            or size != params.shape[-1]
            or any(g.shape[:1] != self.params.shape[:1] for g in self.grads)
        ):
            raise ValueError(
                f"sgd_update takes gradients of all of params {tuple(params.shape)}, not {[tuple(g.shape) for g in listed]}"
            )
        self.factor = 1.0 if isinstance(lr, Tensor) else lr
        self.lr = self._rate(lr) if isinstance(lr, Tensor) else None
        covered = kernels.covers(params.device.type)
        self.worth_a_kernel = covered and (
            len(listed) > 1 or velocity is not None or weight_decay != 0 or max_norm is not None
        )
        self.scale = None
        if max_norm is not None:
            if max_norm <= 0:
                raise ValueError(f"sgd_update takes a max_norm above 0, not {max_norm}")
            norm = _root(
                kernels.sgd.squared(self.grads) if covered else kernels.sgd.square_norm(self.grads)
            )
            self.scale = (max_norm / (norm + CLIP_EPSILON)).clamp(max=1.0)

    def _rate(self, lr: Tensor) -> Tensor:
        rate = lr.to(self.params.device, self.params.dtype)
        rate = rate.view(*[1] * (2 - rate.dim()), *rate.shape) if rate.dim() < 2 else rate
        if rate.dim() > 2 or any(r not in (1, p) for r, p in zip(rate.shape, self.params.shape)):
            raise ValueError(
                f"sgd_update takes a rate that broadcasts against params {tuple(self.params.shape)}, not {tuple(lr.shape)}; "
                "one for each task is (T, 1)"
            )
        return rate


def _points(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return both as (B, *, D) of one type, B broadcast; as float32 under autocast."""
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
