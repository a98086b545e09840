"""Float32 that is float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_tf32() -> Iterator[None]:
    """While it lasts, cuDNN takes float32 convolutions in float32, where PyTorch lets it take them in TF32, of 10 bits.

    Of the second-order gradient of MAML TF32 can leave nothing (docs/performance.md). Who has set the precision of convolutions
    and recurrent networks apart, by `torch.backends.cudnn.conv.fp32_precision`, is left with it.
    """
    try:
        allowed = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the two differ
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
