"""In what arithmetic this process computes."""

from __future__ import annotations

import torch


def float32_is_float32() -> None:
    """Let cuDNN take float32 convolutions in float32; by PyTorch's default it takes them in TF32, which has 10 bits.

    Nothing may be left of MAML's second-order gradient in TF32 (docs/performance.md), and figures would depend on the device.
    A program that uses metazoo sets `torch.backends.cudnn.allow_tf32` as it likes.
    """
    torch.backends.cudnn.allow_tf32 = False
