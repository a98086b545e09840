"""Small synthetic tasks, and models for them, for `metazoo.testing.check_algorithm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from metazoo import options as declared
from metazoo.base.algorithm import Algorithm
from metazoo.base.backbone import Backbone
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import Batch, Episode, TaskSpec


class ClassificationCase:
    """An algorithm, its options and classification tasks: a class is a random image plus noise."""

    input_shape: tuple[int, ...] = (1, 16, 16)
    # (tasks, ways, shots, queries)
    sizes = ((1, 2, 1, 1), (2, 5, 1, 3), (3, 3, 4, 2))

    def __init__(self, name: str, algorithm: type[Algorithm], options: Mapping[str, Any]):
        self.name, self.algorithm, self.options = name, algorithm, options

    def backbone(self) -> Backbone:
        return _backbone("conv4", self.input_shape, width=16)

    def spec(self, ways: int) -> TaskSpec:
        return TaskSpec(self.input_shape, outputs=ways, classes=10)

    def model(self, ways: int = 5, seed: int = 0) -> Algorithm:
        """Return a new model with weights of this seed."""
        torch.manual_seed(seed)
        config = declared.build(self.algorithm.Config, self.options, f"algorithm '{self.name}'")
        return self.algorithm(self.backbone(), self.spec(ways), config)

    def episode(self, tasks: int = 2, ways: int = 5, shots: int = 3, queries: int = 5) -> Episode:
        """Return tasks of this size, the same each time."""
        support = [label for label in range(ways) for _ in range(shots)]
        return self._episode(tasks, support, ways, queries)

    def unequal(self) -> Episode:
        """Return two tasks with one, two and three shots per class, in mixed order."""
        return self._episode(2, [2, 0, 1, 0, 2, 0], 3, 2)

    def batch(self) -> Batch:
        """Return the examples of `episode()`; each of its 2 x 5 classes is a base class."""
        tasks = self.episode()
        x = torch.cat([tasks.support_x, tasks.query_x], 1)
        y = torch.cat([tasks.support_y, tasks.query_y], 1)
        return Batch(x.flatten(0, 1), (y + torch.tensor([[0], [5]])).flatten())

    def outputs(self, episode: Episode) -> int:
        """Return the size of the last dimension of the answer."""
        return int(episode.support_y.max()) + 1

    def _episode(self, tasks: int, support: list[int], ways: int, queries: int) -> Episode:
        noise = torch.Generator().manual_seed(1)
        classes = torch.randn(tasks, ways, *self.input_shape, generator=noise)
        labels = torch.tensor(support), torch.arange(ways).repeat_interleave(queries)
        x = [
            classes[:, y] + 0.7 * torch.randn(tasks, len(y), *self.input_shape, generator=noise)
            for y in labels
        ]
        support_y, query_y = (y.expand(tasks, -1).contiguous() for y in labels)
        return Episode(x[0], support_y, x[1], query_y)


class RegressionCase(ClassificationCase):
    """Regression tasks with two targets: a sine and a cosine, whose amplitudes differ by task."""

    input_shape = (1,)

    def backbone(self) -> Backbone:
        return _backbone("mlp", self.input_shape, width=20)

    def spec(self, ways: int) -> TaskSpec:
        return TaskSpec(self.input_shape, outputs=2, classes=0, regression=True)

    def outputs(self, episode: Episode) -> int:
        return 2

    def _episode(self, tasks: int, support: list[int], ways: int, queries: int) -> Episode:
        noise = torch.Generator().manual_seed(1)
        amplitude = 1 + torch.rand(tasks, 1, 2, generator=noise)
        x = [
            2 * torch.randn(tasks, points, 1, generator=noise)
            for points in (len(support), ways * queries)
        ]
        support_y, query_y = (amplitude * torch.cat([x.sin(), x.cos()], -1) for x in x)
        return Episode(x[0], support_y, x[1], query_y)


def _backbone(name: str, input_shape: tuple[int, ...], **options: Any) -> Backbone:
    backbone = registry().backbone(name).value
    return backbone(input_shape, declared.build(backbone.Config, options, f"backbone '{name}'"))
