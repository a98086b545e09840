"""The base classes of algorithms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import Backbone
from metazoo.errors import DataError
from metazoo.nn.augmentation import Views
from metazoo.tasks.episode import Batch, Episode, TaskSpec, ways_of


class Algorithm(nn.Module):
    """A few-shot learner: a labelled support set and queries in, query logits out.

    A subclass declares its options in `Config`, the training options that suit it in `recipe` (a mapping of fields
    of `Recipe`), and implements `forward`. Its constructor takes what this one takes. `draws` says what `loss` is
    given in training: tasks of the training split ("episodes"), or batches of its base classes ("batches"). `regresses` says
    whether it takes tasks of regression, too.
    """

    Config: ClassVar[type[options.Config]] = options.Config
    recipe: ClassVar[Mapping[str, Any]] = {}
    draws: ClassVar[Literal["episodes", "batches"]] = "episodes"
    regresses: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, spec: TaskSpec, config: options.Config | None = None):
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.config: Any = config if config is not None else self.Config()

    @property
    def transductive(self) -> bool:
        """Whether the answer for one query may depend on the other queries."""
        return False

    @property
    def needs_float32(self) -> bool:
        """Whether training goes wrong where the backbone computes in bf16, as second derivatives through it do."""
        return False

    def __call__(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return what `forward` does, or raise DataError where these are no tasks."""
        _check_tasks(self.spec, support_x, support_y, query_x)
        return super().__call__(support_x, support_y, query_x)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return logits (B, Q, ways), or in regression predictions (B, Q, D).

        Shapes: support_x (B, S, *), support_y (B, S) int64 in [0, ways) or (B, S, D) float, query_x (B, Q, *).
        """
        raise NotImplementedError

    def loss(self, task: Episode | Batch) -> Tensor:
        """Return the meta-training objective, a scalar: by default cross-entropy (or squared error) on the queries."""
        assert isinstance(task, Episode)
        return task_loss(self(task.support_x, task.support_y, task.query_x), task.query_y)


class FeatureLearner(Algorithm):
    """An algorithm that adapts wholly in feature space: its forward is `classify` on what `features` gives.

    Evaluation and prediction then embed each example once and draw tasks from the features.
    In eval mode `embed` must treat each example by itself. Raises OptionError for views of what is no image.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        # By keyword alone: the options of a subclass keep their places.
        views: Annotated[
            Literal["one", "shifted"],
            "embed an image as it is, or, but in training steps, as the mean of it and itself moved by a pixel each way",
        ] = dataclasses.field(default="one", kw_only=True)

    def __init__(self, backbone: Backbone, spec: TaskSpec, config: options.Config | None = None):
        super().__init__(backbone, spec, config)
        # The options of a plugin need not extend ours.
        self._views = Views(getattr(self.config, "views", "one"), spec.input_shape)

    def embed(self, x: Tensor) -> Tensor:
        """Return the features (N, D) of examples (N, *), each seen once."""
        return self.backbone(x)

    def features(self, x: Tensor) -> Tensor:
        """Return what is classified, (N, D): `embed` of examples (N, *), or of images the mean of their `views`."""
        return self._views.mean(self.embed, x)

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        """Return logits (B, Q, ways) from features (B, S, D), labels (B, S) and features (B, Q, D)."""
        raise NotImplementedError

    def embed_both(self, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, S, D) and (B, Q, D) of tasks' examples (B, S, *) and (B, Q, *)."""
        if self.training and len(support_x) > 1:
            # In training BatchNorm's statistics are those of a task: they must not depend on what else is in the meta-batch.
            pairs = [
                self.embed_both(support_x[i : i + 1], query_x[i : i + 1])
                for i in range(len(support_x))
            ]
            return torch.cat([support for support, _ in pairs]), torch.cat(
                [query for _, query in pairs]
            )
        x = torch.cat([support_x.flatten(0, 1), query_x.flatten(0, 1)])
        support_z, query_z = self.features(x).tensor_split([support_x.shape[:2].numel()])
        return support_z.unflatten(0, support_x.shape[:2]), query_z.unflatten(0, query_x.shape[:2])

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support_z, query_z = self.embed_both(support_x, query_x)
        return self.classify(support_z, support_y, query_z)


def _check_tasks(spec: TaskSpec, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> None:
    """Raise DataError where these are no tasks: of other shapes or types or, on a CPU, with labels that leave out a class."""
    given = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise DataError(
                f"{name} is no tensor but {type(x).__name__}", "make it one: torch.as_tensor"
            )
        if x.dtype == torch.uint8:
            raise DataError(
                f"{name} is of bytes",
                "images are floats in [0, 1] (`x.float() / 255`), labels are int64",
            )
    if spec.regression != support_y.is_floating_point() or not (
        spec.regression or support_y.dtype == torch.int64
    ):
        raise DataError(
            f"support_y is {support_y.dtype}",
            "targets are floats" if spec.regression else "labels are int64 (`y.long()`)",
        )
    one, target = tuple(spec.input_shape), 3 if spec.regression else 2
    missing = {
        2 + len(one) - support_x.dim(),
        target - support_y.dim(),
        2 + len(one) - query_x.dim(),
    }
    if missing != {0} or not (
        len(support_x) == len(query_x)
        and support_x.shape[2:] == query_x.shape[2:] == one
        and support_y.shape[:2] == support_x.shape[:2]
    ):
        like, shapes = (
            ", ".join(map(str, one)),
            ", ".join(f"{name} {tuple(x.shape)}" for name, x in given.items()),
        )
        raise DataError(
            f"the model takes tasks, support_x (B, S, {like}), support_y (B, S{', D' * spec.regression}) and query_x "
            f"(B, Q, {like}), but it was given {shapes}",
            "the first dimension is the task's: one task alone is support_x[None], support_y[None], query_x[None]"
            if missing == {1}
            else "B, the number of tasks, is the same in all three, and each of the S examples of a task has one label",
        )
    # Labels on a GPU are not waited for, and a compiler cannot follow what hangs on their values.
    if spec.regression or support_y.device.type != "cpu" or torch.compiler.is_compiling():
        return
    try:
        low, high = (int(support_y.min()), int(support_y.max())) if support_y.numel() else (0, -1)
    except RuntimeError:  # a transformation, as vmap, hides them
        return
    if (
        low < 0
        or not 0 <= high < support_y.shape[1]
        or not F.one_hot(support_y, high + 1).any(1).all()
    ):
        raise DataError(
            "support_y leaves a class of a task without an example",
            "the labels of a task of N classes are 0, 1, ..., N - 1, each there at least once; N is the same in all tasks",
        )


def task_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (..., ways) for int targets (...), or the mean squared error of float ones."""
    if target.is_floating_point():
        return F.mse_loss(prediction, target)
    return F.cross_entropy(prediction.flatten(0, -2), target.flatten())


def class_means(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean feature of each class, (B, ways, D), from features (B, S, D) and labels (B, S)."""
    member = F.one_hot(y, ways_of(y)).to(z.dtype)  # (B, S, ways)
    return member.mT @ z / member.sum(1).unsqueeze(-1)
