"""Matching Networks: Vinyals et al. 2016, "Matching Networks for One Shot Learning" (arXiv:1606.04080)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo import Range, ops


class MatchingNet(metazoo.FeatureLearner):
    """Classifies a query by attention over the support: a class's probability is the attention that its examples get.

    Attention is a softmax over similarities (equations 1 and 2), and the logits are the logarithms of the probabilities.
    With `fce` each support embedding is read in the context of the others, and each query's in that of the support
    (section 2.1.2).
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        similarity: Annotated[
            Literal["cosine", "euclidean"], "cosine, or negative squared Euclidean distance"
        ] = "cosine"
        temperature: Annotated[
            float,
            "of the softmax of cosines, where it is learned its start; the paper's is 1, which hardly trains",
            Range(1e-4),
        ] = 0.1
        learn_temperature: Annotated[bool, "learn it; the paper does not"] = True
        fce: Annotated[bool, "full-context embeddings"] = False
        fce_steps: Annotated[int, "times that a query reads the support, with fce", Range(1)] = 5

    recipe = {"train_ways": 20, "train_queries": 10, "steps": 2000}

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        learned = self.config.similarity == "cosine" and self.config.learn_temperature
        self.log_scale = (
            nn.Parameter(-torch.tensor(self.config.temperature).log()) if learned else None
        )
        if self.config.fce:
            self.context = FullContext(backbone.out_features, self.config.fce_steps)

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        if self.config.fce:
            # The support is a set, but an LSTM reads a sequence: class by class, in whatever order it was given.
            order = support_y.argsort(dim=1, stable=True)
            support_y = support_y.gather(1, order)
            support_z = support_z.gather(1, order.unsqueeze(-1).expand_as(support_z))
            support_z, query_z = self.context(support_z, query_z)
        return class_log_attention(self.similarity(query_z, support_z), support_y)

    def similarity(self, query_z: Tensor, support_z: Tensor) -> Tensor:
        """Return what attention is a softmax of: (B, Q, S) from (B, Q, D) and (B, S, D)."""
        if self.config.similarity == "euclidean":
            return -ops.pairwise_sqdist(query_z, support_z)
        cosines = ops.cosine_similarity(query_z, support_z)
        return (
            cosines / self.config.temperature
            if self.log_scale is None
            else self.log_scale.exp() * cosines
        )


class FullContext(nn.Module):
    """Embeds support examples and queries in the context of the whole support set (appendix A).

    Takes and returns support (B, S, D) and query (B, Q, D) embeddings. Queries read the support alone, never each other.
    """

    def __init__(self, features: int, steps: int):
        super().__init__()
        self.steps = steps
        self.support = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        # The paper's recurrent state is [h, r]: its weights for r are those of an input.
        self.query = nn.LSTMCell(2 * features, features)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        forwards, backwards = self.support(support)[0].chunk(2, dim=-1)
        support = forwards + backwards + support
        batch = query.shape[:2]
        h = cell = read = torch.zeros_like(query)  # (B, Q, D)
        for step in range(self.steps):
            if step:
                read = (h @ support.mT).softmax(-1) @ support
            inputs = torch.cat([query, read], -1).flatten(0, 1)
            h, cell = (
                t.unflatten(0, batch)
                for t in self.query(inputs, (h.flatten(0, 1), cell.flatten(0, 1)))
            )
            h = h + query
        return support, h


def class_log_attention(similarity: Tensor, support_y: Tensor) -> Tensor:
    """Return the logarithm of each class's attention, (B, Q, ways), from similarities (B, Q, S) and labels (B, S).

    The softmax is taken over all support examples together, so a class with more of them has more of the attention.
    """
    member = F.one_hot(support_y, metazoo.ways_of(support_y)).to(similarity.dtype)  # (B, S, ways)
    index = support_y.unsqueeze(1).expand_as(similarity)
    # Each class's own maximum is taken out, so that none underflows to log 0; it cancels, and so needs no gradient.
    fixed = similarity.detach()
    peak = fixed.new_full((*similarity.shape[:2], member.shape[-1]), -torch.inf).scatter_reduce(
        2, index, fixed, "amax"
    )
    mass = (similarity - peak.gather(2, index)).exp() @ member
    return mass.log() + peak - similarity.logsumexp(-1, keepdim=True)


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"matching": MatchingNet}
