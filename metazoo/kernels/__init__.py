"""The C++/CUDA kernels: building, loading, and the operators that they implement.

Call them through `metazoo.ops`. METAZOO_KERNELS=auto (the default) uses them for CUDA tensors,
`off` never. `emulated` tests their source on CPU tensors, thread by thread. Pure PyTorch gives the
same results.
"""

from . import distance, prototypical, sgd
from .loading import KernelWarning, Status, ahead_of_time, covers, load, mode, status

__all__ = [
    "KernelWarning",
    "Status",
    "ahead_of_time",
    "covers",
    "distance",
    "load",
    "mode",
    "prototypical",
    "sgd",
    "status",
]
