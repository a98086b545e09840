"""Settings of the process that a command runs in."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def use_float32() -> None:
    """Make cuDNN compute float32 convolutions in float32.

    PyTorch's default is TF32, which has 10 bits. It ruins MAML's second-order gradient
    (docs/performance.md), and results would depend on the device. Only the command line calls this:
    programs that import metazoo decide for themselves.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Make malloc keep freed memory instead of returning it to the kernel.

    Only glibc supports this. A training step frees and allocates the same large blocks again. With
    glibc's defaults the kernel clears fresh pages for them each time, which takes 40 % of a step's
    time (docs/performance.md).
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    # Older versions of glibc accept at most 32 MiB. Setting only the trim threshold is slower.
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
