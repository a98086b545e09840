"""Networks that turn an example into a feature vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import options
from .errors import OptionError
from .hookspecs import hookimpl
from .options import Range

# With weights in this order a training step takes 0.6 of the time on a CPU (docs/performance.md).
CONVOLUTION_FORMAT = torch.channels_last


class Backbone(nn.Module):
    """Maps examples (N, *input_shape) to features (N, out_features).

    A subclass declares its options in `Config`, takes `(input_shape, config)` and sets `out_features`. Where `low_precision`
    is a dtype, convolutions and matrix products compute in it (autocast); weights and features stay float32.
    """

    Config: ClassVar[type[options.Config]] = options.Config
    out_features: int
    low_precision: torch.dtype | None = None

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.config: Any = config if config is not None else self.Config()

    def __call__(self, x: Tensor) -> Tensor:
        if self.low_precision is None:
            return super().__call__(x)
        with torch.autocast(x.device.type, self.low_precision):
            return super().__call__(x).float()


def _image_shape(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise OptionError(
            f"backbone '{name}' takes images of {smallest}x{smallest} pixels or more, not examples of shape {input_shape}",
            "use backbone 'mlp' for other data, or a larger image size",
        )
    return input_shape[0], input_shape[1], input_shape[2]


class Conv4(Backbone):
    """Four blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling (Vinyals et al. 2016, arXiv:1606.04080).

    28x28 images give `width` features, 84x84 images 25 * width. A `growth` of 2 doubles the channels from block to block, as
    VGG does (Simonyan and Zisserman 2015, arXiv:1409.1556), and gives 8 times the features; channels are rounded.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        width: Annotated[int, "channels of the first block", Range(1)] = 64
        growth: Annotated[float, "factor on the channels from block to block", Range(1, 4)] = 1.0

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        channels, height, width = _image_shape("conv4", input_shape, 16)
        blocks: list[nn.Module] = []
        for block in range(4):
            wide = round(self.config.width * self.config.growth**block)
            blocks.append(nn.Conv2d(channels, wide, 3, padding=1))
            blocks.append(nn.BatchNorm2d(wide))
            # ReLU and max commute: pooling first gives the same numbers for a quarter of the work.
            blocks.append(nn.MaxPool2d(2))
            blocks.append(nn.ReLU())
            channels = wide
        self.blocks = nn.Sequential(*blocks).to(memory_format=CONVOLUTION_FORMAT)  # type: ignore[call-overload]
        self.out_features = channels * (height // 16) * (width // 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


class ResNet12(Backbone):
    """Four residual blocks of three 3x3 convolutions, then an average over positions (Lee et al. 2019, arXiv:1904.03758).

    Widths (64, 160, 320, 640) times `scale`; features are the last of them. DropBlock is left out.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        scale: Annotated[float, "factor on the widths 64, 160, 320, 640", Range(0.02)] = 1.0

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        channels = _image_shape("resnet12", input_shape, 16)[0]
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

        def conv(inputs: int, size: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width)]

        slope = 0.1
        self.path = nn.Sequential(
            *conv(channels, 3), nn.LeakyReLU(slope), *conv(width, 3), nn.LeakyReLU(slope), *conv(width, 3)
        )
        self.shortcut = nn.Sequential(*conv(channels, 1))
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.path(x) + self.shortcut(x), self.slope), 2)


class MLP(Backbone):
    """Fully connected layers, each with ReLU: 40-40 is the sinusoid regressor of Finn et al. 2017 (arXiv:1703.03400)."""

    @dataclass(frozen=True)
    class Config(options.Config):
        width: Annotated[int, "units of every hidden layer", Range(1)] = 40
        depth: Annotated[int, "hidden layers", Range(1, 1000)] = 2

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
    return {"conv4": Conv4, "resnet12": ResNet12, "mlp": MLP}
