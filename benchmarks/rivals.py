"""What metazoo is measured against: easyfsl, higher, and the loop of the field's tutorials."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from metazoo.datasets.omniglot import Omniglot
from metazoo.tasks.examples import Examples

from .features import labels_of
from .suite import Unavailable

INSTALL = "`make bench` installs it"
# What easyfsl imports when it is imported, and none of what is measured here calls.
UNUSED = (
    "torchvision", "torchvision.datasets", "torchvision.models", "torchvision.models.resnet", "torchvision.transforms",
    "pandas",
)  # fmt: skip
WIDTH = 64
# How an ordinary network's weights and activations may lie; which is quicker depends on the processor.
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class _StandIn(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Let imports of what is not installed succeed for a while: torchvision comes with a torch of its own."""
    absent = [name for name in UNUSED if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in absent:
        sys.modules[name] = _StandIn(name)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def easyfsl() -> SimpleNamespace:
    """Return what is measured of easyfsl, or raise Unavailable.

    Its `TaskSampler` calls a constructor that torch has dropped; `sampler` makes one that skips the call.
    """
    if importlib.util.find_spec("easyfsl") is None:
        raise Unavailable(f"easyfsl is not installed; {INSTALL}")
    with _stand_ins():
        methods, samplers, utils, datasets = (
            importlib.import_module(f"easyfsl.{name}")
            for name in ("methods", "samplers", "utils", "datasets")
        )

    class Sampler(samplers.TaskSampler):  # type: ignore[misc,name-defined]
        def __init__(self, dataset: Any, ways: int, shots: int, queries: int, tasks: int):
            self.n_way, self.n_shot, self.n_query, self.n_tasks = ways, shots, queries, tasks
            self.items_per_label = {}
            for item, label in enumerate(dataset.get_labels()):
                self.items_per_label.setdefault(label, []).append(item)

    return SimpleNamespace(
        methods=methods, sampler=Sampler, evaluate=utils.evaluate, features=datasets.FeaturesDataset
    )


def higher() -> ModuleType:
    """Return the library, or raise Unavailable."""
    if importlib.util.find_spec("higher") is None:
        raise Unavailable(f"higher is not installed; {INSTALL}")
    return importlib.import_module("higher")


def data_folder() -> Path:
    """Return the folder of Omniglot's archives, or raise Unavailable."""
    root = os.environ.get("METAZOO_DATA")
    if not root or not (Path(root) / "omniglot" / "images_background.zip").exists():
        raise Unavailable(
            "$METAZOO_DATA names no folder with omniglot/images_background.zip and images_evaluation.zip"
        )
    return Path(root) / "omniglot"


def omniglot(rotations: bool = False) -> Omniglot:
    """Return Omniglot in Vinyals' split, or raise Unavailable."""
    data_folder()
    return Omniglot(Omniglot.Config(split="vinyals", rotations=rotations))


def characters() -> Examples:
    """Return all 1,623 characters of Omniglot, not turned."""
    splits = omniglot().splits
    merged = splits["train"].merge(splits["val"], "Omniglot").merge(splits["test"], "Omniglot")
    return Examples(merged.x.contiguous(), merged.counts, merged.names, "Omniglot")


@contextmanager
def unzipped() -> Iterator[Path]:
    """Give Omniglot's images as files, as the tutorials want them, in a folder that goes away."""
    with TemporaryDirectory(prefix="metazoo-bench-") as folder:
        for name in ("images_background", "images_evaluation"):
            with zipfile.ZipFile(data_folder() / f"{name}.zip") as archive:
                archive.extractall(folder)
        yield Path(folder)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """The data set of the tutorials: a list of files and labels; an image is opened, resized and turned when it is asked for.

    Names are those of metazoo's classes ("Greek/character03/rot090"), so that item i is the example in row i.
    """

    def __init__(self, root: Path, names: tuple[str, ...]):
        self.items: list[tuple[Path, int, int]] = []
        for label, name in enumerate(names):
            alphabet, character, turned = (*name.split("/"), "rot000")[:3]
            folder = next(root.glob(f"images_*/{alphabet}/{character}"))
            self.items += [(path, int(turned[3:]), label) for path in sorted(folder.glob("*.png"))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, degrees, label = self.items[i]
        image = Image.open(path).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        if degrees:
            image = image.rotate(degrees)
        pixels = torch.from_numpy(255 - np.asarray(image)).unsqueeze(0).float().div_(255)
        return pixels, label


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images (or features) already in memory as tensors, for easyfsl's sampler and collate function."""

    def __init__(self, examples: Examples):
        self.x = examples.take(torch.arange(len(examples.x)))
        self.labels = labels_of(examples)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], self.labels[i]

    def get_labels(self) -> list[int]:
        """Return the label of every item."""
        return self.labels


def plain_conv4(ours: nn.Module | None = None, *, running: bool = True) -> nn.Sequential:
    """Return Conv4 as it is usually written: convolution, BatchNorm, ReLU, pooling; with the weights of ours, if given."""
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(4):
        layers += [
            nn.Conv2d(channels, WIDTH, 3, padding=1),
            nn.BatchNorm2d(WIDTH, track_running_stats=running),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = WIDTH
    network = nn.Sequential(*layers, nn.Flatten())
    if ours is not None:
        # Blocks of four layers in both; only pooling and ReLU have changed places.
        wanted = network.state_dict()
        network.load_state_dict({k: v for k, v in ours.blocks.state_dict().items() if k in wanted})  # type: ignore[union-attr]
    return network


def ordered(network: nn.Module, order: str) -> nn.Module:
    """Return a copy of a network with its weights in one of ORDERS."""
    return copy.deepcopy(network).to(memory_format=ORDERS[order])  # type: ignore[call-overload]
