"""The loss of Prototypical Networks: the operators `metazoo::prototypical_nll` and `..._backward`.

A softmax over negative squared distances to the prototypes (Snell, Swersky and Zemel 2017,
arXiv:1703.05175, equation 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .distance import Gradient, inner, sqdist, sqdist_backward
from .operators import declare, differentiated, fold, or_zeros, sum_dtype, unfold


def prototypical_nll(query: Tensor, prototypes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return each query's negative log-likelihood (B, Q) and the probabilities (B, Q, N).

    Results for half types are float32.
    """
    dtype = sum_dtype(query.dtype)
    log_prob = (-sqdist(query.to(dtype), prototypes.to(dtype))).log_softmax(-1)
    return -log_prob.gather(-1, target.unsqueeze(-1)).squeeze(-1), log_prob.exp()


def prototypical_nll_backward(
    g: Tensor, prob: Tensor, query: Tensor, prototypes: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients (B, Q, D) and (B, N, D) from g (B, Q)."""
    by_distance = g.unsqueeze(-1) * nll_slope(prob, target)
    gx, gy = sqdist_backward(by_distance, query.to(g.dtype), prototypes.to(g.dtype))
    return gx.to(query.dtype), gy.to(query.dtype)


def nll_slope(prob: Tensor, target: Tensor) -> Tensor:
    """Return the derivative (B, Q, N) of the negative log-likelihoods by the squared distances."""
    # The shape of F.one_hot depends on data, which torch.compile cannot trace twice.
    member = target.unsqueeze(-1) == torch.arange(prob.shape[-1], device=prob.device)
    return member.to(prob.dtype) - prob


declare(
    "prototypical_nll(Tensor query, Tensor prototypes, Tensor target) -> (Tensor, Tensor)",
    prototypical_nll,
)
declare(
    "prototypical_nll_backward(Tensor g, Tensor prob, Tensor query, Tensor prototypes, "
    "Tensor target) -> (Tensor, Tensor)",
    prototypical_nll_backward,
)


@torch.library.register_fake("metazoo::prototypical_nll")
def _(query: Tensor, prototypes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype, (tasks, queries), ways = sum_dtype(query.dtype), query.shape[:2], prototypes.shape[1]
    nll = query.new_empty(tasks, queries, dtype=dtype)
    return nll, query.new_empty(tasks, queries, ways, dtype=dtype)


@torch.library.register_fake("metazoo::prototypical_nll_backward")
def _(
    g: Tensor, prob: Tensor, query: Tensor, prototypes: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), prototypes.new_empty(prototypes.shape)


@torch.library.register_vmap("metazoo::prototypical_nll")
def _(
    info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    nll, prob = torch.ops.metazoo.prototypical_nll(*fold(info.batch_size, in_dims, *tensors))
    return (unfold(info.batch_size, nll), unfold(info.batch_size, prob)), (0, 0)


@torch.library.register_vmap("metazoo::prototypical_nll_backward")
def _(
    info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    gx, gy = torch.ops.metazoo.prototypical_nll_backward(*fold(info.batch_size, in_dims, *tensors))
    return (unfold(info.batch_size, gx), unfold(info.batch_size, gy)), (0, 0)


class PrototypicalNLL(torch.autograd.Function):
    """The mean negative log-likelihood and the probabilities, with derivatives of every order.

    The probabilities are an output because the derivatives need them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, prototypes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        nll, prob = torch.ops.metazoo.prototypical_nll(query, prototypes, target)
        return nll.mean(), prob

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, output[1])
        ctx.save_for_forward(*inputs, output[1])

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, by_prob: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        query, prototypes, target, prob = ctx.saved_tensors
        if g is None and by_prob is None:
            return None, None, None
        each = None if g is None else (g / target.numel()).expand(target.shape)
        if each is not None and by_prob is None and not torch.is_grad_enabled():
            backward = torch.ops.metazoo.prototypical_nll_backward
            return *backward(each, prob, query, prototypes, target), None
        by_distance = torch.zeros_like(prob)
        if each is not None:
            by_distance = by_distance + each.unsqueeze(-1) * nll_slope(prob, target)
        if by_prob is not None:
            by_distance = by_distance - prob * (by_prob - (by_prob * prob).sum(-1, keepdim=True))
        gx, gy = Gradient.apply(by_distance, query.to(prob.dtype), prototypes.to(prob.dtype))
        return gx.to(query.dtype), gy.to(query.dtype), None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dq: Tensor | None, dp: Tensor | None, _: None
    ) -> tuple[Tensor, Tensor]:
        query, prototypes, target, prob = ctx.saved_tensors
        change = 2 * inner(query, prototypes, or_zeros(dq, query), or_zeros(dp, prototypes))
        change = change.to(prob.dtype)
        loss = (nll_slope(prob, target) * change).sum(-1).mean()
        return loss, -prob * (change - (prob * change).sum(-1, keepdim=True))


def mean_nll(query: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood, differentiable to every order."""
    if differentiated(query, prototypes):
        return PrototypicalNLL.apply(query, prototypes, target)[0]
    return torch.ops.metazoo.prototypical_nll(query, prototypes, target)[0].mean()
