"""Views of an image: the same drawing or photograph a pixel further, whose embeddings are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import OptionError

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


class Views(nn.Module):
    """The views that an option `views` names: "one", an example as it is, or "shifted"; in training every example has but one.

    Raises OptionError where examples of a shape are no images.
    """

    def __init__(self, name: str, input_shape: Sequence[int]):
        super().__init__()
        if name != "one" and len(input_shape) != 3:
            raise OptionError(
                f"examples of shape {tuple(input_shape)} are no images to have views of", "leave out the option views"
            )
        self.name = name

    def mean(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the mean of a function of examples (N, *) over their views."""
        if self.training or self.name == "one":
            return function(x)
        return torch.stack([function(view) for view in shifted(x)]).mean(0)
