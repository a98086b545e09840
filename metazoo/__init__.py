"""metazoo: a model zoo of few-shot learners for PyTorch.

Everything public is here: what a plugin is written with, and what a program uses. Names load on first use, so that
`import metazoo` takes milliseconds; `__init__.pyi` lists them.
"""

import lazy_loader

from metazoo.version import VERSION

__version__ = VERSION
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
