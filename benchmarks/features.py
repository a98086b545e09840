"""Features instead of images, so that what comes after the backbone can be measured alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metazoo.base.backbone import Backbone
from metazoo.tasks.examples import Examples

IMAGES_AT_ONCE = 256


class Given(Backbone):
    """Takes examples that are features already, and gives them back."""

    def __init__(self, width: int):
        super().__init__((width,))
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def features_of(network: nn.Module, examples: Examples) -> Examples:
    """Return the same examples as features of a network."""
    parts = torch.arange(len(examples.x)).split(IMAGES_AT_ONCE)
    return examples.over(torch.cat([network(examples.take(part)) for part in parts]))


def labels_of(examples: Examples) -> list[int]:
    """Return the class of every example."""
    return [label for label, count in enumerate(examples.counts) for _ in range(count)]
