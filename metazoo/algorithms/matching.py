"""Matching Networks: Vinyals et al. 2016, "Matching Networks for One Shot Learning"
(arXiv:1606.04080)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo import Range, ops


class MatchingNet(metazoo.FeatureLearner):
    """Classifies a query by attention: a class's probability is the attention to its examples.

    Attention is a softmax over similarities to the support set (equations 1 and 2); the logits are
    the logarithms of the probabilities. With `fce`, support examples are embedded in the context of
    each other, and queries in the context of the support set (section 2.1.2).
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        similarity: Annotated[
            Literal["cosine", "euclidean"], "cosine, or negative squared Euclidean distance"
        ] = "cosine"
        temperature: Annotated[
            float,
            "temperature of the softmax of cosines, or its start if learned; the paper's is 1, "
            "which hardly trains",
            Range(1e-4),
        ] = 0.1
        learn_temperature: Annotated[bool, "learn the temperature; the paper does not"] = True
        fce: Annotated[bool, "full-context embeddings"] = False
        fce_steps: Annotated[
            int, "times that a query attends to the support set, with fce", Range(1, 1000)
        ] = 5

    config: Config
    equal_shots = True
    recipe = {"train_ways": 20, "train_queries": 10, "steps": 2000}

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        learned = self.config.similarity == "cosine" and self.config.learn_temperature
        log_scale = -torch.tensor(self.config.temperature).log()
        self.log_scale = nn.Parameter(log_scale) if learned else None
        if self.config.fce:
            self.context = FullContext(backbone.out_features, self.config.fce_steps)

    @property
    def depends_on_order(self) -> Collection[Literal["support", "classes"]]:
        # The LSTM reads the support set as a sequence, class by class.
        return ("support", "classes") if self.config.fce else ()

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        if self.config.fce:
            # Sorted by class, so that the order in which classes are given does not matter.
            order = support_y.argsort(dim=1, stable=True)
            support_y = support_y.gather(1, order)
            support_z = support_z.gather(1, order.unsqueeze(-1).expand_as(support_z))
            support_z, query_z = self.context(support_z, query_z)
        return class_log_attention(self.similarity(query_z, support_z), support_y)

    def similarity(self, query_z: Tensor, support_z: Tensor) -> Tensor:
        """Return the similarities (B, Q, S) of queries (B, Q, D) and support examples (B, S, D)."""
        if self.config.similarity == "euclidean":
            return -ops.pairwise_sqdist(query_z, support_z)
        cosines = ops.cosine_similarity(query_z, support_z)
        if self.log_scale is None:
            return cosines / self.config.temperature
        return self.log_scale.exp() * cosines


class FullContext(nn.Module):
    """Embeds support examples and queries in the context of the support set (appendix A).

    Takes and returns embeddings of the support set (B, S, D) and of queries (B, Q, D). A query
    depends on the support set, but not on other queries.
    """

    def __init__(self, features: int, steps: int):
        super().__init__()
        self.steps = steps
        self.support = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        # The paper's recurrent state is [h, r]. Here r is part of the input, which is equivalent.
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
            state = self.query(inputs, (h.flatten(0, 1), cell.flatten(0, 1)))
            h, cell = (x.unflatten(0, batch) for x in state)
            h = h + query
        return support, h


def class_log_attention(similarity: Tensor, support_y: Tensor) -> Tensor:
    """Return the log of the attention to each class, (B, Q, ways).

    Takes similarities (B, Q, S) and labels (B, S). The softmax is over all support examples, so a
    class with more examples gets more attention.
    """
    member = F.one_hot(support_y, metazoo.ways_of(support_y)).to(similarity.dtype)  # (B, S, ways)
    index = support_y.unsqueeze(1).expand_as(similarity)
    # Subtracting each class's maximum avoids log 0. It cancels out, and so needs no gradient.
    fixed = similarity.detach()
    peak = fixed.new_full((*similarity.shape[:2], member.shape[-1]), -torch.inf)
    peak = peak.scatter_reduce(2, index, fixed, "amax")
    mass = (similarity - peak.gather(2, index)).exp() @ member
    return mass.log() + peak - similarity.logsumexp(-1, keepdim=True)


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"matching": MatchingNet}
