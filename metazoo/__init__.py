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
from .normalization import BatchStatistics, use_batch_statistics
from .options import Config, Range
from .taskwise import all_at_once, alone, for_each_task, gradient_of, mean_over_tasks, recomputed
from .version import VERSION
from .views import Views
from .zoo import load

__version__ = VERSION

__all__ = [
    "Algorithm",
    "Backbone",
    "Batch",
    "BatchStatistics",
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
    "Views",
    "all_at_once",
    "alone",
    "class_means",
    "for_each_task",
    "gradient_of",
    "hookimpl",
    "images",
    "load",
    "mean_over_tasks",
    "ops",
    "random_words",
    "recomputed",
    "task_loss",
    "uniform",
    "use_batch_statistics",
    "ways_of",
]
