from .marker import hookimpl as hookimpl
from .registry import Entry as Entry
from .registry import Plugin as Plugin
from .registry import Registry as Registry
from .registry import registry as registry
