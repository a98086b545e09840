"""A fully connected network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import Backbone
from metazoo.options import Range
from metazoo.plugins.marker import hookimpl


class MLP(Backbone):
    """Fully connected layers with ReLU.

    The default, 40-40, is the sinusoid regressor of Finn et al. 2017 (arXiv:1703.03400).
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        width: Annotated[int, "units of each hidden layer", Range(1)] = 40
        depth: Annotated[int, "number of hidden layers", Range(1, 1000)] = 2

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        inputs = math.prod(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(self.config.depth):
            layers += [nn.Linear(inputs, self.config.width), nn.ReLU()]
            inputs = self.config.width
        self.layers = nn.Sequential(*layers)
        self.out_features = inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@hookimpl
def register_backbones() -> Mapping[str, type[Backbone]]:
    return {"mlp": MLP}
