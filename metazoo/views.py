"""Views of an image: the same drawing or photograph a pixel further, whose embeddings are averaged."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

# Down and right, in pixels.
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def shifted(x: Tensor) -> Iterator[Tensor]:
    """Yield images (N, C, H, W) as they are, then moved by a pixel each way, with what was at the border repeated.

    A network that pools by strides answers differently for an image moved by a pixel (Azulay and Weiss 2019, arXiv:1805.12177).
    """
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    for down, right in SHIFTS:
        yield padded[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
