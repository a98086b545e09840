"""Conv4: Vinyals et al. 2016 (arXiv:1606.04080)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import CONVOLUTION_FORMAT, Backbone, image_shape
from metazoo.options import Range
from metazoo.plugins.marker import hookimpl


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling.

    From Vinyals et al. 2016 (arXiv:1606.04080). It returns `width` features for 28x28 images and
    25 * `width` for 84x84 images. Each block has `growth` times the channels of the previous one,
    rounded; a growth of 2, as in VGG (Simonyan and Zisserman 2015, arXiv:1409.1556), gives 8 times
    the features.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        width: Annotated[int, "channels of the first block", Range(1)] = 64
        growth: Annotated[
            float, "factor between the channels of successive blocks", Range(1, 4)
        ] = 1.0

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        channels, height, width = image_shape("conv4", input_shape, 16)
        blocks: list[nn.Module] = []
        for block in range(4):
            wide = round(self.config.width * self.config.growth**block)
            blocks.append(nn.Conv2d(channels, wide, 3, padding=1))
            blocks.append(nn.BatchNorm2d(wide))
            # ReLU and max commute; pooling first leaves ReLU a quarter of the work.
            blocks.append(nn.MaxPool2d(2))
            blocks.append(nn.ReLU())
            channels = wide
        self.blocks = nn.Sequential(*blocks).to(memory_format=CONVOLUTION_FORMAT)  # type: ignore[call-overload]
        self.out_features = channels * (height // 16) * (width // 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


@hookimpl
def register_backbones() -> Mapping[str, type[Backbone]]:
    return {"conv4": Conv4}
