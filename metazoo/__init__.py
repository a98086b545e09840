"""metazoo: a model zoo of few-shot learners for PyTorch.

Everything public is here: what a plugin is written with, and what a program uses.
"""

from . import images, ops
from .algorithm import Algorithm, FeatureLearner, Recipe, class_means, task_loss
from .backbones import Backbone
from .classifier import FewShotClassifier
from .drawing import random_words, uniform
from .episodes import (
    Batch,
    ClassDataset,
    Dataset,
    Episode,
    EpisodeSampler,
    TaskSource,
    TaskSpec,
    ways_of,
)
from .errors import CheckpointError, DataError, MetazooError, OptionError, PluginError, UnknownNameError
from .examples import Examples, Stream
from .hookspecs import hookimpl
from .options import Config, Range
from .version import VERSION
from .zoo import load

__version__ = VERSION

__all__ = [
    "Algorithm",
    "Backbone",
    "Batch",
    "CheckpointError",
    "ClassDataset",
    "Config",
    "DataError",
    "Dataset",
    "Episode",
    "EpisodeSampler",
    "Examples",
    "FeatureLearner",
    "FewShotClassifier",
    "MetazooError",
    "OptionError",
    "PluginError",
    "Range",
    "Recipe",
    "Stream",
    "TaskSource",
    "TaskSpec",
    "UnknownNameError",
    "class_means",
    "hookimpl",
    "images",
    "load",
    "ops",
    "random_words",
    "task_loss",
    "uniform",
    "ways_of",
]
