"""What metazoo is compared with: easyfsl, higher, and the networks and loops one writes without it."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from metazoo import Backbone, Episode, EpisodeSampler, Examples
from metazoo.datasets.omniglot import Omniglot

from .harness import Call, Unavailable

# easyfsl imports these and does not use them in what is measured here.
UNUSED = ["pandas", "torchvision"]
UNUSED += [f"torchvision.{n}" for n in ("datasets", "models", "models.resnet", "transforms")]
# Which memory format is faster for an ordinary network depends on the processor.
ORDERS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class _StandIn(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _library(name: str) -> ModuleType:
    """Import a rival, or raise Unavailable."""
    if importlib.util.find_spec(name) is None:
        raise Unavailable(f"{name} is not installed; `make bench` installs it")
    return importlib.import_module(name)


def higher() -> ModuleType:
    """Return higher, or raise Unavailable."""
    return _library("higher")


def easyfsl() -> SimpleNamespace:
    """Return the parts of easyfsl that are measured, or raise Unavailable.

    Its TaskSampler calls a constructor that torch has removed; `sampler` skips that call.
    """
    absent = [name for name in UNUSED if importlib.util.find_spec(name.partition(".")[0]) is None]
    sys.modules.update({name: _StandIn(name) for name in absent})
    try:
        _library("easyfsl")
        samplers, utils = (importlib.import_module(f"easyfsl.{n}") for n in ("samplers", "utils"))
        methods, sets = (importlib.import_module(f"easyfsl.{n}") for n in ("methods", "datasets"))
    finally:
        for name in absent:
            del sys.modules[name]

    class Sampler(samplers.TaskSampler):  # type: ignore[misc,name-defined]
        def __init__(self, dataset: Any, ways: int, shots: int, queries: int, tasks: int):
            self.n_way, self.n_shot, self.n_query, self.n_tasks = ways, shots, queries, tasks
            self.items_per_label = {}
            for item, label in enumerate(dataset.get_labels()):
                self.items_per_label.setdefault(label, []).append(item)

    return SimpleNamespace(
        methods=methods, sampler=Sampler, evaluate=utils.evaluate, features=sets.FeaturesDataset
    )


def characters(count: int) -> Examples:
    """Return the first characters of Omniglot's splits (Vinyals'), or raise Unavailable."""
    folder = Path(os.environ.get("METAZOO_DATA") or ".") / "omniglot"
    if not (folder / "images_background.zip").exists():
        raise Unavailable("METAZOO_DATA names no folder with omniglot/images_background.zip")
    splits = Omniglot(Omniglot.Config(split="vinyals", rotations=False)).splits.values()
    x = torch.cat([split.x for split in splits])
    counts, names = (
        [v for split in splits for v in getattr(split, key)][:count] for key in ("counts", "names")
    )
    return Examples(x[: sum(counts)], tuple(counts), tuple(names), "Omniglot")


class InMemory(Dataset[tuple[Tensor, int]]):
    """Examples as float tensors in memory, for easyfsl's sampler and collate function."""

    def __init__(self, examples: Examples):
        self.x, self.labels = examples.take(torch.arange(len(examples.x))), labels_of(examples)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], self.labels[i]

    def get_labels(self) -> list[int]:
        """Return the label of every item."""
        return self.labels


class Tasks:
    """A batch sampler with the items of metazoo's tasks, one task a batch, class by class."""

    def __init__(self, sampler: EpisodeSampler, first: int, count: int):
        self.sampler, self.first, self.count = sampler, first, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for i in range(self.first, self.first + self.count):
            yield self.sampler.rows(i, 1).flatten().tolist()


def labels_of(examples: Examples) -> list[int]:
    """Return the class of every example."""
    return [label for label, count in enumerate(examples.counts) for _ in range(count)]


class Given(Backbone):
    """Takes examples that already are features, and returns them."""

    def __init__(self, width: int):
        super().__init__((width,))
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def features_of(network: nn.Module, examples: Examples) -> Examples:
    """Return the examples as features of a network."""
    parts = torch.arange(len(examples.x)).split(256)
    return examples.with_values(torch.cat([network(examples.take(part)) for part in parts]))


class Norm(nn.Module):
    """BatchNorm by batch statistics, written out: F.batch_norm's second derivatives are wrong in vmap."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight.view(1, -1, 1, 1) * (variance + self.eps).rsqrt()
        return (x - mean) * scale + self.bias.view(1, -1, 1, 1)


def plain_network(
    blocks: nn.Module, *, running: bool = True, written_out: bool = False
) -> nn.Module:
    """Return a copy of our blocks as one usually writes them: convolution, BatchNorm, ReLU, pooling."""
    layers: list[nn.Module] = []
    for layer in blocks.modules():
        if isinstance(layer, nn.Conv2d):
            layers.append(copy.deepcopy(layer))
        elif getattr(layer, "weight", None) is not None:  # a norm, or what MAML puts in its place
            norm = nn.BatchNorm2d(len(layer.weight), track_running_stats=running)
            norm.load_state_dict(layer.state_dict(), strict=False)
            layers += [Norm(norm) if written_out else norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def ordered(network: nn.Module, order: str) -> nn.Module:
    """Return a copy of a network with its weights in one of ORDERS."""
    return copy.deepcopy(network).to(memory_format=ORDERS[order])  # type: ignore[call-overload]


def plain_loss(network: nn.Module, task: Sequence[Tensor]) -> Tensor:
    """Return the prototypical loss of support images, labels, query images and labels, 1 shot."""
    support_x, _, query_x, query_y = task
    z = network(torch.cat([support_x, query_x]))
    prototypes, queries = z[: len(support_x)], z[len(support_x) :]
    return F.cross_entropy(-torch.cdist(queries, prototypes).square(), query_y)


def only_task(episode: Episode) -> list[Tensor]:
    """Return the tensors of an episode's only task."""
    return [tensor[0] for tensor in vars(episode).values()]


def in_float64(tasks: Episode) -> Episode:
    """Return tasks in float64, in which mistakes stand out from rounding."""
    return replace(tasks, support_x=tasks.support_x.double(), query_x=tasks.query_x.double())


def gradient(network: nn.Module, loss: Call) -> Tensor:
    """Return the gradient of a loss by all parameters as one vector."""
    parameters = list(network.parameters())
    slopes = torch.autograd.grad(loss(), parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in slopes if g is not None])


def adam(network: nn.Module, loss: Call) -> Call:
    """Return a step of Adam on a loss."""
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
