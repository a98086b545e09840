"""The training options, which are the same for every algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from metazoo import options
from metazoo.options import Range


@dataclass(frozen=True)
class Recipe(options.Config):
    """How a model is trained; algorithms and data sets change the defaults, not the options."""

    backbone: Annotated[str, "network that embeds an example"] = "conv4"
    ways: Annotated[int, "classes in a validation or test task", Range(2, 10**5)] = 5
    shots: Annotated[
        int, "support examples per class in a validation or test task", Range(1, 10**5)
    ] = 1
    queries: Annotated[
        int, "query examples per class in a validation or test task", Range(1, 10**5)
    ] = 15
    init: Annotated[
        str | None,
        "model (zoo name, run folder, file or address) whose backbone to start from  [default: random]",
    ] = None
    augment: Annotated[
        Literal["none", "drawing", "photo"], "random augmentation of training images"
    ] = "none"
    train_ways: Annotated[
        int | None, "classes in a training task  [default: ways]", Range(2, 10**5)
    ] = None
    train_shots: Annotated[
        int | None,
        "support examples per class in a training task  [default: shots]",
        Range(1, 10**5),
    ] = None
    train_queries: Annotated[
        int | None,
        "query examples per class in a training task  [default: queries]",
        Range(1, 10**5),
    ] = None
    steps: Annotated[int, "outer steps (updates of the model's weights)", Range(1, 10**9)] = 2000
    meta_batch: Annotated[int, "tasks (or batches) per outer step", Range(1, 10**5)] = 1
    batch_size: Annotated[
        int, "examples in a batch, for algorithms that train on batches", Range(1, 10**6)
    ] = 64
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd", "nesterov"],
        "outer optimizer (nesterov: SGD with momentum 0.9)",
    ] = "adam"
    lr: Annotated[float, "outer learning rate", Range(0, 1e30)] = 1e-3
    weight_decay: Annotated[float, "outer weight decay", Range(0)] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine", "linear"],
        "outer learning rate over the run (cosine and linear end at 0)",
    ] = "cosine"
    precision: Annotated[
        Literal["float32", "bf16"],
        "number format of the backbone in training; bf16 is faster on processors that support it",
    ] = "float32"
    clip_grad: Annotated[
        float | None, "largest norm of the outer gradient  [default: no limit]", Range(1e-9)
    ] = None
    validate_every: Annotated[
        int, "outer steps between validations and checkpoints", Range(1, 10**9)
    ] = 100
    validation_episodes: Annotated[int, "tasks in a validation", Range(2, 10**7)] = 200
    patience: Annotated[
        int | None,
        "stop after this many validations without improvement  [default: never]",
        Range(1, 10**9),
    ] = None
    test_episodes: Annotated[int, "tasks in the final test", Range(2, 10**7)] = 1000
    seed: Annotated[int, "random seed", Range(0, 2**63 - 1)] = 0
    device: Annotated[str, "cpu, cuda, cuda:1, ...; auto uses a GPU if there is one"] = "auto"

    @property
    def training_task(self) -> tuple[int, int, int]:
        """Ways, shots and queries of a training task; what is not set is as in the test."""
        return (
            self.train_ways or self.ways,
            self.train_shots or self.shots,
            self.train_queries or self.queries,
        )


def unread_options(trains_on_batches: bool) -> set[str]:
    """Return the training options that an algorithm ignores, by what it trains on."""
    return {"train_ways", "train_shots", "train_queries"} if trains_on_batches else {"batch_size"}
