"""The base class of backbones: networks that turn an example into a feature vector."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metazoo import options
from metazoo.errors import OptionError

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


def image_shape(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise OptionError(
            f"backbone '{name}' takes images of {smallest}x{smallest} pixels or more, not examples of shape {input_shape}",
            "use backbone 'mlp' for other data, or a larger image size",
        )
    return input_shape[0], input_shape[1], input_shape[2]
