"""Convolution as a matrix product, for weights that differ from task to task."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class TaskConvolution(nn.Conv2d):
    """A Conv2d that, while `unfolded`, multiplies its weights by the patches of the images.

    Under torch.vmap with weights of each task's own, a Conv2d becomes a convolution in groups, and so do its derivatives, for
    which cuDNN is slow; products of batches of matrices are quick to every order (docs/performance.md). The patches take kernel
    height times kernel width as much memory as the images.
    """

    unfolded = False
    padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        if not self.unfolded:
            return super().forward(x)
        sizes = zip(x.shape[2:], self.kernel_size, self.padding, self.dilation, self.stride)
        height, width = ((size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, pad, gap, step in sizes)
        patches = F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)  # (N, I, positions)
        # One product of a task's weights by the patches of all its images.
        y = self.weight.flatten(1) @ patches.transpose(0, 1).flatten(1)  # (O, N * positions)
        y = y.view(-1, len(x), height, width).transpose(0, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def use_task_convolutions(network: nn.Module) -> list[TaskConvolution]:
    """Make every plain nn.Conv2d inside of a network a `TaskConvolution`, and return these.

    Those of groups, of padding given in words and of modes other than zeros stay as they are.
    """
    found = []
    for module in network.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        if plain and not isinstance(module.padding, str):
            module.__class__ = TaskConvolution
            found.append(cast(TaskConvolution, module))
    return found
