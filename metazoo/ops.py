"""The operations that kernels exist for, as pure PyTorch; every algorithm reaches them through here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise_sqdist(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances (B, Q, N) between x (B, Q, D) and y (B, N, D).

    By direct differences: the expansion |x|^2 + |y|^2 - 2xy is off by a third and more, in float32, for close points of
    large norm, and `torch.cdist` has no second derivative for 25 points or fewer.
    """
    return (x.unsqueeze(2) - y.unsqueeze(1)).square().sum(-1)


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Return cosines (B, Q, N) between x (B, Q, D) and y (B, N, D)."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


def prototypical_nll(query: Tensor, prototypes: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of targets (B, Q) under a softmax over negative squared distances.

    Shapes: query (B, Q, D), prototypes (B, N, D). Snell et al. 2017 (arXiv:1703.05175), equation 2.
    """
    return F.cross_entropy(-pairwise_sqdist(query, prototypes).flatten(0, 1), target.flatten())


def sgd_update(params: Tensor, grads: Tensor, lr: Tensor | float) -> Tensor:
    """Return params - lr * grads: one inner step for parameters that lie flat in the last dimension.

    Shapes: params and grads (..., P); lr is a number or broadcasts against them: (P,) for a rate per parameter.
    """
    return params - lr * grads
