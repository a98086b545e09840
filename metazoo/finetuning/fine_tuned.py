"""An encoder whose weights were fine-tuned, and the loop that does it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metazoo.base.backbone import Backbone
from metazoo.base.encoder import Encoder
from metazoo.errors import MetazooError

# Called with the number of seconds that fine-tuning will take, after its first step.
Estimate = Callable[[float], None]


class FineTuned(Backbone):
    """An encoder with weights of its own, a trainable copy of the frozen ones."""

    def __init__(self, encoder: Encoder):
        super().__init__(encoder.input_shape, encoder.config)
        self.encoder, self.out_features = encoder, encoder.out_features
        self.network = copy.deepcopy(encoder.network).requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.encode(self.network, x)


def minimise(
    tuned: FineTuned, losses: Iterator[Tensor], steps: int, lr: float, estimate: Estimate
) -> None:
    """Take a step of AdamW for each of the losses; the learning rate falls linearly to 0.

    The network stays in eval mode: statistics of a few examples would be worse than its own.
    Raises MetazooError if a loss is not finite.
    """
    optimizer = torch.optim.AdamW(tuned.network.parameters(), lr=lr)
    began = time.monotonic()
    for step, loss in enumerate(losses):
        if not loss.isfinite():
            raise MetazooError(
                f"fine-tuning failed: the loss is {loss.item()} at step {step + 1}",
                "leave out fine-tuning, or lower its learning rate",
            )
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            estimate(steps * (time.monotonic() - began))
    tuned.network.requires_grad_(False)
