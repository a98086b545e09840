"""The C++/CUDA kernels: how they are built and loaded, and the operators that they implement.

`metazoo.ops` is the way to them. With METAZOO_KERNELS=auto (the default) they serve CUDA tensors, with `off` none, and with
`emulated` CPU tensors: the kernels' own source, run thread by thread, to test it. Pure PyTorch gives the same answers.
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
