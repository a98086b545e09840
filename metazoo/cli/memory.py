"""How this process holds memory."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let malloc keep what is freed instead of giving it back to the kernel.

    A training step frees and asks for the same large blocks again; with glibc's defaults each comes as fresh pages, which the
    kernel clears first: 40 % of the time of a step (docs/performance.md). Elsewhere than on glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    # Older glibc takes no threshold above 32 MiB. With none set, the trim threshold alone would make things worse.
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
