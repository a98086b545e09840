"""ResNet-12: Lee et al. 2019 (arXiv:1904.03758)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import CONVOLUTION_FORMAT, Backbone, image_shape
from metazoo.options import Range
from metazoo.plugins.marker import hookimpl

SLOPE = 0.1  # of the leaky ReLU


class ResNet12(Backbone):
    """Four residual blocks of three 3x3 convolutions each, then global average pooling.

    From Lee et al. 2019 (arXiv:1904.03758), without DropBlock. The blocks have 64, 160, 320 and 640
    channels times `scale`; the last number is the number of features.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        scale: Annotated[float, "factor on the widths 64, 160, 320 and 640", Range(0.02)] = 1.0

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        channels = image_shape("resnet12", input_shape, 16)[0]
        blocks = []
        for base in (64, 160, 320, 640):
            width = max(1, round(base * self.config.scale))
            blocks.append(_ResidualBlock(channels, width))
            channels = width
        self.blocks = nn.Sequential(*blocks).to(memory_format=CONVOLUTION_FORMAT)  # type: ignore[call-overload]
        self.out_features = channels

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).mean((2, 3))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.path = nn.Sequential(
            *_convolution(channels, width, 3),
            nn.LeakyReLU(SLOPE),
            *_convolution(width, width, 3),
            nn.LeakyReLU(SLOPE),
            *_convolution(width, width, 3),
        )
        self.shortcut = nn.Sequential(*_convolution(channels, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.path(x) + self.shortcut(x), SLOPE), 2)


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


@hookimpl
def register_backbones() -> Mapping[str, type[Backbone]]:
    return {"resnet12": ResNet12}
