"""A bag of words: Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text
Classification"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import Backbone
from metazoo.errors import OptionError
from metazoo.options import Range
from metazoo.plugins.marker import hookimpl

EPSILON = 1e-6


class Bag(Backbone):
    """Embeds a text as the weighted mean of the embeddings of its words and n-grams.

    Examples are token ids (N, length), where 0 pads. An id shares its embedding with those that
    equal it modulo `buckets`. Its weight is learned: the mean is a softmax over the text. The
    features of all texts have the same length, `exp(log_scale)`, which is learned.

    The mean of embeddings is that of Iyyer et al. 2015, hashed n-grams those of Joulin et al. 2016
    (arXiv:1607.01759).
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        width: Annotated[int, "features of a text", Range(1, 2**14)] = 256
        buckets: Annotated[int, "embeddings in the table", Range(1, 2**20)] = 2**14

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        if len(input_shape) != 1:
            raise OptionError(
                f"backbone 'bag' needs texts; these examples have shape {input_shape}",
                "choose --backbone conv4 for images",
            )
        width = self.config.width
        self.table = nn.Embedding(1 + self.config.buckets, width, padding_idx=0)
        self.weight = nn.Embedding(1 + self.config.buckets, 1)
        nn.init.zeros_(self.weight.weight)
        self.log_scale = nn.Parameter(torch.tensor(3.0).log())
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            raise OptionError(
                "backbone 'bag' needs texts, and these examples are numbers",
                "choose --backbone mlp for numbers",
            )
        padding = x == 0
        rows = torch.where(padding, 0, 1 + (x - 1) % self.config.buckets)
        weights = self.weight(rows).squeeze(-1)
        lowest = torch.finfo(weights.dtype).min  # not infinity: a text may have no tokens
        weights = weights.masked_fill(padding, lowest).softmax(-1)
        z = (weights.unsqueeze(-2) @ self.table(rows)).squeeze(-2)  # (N, width)
        return self.log_scale.exp() * z * (z.square().sum(-1, keepdim=True) + EPSILON).rsqrt()


@hookimpl
def register_backbones() -> Mapping[str, type[Backbone]]:
    return {"bag": Bag}
