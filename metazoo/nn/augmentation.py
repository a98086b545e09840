"""Augmentation of images: random in training, averaged over shifts at test time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metazoo.errors import OptionError
from metazoo.tasks.episode import Batch, Episode

Name = Literal["none", "drawing", "photo"]
EpisodeOrBatch = TypeVar("EpisodeOrBatch", Episode, Batch)


def augmented(task: EpisodeOrBatch, name: Name) -> EpisodeOrBatch:
    """Return tasks or a batch with every image augmented by random numbers of torch's generator."""
    augment = AUGMENTATIONS.get(name)
    if augment is None:
        return task
    if isinstance(task, Batch):
        return dataclasses.replace(task, x=augment(task.x))
    x = torch.cat([task.support_x, task.query_x], 1)  # (B, S + Q, C, H, W)
    support_x, query_x = (
        augment(x.flatten(0, 1)).view_as(x).tensor_split([task.support_x.shape[1]], 1)
    )
    return dataclasses.replace(task, support_x=support_x, query_x=query_x)


def drawing(x: Tensor) -> Tensor:
    """Return drawings (N, C, H, W) rotated, sheared, scaled, shifted and distorted at random.

    Ink is up to 1 and the background 0. The largest rotation is 10 degrees, shear 0.15, scale 1.2
    on each axis and shift a twelfth of the width. The distortion is a smooth displacement with a
    standard deviation of about 3 % of the width. Interpolation blurs the strokes, and an unsharp
    mask sharpens them again; on a background other than 0 it leaves halos.
    """
    turn, shear, shift_x, shift_y, width, height = _uniform(x, 6)
    angle = turn * (10 * math.pi / 180)
    scale_x, scale_y = (factor * math.log(1.2) for factor in (width, height))
    grid = _grid(x, angle, 0.15 * shear, scale_x.exp(), scale_y.exp(), shift_x / 6, shift_y / 6)
    distortion = torch.randn(len(x), 2, 4, 4, device=x.device, dtype=x.dtype)
    distortion = F.interpolate(distortion, x.shape[2:], mode="bicubic", align_corners=True)
    grid = grid + 0.06 * distortion.permute(0, 2, 3, 1)  # (N, H, W, 2)
    x = F.grid_sample(x, grid, align_corners=False)
    # 0.6 keeps the shares of full ink and grey pixels and the mean gradient of Omniglot at 28x28
    # (docs/results.md).
    return (x + 0.6 * (x - F.avg_pool2d(x, 3, 1, 1))).clamp(0, 1)


def photo(x: Tensor) -> Tensor:
    """Return photos (N, C, H, W) in [0, 1], mirrored, cropped and colour-jittered at random.

    Half of them are mirrored. A crop keeps at least 80 % of each side. The factors of brightness,
    contrast and saturation are in [0.6, 1.4].
    """
    mirror, zoom, shift_x, shift_y, *jitter = _uniform(x, 7)
    zoom = 0.9 + 0.1 * zoom
    zero, margin = torch.zeros_like(zoom), 1 - zoom
    zoom_x = torch.where(mirror < 0, -zoom, zoom)
    grid = _grid(x, zero, zero, zoom_x, zoom, shift_x * margin, shift_y * margin)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    brightness, contrast, saturation = (1 + 0.4 * factor.view(-1, 1, 1, 1) for factor in jitter)
    x = x * brightness
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
    return torch.lerp(x.mean(1, keepdim=True), x, saturation).clamp(0, 1)


def _uniform(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return `count` tensors (N,) of random numbers in [-1, 1), one number for each image."""
    return (2 * torch.rand(count, len(x), device=x.device, dtype=x.dtype) - 1).unbind()


def _grid(
    x: Tensor,
    angle: Tensor,
    shear: Tensor,
    scale_x: Tensor,
    scale_y: Tensor,
    shift_x: Tensor,
    shift_y: Tensor,
) -> Tensor:
    """Return where each pixel comes from, (N, H, W, 2) in [-1, 1]."""
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([scale_x * cos, scale_y * (shear * cos - sin), shift_x], -1),
        torch.stack([scale_x * sin, scale_y * (shear * sin + cos), shift_y], -1),
    ]
    return F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)


AUGMENTATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"drawing": drawing, "photo": photo}


# (down, right) in pixels
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def shifted(x: Tensor) -> Iterator[Tensor]:
    """Yield images (N, C, H, W), then shifted by a pixel in each direction, borders repeated.

    A network with strided pooling answers differently for a shifted image (Azulay and Weiss 2019,
    arXiv:1805.12177).
    """
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    for down, right in SHIFTS:
        yield padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def mirrored(x: Tensor) -> Iterator[Tensor]:
    """Yield images (N, C, H, W), then their mirror images: left and right swapped."""
    yield x
    yield x.flip(3)


VIEWS: Mapping[str, Callable[[Tensor], Iterator[Tensor]]] = {
    "shifted": shifted,
    "mirrored": mirrored,
}


class TestTimeAugmentation(nn.Module):
    """Averages a function of images over views of them, in eval mode only.

    `name` is "none", "shifted" (an image and four one-pixel shifts) or "mirrored" (an image and its
    mirror image). Raises OptionError if examples of this shape are not images.
    """

    def __init__(self, name: Literal["none", "shifted", "mirrored"], input_shape: Sequence[int]):
        super().__init__()
        if name != "none" and len(input_shape) != 3:
            raise OptionError(
                f"test-time augmentation needs images; these examples have shape {tuple(input_shape)}",
                "leave out the option tta",
            )
        self.name = name

    def mean(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the mean of `function` over the views of images x (N, C, H, W)."""
        if self.training or self.name == "none":
            return function(x)
        return torch.stack([function(image) for image in VIEWS[self.name](x)]).mean(0)
