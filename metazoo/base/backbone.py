"""The base class of backbones: networks that map an example to a feature vector."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metazoo import options
from metazoo.errors import OptionError, first_line

# On a CPU, a training step with channels-last weights takes 0.6 of the time (docs/performance.md).
CONVOLUTION_FORMAT = torch.channels_last


class Backbone(nn.Module):
    """Maps examples (N, *input_shape) to features (N, out_features).

    A subclass declares its options in `Config`, takes `(input_shape, config)` and sets
    `out_features`. If `low_precision` is a dtype, convolutions and matrix products use it through
    autocast; weights and features stay float32.
    """

    Config: ClassVar[type[options.Config]] = options.Config
    config: options.Config
    out_features: int
    low_precision: torch.dtype | None = None

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.config = config if config is not None else self.Config()

    def __call__(self, x: Tensor) -> Tensor:
        if self.low_precision is None:
            return super().__call__(x)
        with torch.autocast(x.device.type, self.low_precision):
            return super().__call__(x).float()


def image_shape(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Return (channels, height, width), or raise OptionError unless examples are large enough images."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise OptionError(
            f"backbone '{name}' needs images of at least {smallest}x{smallest} pixels; "
            f"these examples have shape {input_shape}",
            "choose a larger image size, or --backbone mlp for data that are not images",
        )
    return input_shape[0], input_shape[1], input_shape[2]


@torch.enable_grad()
def check_second_derivative(backbone: Backbone, x: Tensor) -> None:
    """Raise OptionError if a backbone cannot be differentiated twice on examples (N, *).

    autograd does not always say so: it may leave a term out. Clears the backbone's gradients.
    """
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    if not parameters:
        return
    loss = backbone(x).square().sum()
    if not loss.requires_grad:
        return
    gradients = torch.autograd.grad(
        loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    try:
        torch.stack([g.square().sum() for g in gradients]).sum().backward()
    except RuntimeError as error:
        raise OptionError(
            f"backbone {type(backbone).__name__} has no second derivative, "
            f"which this algorithm needs: {first_line(error)}",
            "use a first-order variant of the algorithm, or another backbone",
        ) from error
    finally:
        backbone.zero_grad()
