"""Whether pictures look as a model expects, by simple statistics, for warnings."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import torch
from torch import Tensor

# Limits that separate Omniglot and MNIST, of which no image is misjudged, from their inverse and
# from three quarters of all photos.
TONES = 0.15  # how far the ground's pixels are from its tone, at most
GROUND = 0.5  # the share of a drawing's pixels that are ground, at least
DARK, LIGHT = 0.35, 0.65  # the tone of a dark ground at most, of a light ground at least
LEAST = 0.05  # between the darkest and the lightest value of a picture with something on it
FEW = 0.2  # the share of pictures that may look otherwise


class Look(enum.Enum):
    """What pictures look like."""

    DARK_GROUND = "light on dark"
    LIGHT_GROUND = "dark on light"
    TONES = "full of tones, as photos are"


def shares(pictures: Tensor) -> dict[Look, float]:
    """Return the share of pictures (N, C, H, W) in [0, 1] with each look.

    A drawing has a ground of one tone, which is that of most of its border.
    """
    x = pictures.mean(1)  # (N, H, W)
    border = torch.cat([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], 1)
    tone = border.median(1).values
    plain = ((x - tone.view(-1, 1, 1)).abs() <= TONES).float().mean((1, 2)) >= GROUND
    dark, light = plain & (tone <= DARK), plain & (tone >= LIGHT)
    found = {Look.DARK_GROUND: dark, Look.LIGHT_GROUND: light, Look.TONES: ~(dark | light)}
    return {look: which.float().mean().item() for look, which in found.items()}


def blank(pictures: Tensor) -> int:
    """Return how many pictures (N, C, H, W) in [0, 1] have nothing on them."""
    x = pictures.flatten(1)
    return int((x.amax(1) - x.amin(1) < LEAST).sum())


def unlike_drawings(found: Mapping[Look, float]) -> Look | None:
    """Return how pictures with these shares differ from drawings of light strokes on a dark ground.

    None if they do not.
    """
    if found[Look.DARK_GROUND] >= 1 - FEW:
        return None
    return max((Look.LIGHT_GROUND, Look.TONES), key=lambda look: found[look])


def opposite(ours: Mapping[Look, float], theirs: Mapping[Look, float]) -> bool:
    """Return whether, by their shares, pictures are light on dark and others dark on light, or the reverse."""
    both = (Look.DARK_GROUND, Look.LIGHT_GROUND), (Look.LIGHT_GROUND, Look.DARK_GROUND)
    return any(ours[a] >= 1 - FEW and theirs[b] >= 1 - FEW for a, b in both)
