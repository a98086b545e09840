"""The base classes of algorithms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import Backbone
from metazoo.errors import DataError
from metazoo.nn.augmentation import TestTimeAugmentation
from metazoo.tasks.episode import Batch, Episode, TaskSpec, ways_of

# Values in the support sets from which an example each is left out, and which are fitted together.
LEFT_OUT_AT_ONCE = 2**24


class Algorithm(nn.Module):
    """A few-shot learner: takes a labelled support set and queries, returns query logits.

    A subclass implements `forward` and keeps the constructor's signature. It declares its options
    in a nested `Config`, and the training options that suit it in `recipe` (fields of
    `metazoo.Recipe`). Further class attributes:

    - `supports_regression`: whether it also accepts tasks with float targets;
    - `equal_shots`: whether answers suffer if classes have different numbers of support examples;
    - `inductive_options`: options with which a transductive model answers each query on its own;
      `FewShotClassifier` sets them.

    Training calls `loss` on tasks of the training split. An algorithm that trains on batches of
    the base classes derives from `BatchLearner` as well.
    """

    Config: ClassVar[type[options.Config]] = options.Config
    recipe: ClassVar[Mapping[str, Any]] = {}
    supports_regression: ClassVar[bool] = False
    equal_shots: ClassVar[bool] = False
    inductive_options: ClassVar[Mapping[str, Any]] = {}
    config: options.Config

    def __init__(self, backbone: Backbone, spec: TaskSpec, config: options.Config | None = None):
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.config = config if config is not None else self.Config()

    @property
    def transductive(self) -> bool:
        """Whether the answer for one query may depend on the other queries."""
        return False

    @property
    def needs_float32(self) -> bool:
        """Whether training takes second derivatives, which are too inexact with a bf16 backbone."""
        return False

    @property
    def depends_on_order(self) -> Collection[Literal["support", "classes"]]:
        """Orders that affect the answers; that of the queries must not.

        "support" for the order of the support examples, "classes" for which class has which label.
        A model with a weight for each way need not declare "classes".
        """
        return ()

    def __call__(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Check the tasks, then call `forward`; raise DataError for shapes or labels that do not fit."""
        _check_tasks(self.spec, support_x, support_y, query_x)
        return super().__call__(support_x, support_y, query_x)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return logits (B, Q, ways); in regression, predictions (B, Q, D).

        Shapes: support_x (B, S, *), query_x (B, Q, *), support_y (B, S) int64 in [0, ways); in
        regression support_y is (B, S, D) float.
        """
        raise NotImplementedError

    def loss(self, task: Episode) -> Tensor:
        """Return the meta-training loss, a scalar: by default `task_loss` of the queries."""
        return task_loss(self(task.support_x, task.support_y, task.query_x), task.query_y)


class BatchLearner(Algorithm):
    """An algorithm that trains on batches of the base classes, by ordinary classification."""

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the training loss of a batch, a scalar."""
        raise NotImplementedError


class FeatureLearner(Algorithm):
    """An algorithm whose adaptation happens entirely in feature space.

    Its `forward` is `classify` applied to `features`. Evaluation and prediction therefore embed
    each example once and draw tasks from the features. In eval mode `embed` must treat each example
    independently. Raises OptionError if `tta` is set and the examples are not images.

    A subclass whose `uses_names` is true also classifies with the names of classes as evidence, by
    `classify_named`. One that needs facts about the training classes computes them in `fit_base`.
    """

    uses_names: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(options.Config):
        # Keyword-only, so that a subclass's own options keep their positions.
        tta: Annotated[
            Literal["none", "shifted", "mirrored"],
            "test-time augmentation: average the embeddings of an image and of four one-pixel shifts "
            "(shifted), or of its mirror image (mirrored)",
        ] = dataclasses.field(default="none", kw_only=True)

    def __init__(self, backbone: Backbone, spec: TaskSpec, config: options.Config | None = None):
        super().__init__(backbone, spec, config)
        # A plugin's Config need not extend FeatureLearner.Config.
        self._tta = TestTimeAugmentation(getattr(self.config, "tta", "none"), spec.input_shape)

    def embed(self, x: Tensor) -> Tensor:
        """Return the features (N, D) of examples (N, *)."""
        return self.backbone(x)

    def features(self, x: Tensor) -> Tensor:
        """Return the features (N, D) to classify: `embed`, with test-time augmentation if set."""
        return self._tta.mean(self.embed, x)

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        """Return logits (B, Q, ways) from features (B, S, D), labels (B, S) and features (B, Q, D)."""
        raise NotImplementedError

    def classify_named(
        self, support_z: Tensor, support_y: Tensor, query_z: Tensor, names_z: Tensor
    ) -> Tensor:
        """Return logits (B, Q, ways), given the features (B, ways, D) of the classes' names too.

        The support set may be empty (S = 0), and a class may lack examples. Only for a subclass
        whose `uses_names` is true.
        """
        raise NotImplementedError

    def head(
        self, support_z: Tensor, support_y: Tensor, names_z: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return the function from features of queries (B, Q, D) to logits (B, Q, ways).

        By default it is `classify` or `classify_named`. A subclass that fits something to the
        support set may override this, so that it is fitted once for many calls.
        """
        if names_z is None:
            return lambda query_z: self.classify(support_z, support_y, query_z)
        return lambda query_z: self.classify_named(support_z, support_y, query_z, names_z)

    @torch.no_grad()
    def leave_one_out(
        self, support_z: Tensor, support_y: Tensor, names_z: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, S, ways): each support example classified by all others.

        Without names, the row of an example that is the only one of its class is NaN. A subclass
        may override this with a faster way to the same logits.
        """
        ways = ways_of(support_y) if names_z is None else names_z.shape[1]
        logits = support_z.new_full((*support_z.shape[:2], ways), float("nan"))
        for b in range(len(support_z)):
            z, y = support_z[b], support_y[b]
            named = None if names_z is None else names_z[b]
            left = torch.arange(len(y), device=y.device)
            if named is None:
                left = left[y.bincount()[y] > 1]
            if not len(left):
                continue
            for part in left.split(max(1, LEFT_OUT_AT_ONCE // max(1, z.numel()))):
                logits[b, part] = self._without_each(z, y, named, part)
        return logits

    def _without_each(self, z: Tensor, y: Tensor, names_z: Tensor | None, left: Tensor) -> Tensor:
        """Return logits (N, ways) of the examples `left` (N,), each classified by all others."""
        others = torch.arange(len(y) - 1, device=y.device)
        others = others + (others >= left[:, None])  # (N, S - 1)
        tasks = z[others], y[others], z[left, None]
        if names_z is None:
            return self.classify(*tasks)[:, 0]
        return self.classify_named(*tasks, names_z.expand(len(left), -1, -1))[:, 0]

    def fit_base(self, z: Tensor, y: Tensor) -> None:
        """Compute what the algorithm wants to know of the training classes.

        Args:
            z: the features (N, D) of all training examples.
            y: their classes (N,), int64.

        Training calls this before each validation, and `z` depends on the backbone at that moment.
        The results belong in buffers, which the constructor creates and which are saved with the
        model. By default there are none.
        """

    def embed_both(self, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, S, D) and (B, Q, D) of support (B, S, *) and queries (B, Q, *)."""
        if self.training and len(support_x) > 1:
            # BatchNorm's statistics must be those of one task, whatever else is in the meta-batch.
            each = [self.embed_both(s[None], q[None]) for s, q in zip(support_x, query_x)]
            return torch.cat([s for s, _ in each]), torch.cat([q for _, q in each])
        x = torch.cat([support_x.flatten(0, 1), query_x.flatten(0, 1)])
        support_z, query_z = self.features(x).tensor_split([support_x.shape[:2].numel()])
        return support_z.unflatten(0, support_x.shape[:2]), query_z.unflatten(0, query_x.shape[:2])

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support_z, query_z = self.embed_both(support_x, query_x)
        return self.classify(support_z, support_y, query_z)


def task_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (..., ways) for int64 targets (...).

    For float targets it is the mean squared error.
    """
    if target.is_floating_point():
        return F.mse_loss(prediction, target)
    return F.cross_entropy(prediction.flatten(0, -2), target.flatten())


def class_means(z: Tensor, y: Tensor) -> Tensor:
    """Return the mean feature of each class, (B, ways, D), from features (B, S, D) and labels (B, S)."""
    member = F.one_hot(y, ways_of(y)).to(z.dtype)  # (B, S, ways)
    return member.mT @ z / member.sum(1).unsqueeze(-1)


def _check_tasks(spec: TaskSpec, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> None:
    _check_types(spec, {"support_x": support_x, "support_y": support_y, "query_x": query_x})
    _check_shapes(spec, support_x, support_y, query_x)
    # Reading labels from a GPU would wait for it, and a compiler cannot trace values.
    if not (spec.regression or support_y.device.type != "cpu" or torch.compiler.is_compiling()):
        _check_labels(support_y)


def _check_types(spec: TaskSpec, given: Mapping[str, Any]) -> None:
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise DataError(
                f"{name} is a {type(x).__name__}, not a tensor", "convert it with torch.as_tensor"
            )
        if x.dtype == torch.uint8:
            raise DataError(
                f"{name} is uint8",
                "images are floats in [0, 1] (`x.float() / 255`), labels are int64",
            )
    labels = given["support_y"]
    wrong = not labels.is_floating_point() if spec.regression else labels.dtype != torch.int64
    if wrong:
        expected = "targets are floats" if spec.regression else "labels are int64 (`y.long()`)"
        raise DataError(f"support_y is {labels.dtype}", expected)


def _check_shapes(spec: TaskSpec, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> None:
    example = tuple(spec.input_shape)
    missing = {
        2 + len(example) - support_x.dim(),
        (3 if spec.regression else 2) - support_y.dim(),
        2 + len(example) - query_x.dim(),
    }
    if missing == {0} and (
        len(support_x) == len(query_x)
        and support_x.shape[2:] == query_x.shape[2:] == example
        and support_y.shape[:2] == support_x.shape[:2]
    ):
        return
    like = ", ".join(map(str, example))
    given = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in given.items())
    raise DataError(
        f"the model takes support_x (B, S, {like}), support_y (B, S{', D' * spec.regression}) and "
        f"query_x (B, Q, {like}), but got {shapes}",
        "the first dimension is the task; for a single task pass support_x[None], support_y[None], query_x[None]"
        if missing == {1}
        else "all three need the same B (number of tasks), and support_y one label per support example",
    )


def _check_labels(support_y: Tensor) -> None:
    try:
        low, high = (int(support_y.min()), int(support_y.max())) if support_y.numel() else (0, -1)
    except RuntimeError:  # under vmap the values cannot be read
        return
    every_class = low >= 0 and 0 <= high < support_y.shape[1]
    if not every_class or not F.one_hot(support_y, high + 1).any(1).all():
        raise DataError(
            "support_y has a class without an example",
            "in a task with N classes the labels are 0, 1, ..., N - 1, each at least once; "
            "all tasks of a call have the same N",
        )
