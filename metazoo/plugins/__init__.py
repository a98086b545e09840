"""How plugins are found, checked and kept: entry points in, registry out.

Names load on first use: declaring a hook, or reading entry points, imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
