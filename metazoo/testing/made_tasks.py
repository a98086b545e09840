"""Small synthetic tasks, and models for them, for `metazoo.testing.check_algorithm`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metazoo import options as declared
from metazoo.base.algorithm import Algorithm, BatchLearner
from metazoo.base.backbone import Backbone
from metazoo.base.recipe import Recipe
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import Batch, Episode, TaskSpec

BuildBackbone = Callable[[tuple[int, ...]], Backbone]
STEPS = 30
# How much of an example differs from its class.
NOISE = 0.3


class ClassificationCase:
    """An algorithm, its options, and classification tasks made from a few examples.

    A class is one of the examples. In each example of the class, some values come from others.

    Args:
        name: the algorithm's name in messages.
        algorithm: the class.
        options: values of its Config.
        backbone: a registered name, or what builds a backbone; by default a small conv4.
        examples: (N, *), by default random images. Every type stays as it is.
    """

    input_shape: tuple[int, ...] = (1, 16, 16)
    # (tasks, ways, shots, queries)
    sizes = ((1, 2, 1, 1), (2, 5, 1, 3), (3, 3, 4, 2))

    def __init__(
        self,
        name: str,
        algorithm: type[Algorithm],
        options: Mapping[str, Any],
        backbone: str | BuildBackbone | None = None,
        examples: Tensor | None = None,
    ):
        self.name, self.algorithm, self.options = name, algorithm, options
        self._backbone = (
            registry().backbone(backbone).value if isinstance(backbone, str) else backbone
        )
        if examples is None:
            noise = torch.Generator().manual_seed(0)
            examples = torch.randn(64, *self.input_shape, generator=noise)
        self.examples, self.input_shape = examples, tuple(examples.shape[1:])
        self._trained: Algorithm | None = None

    def backbone(self) -> Backbone:
        if self._backbone is not None:
            return self._backbone(self.input_shape)
        return _small("conv4", self.input_shape, width=16)

    def spec(self, ways: int) -> TaskSpec:
        integers = not self.examples.is_floating_point()
        return TaskSpec(self.input_shape, outputs=ways, classes=10, integers=integers)

    def model(self, ways: int = 5, seed: int = 0) -> Algorithm:
        """Return a new model with weights of this seed."""
        torch.manual_seed(seed)
        config = declared.build(self.algorithm.Config, self.options, f"algorithm '{self.name}'")
        return self.algorithm(self.backbone(), self.spec(ways), config)

    def trained_model(self) -> Algorithm:
        """Return a model in eval mode after some training, the same each time."""
        if self._trained is None:
            self._trained = self.model()
            self.train(self._trained, STEPS)
        try:
            return copy.deepcopy(self._trained).eval()
        except Exception:  # a module may hold anything: a lock, a file, a tensor with a graph
            trained, self._trained = self._trained, None
            return trained.eval()

    def train(self, model: Algorithm, steps: int) -> None:
        """Train a model on the same tasks in each step, as its recipe says."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            return
        recipe = declared.build(Recipe, self.algorithm.recipe, "the recipe")
        optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = optimizers.get(recipe.optimizer, torch.optim.SGD)(parameters, lr=recipe.lr)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            self.training_loss(model).backward()
            if recipe.clip_grad is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
            optimizer.step()
        optimizer.zero_grad()

    def training_loss(self, model: Algorithm) -> Tensor:
        """Return the loss of a training step."""
        if isinstance(model, BatchLearner):
            return model.batch_loss(self.batch())
        return model.loss(self.episode())

    def episode(
        self, tasks: int = 2, ways: int = 5, shots: int = 3, queries: int = 5, seed: int = 1
    ) -> Episode:
        """Return tasks of this size, the same each time."""
        support = [label for label in range(ways) for _ in range(shots)]
        return self._episode(tasks, support, ways, queries, seed)

    def unequal(self) -> Episode:
        """Return two tasks with one, two and three shots per class, in mixed order."""
        return self._episode(2, [2, 0, 1, 0, 2, 0], 3, 2, 1)

    def batch(self) -> Batch:
        """Return the examples of `episode()`; each of its 2 x 5 classes is a base class."""
        tasks = self.episode()
        x = torch.cat([tasks.support_x, tasks.query_x], 1)
        y = torch.cat([tasks.support_y, tasks.query_y], 1)
        return Batch(x.flatten(0, 1), (y + torch.tensor([[0], [5]])).flatten())

    def _episode(
        self, tasks: int, support: list[int], ways: int, queries: int, seed: int
    ) -> Episode:
        noise = torch.Generator().manual_seed(seed)
        classes = torch.rand(tasks, len(self.examples), generator=noise).argsort(1)[:, :ways]

        def examples_of(y: Tensor) -> Tensor:
            typical = self.examples[classes[:, y]]
            others = torch.randint(len(self.examples), (tasks, len(y)), generator=noise)
            replaced = torch.rand(typical.shape, generator=noise) < NOISE
            return torch.where(replaced, self.examples[others], typical)

        labels = torch.tensor(support), torch.arange(ways).repeat_interleave(queries)
        x = [examples_of(y) for y in labels]
        support_y, query_y = (y.expand(tasks, -1).contiguous() for y in labels)
        return Episode(x[0], support_y, x[1], query_y)


class RegressionCase(ClassificationCase):
    """Regression tasks with two targets: a sine and a cosine, whose amplitudes differ by task."""

    input_shape = (1,)

    def backbone(self) -> Backbone:
        return _small("mlp", self.input_shape, width=20)

    def spec(self, ways: int) -> TaskSpec:
        return TaskSpec(self.input_shape, outputs=2, classes=0, regression=True)

    def _episode(
        self, tasks: int, support: list[int], ways: int, queries: int, seed: int
    ) -> Episode:
        noise = torch.Generator().manual_seed(seed)
        amplitude = 1 + torch.rand(tasks, 1, 2, generator=noise)
        x = [
            2 * torch.randn(tasks, points, 1, generator=noise)
            for points in (len(support), ways * queries)
        ]
        support_y, query_y = (amplitude * torch.cat([x.sin(), x.cos()], -1) for x in x)
        return Episode(x[0], support_y, x[1], query_y)


def _small(name: str, input_shape: tuple[int, ...], **options: Any) -> Backbone:
    backbone = registry().backbone(name).value
    return backbone(input_shape, declared.build(backbone.Config, options, f"backbone '{name}'"))
