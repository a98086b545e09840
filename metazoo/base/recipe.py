"""The training options, the same for every algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from metazoo import options
from metazoo.options import Range


@dataclass(frozen=True)
class Recipe(options.Config):
    """How an algorithm is trained; the same options for every algorithm, whatever their defaults."""

    backbone: Annotated[str, "network that embeds an example"] = "conv4"
    ways: Annotated[int, "classes in a task, at validation and test", Range(2)] = 5
    shots: Annotated[int, "support examples a class, at validation and test", Range(1)] = 1
    queries: Annotated[int, "query examples a class, at validation and test", Range(1)] = 15
    init: Annotated[
        str | None,
        "model (a name of the zoo, run, file or address) whose backbone to start from  [default: random]",
    ] = None
    augment: Annotated[Literal["none", "drawing", "photo"], "how training images are varied"] = (
        "none"
    )
    train_ways: Annotated[int | None, "classes in a training task  [default: ways]", Range(2)] = (
        None
    )
    train_shots: Annotated[
        int | None, "support examples a class in training  [default: shots]", Range(1)
    ] = None
    train_queries: Annotated[
        int | None, "query examples a class in training  [default: queries]", Range(1)
    ] = None
    steps: Annotated[int, "outer steps", Range(1)] = 2000
    meta_batch: Annotated[int, "tasks (or batches) in an outer step", Range(1)] = 1
    batch_size: Annotated[
        int, "examples in a batch, for algorithms that draw no tasks in training", Range(1)
    ] = 64
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd", "nesterov"], "outer optimizer (nesterov: sgd, momentum 0.9)"
    ] = "adam"
    lr: Annotated[float, "outer learning rate", Range(0)] = 1e-3
    weight_decay: Annotated[float, "outer weight decay", Range(0)] = 0.0
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "halving"],
        "outer learning rate over the run (cosine and linear end at 0)",
    ] = "cosine"
    halve_every: Annotated[int, "outer steps after which `halving` halves", Range(1)] = 2000
    precision: Annotated[
        Literal["float32", "bf16"],
        "arithmetic of the backbone in training; bf16 is faster where the processor has it",
    ] = "float32"
    clip_grad: Annotated[
        float | None, "largest norm of the outer gradient  [default: none]", Range(1e-9)
    ] = None
    validate_every: Annotated[
        int, "outer steps between validations (and checkpoints)", Range(1)
    ] = 100
    validation_episodes: Annotated[int, "tasks in a validation", Range(2)] = 200
    patience: Annotated[
        int | None,
        "validations without improvement after which to stop  [default: never]",
        Range(1),
    ] = None
    test_episodes: Annotated[int, "tasks in the test at the end", Range(2)] = 1000
    seed: Annotated[int, "seed of everything random", Range(0, 2**63 - 1)] = 0
    device: Annotated[str, "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one"] = "auto"


def unread(draws: str, schedule: str) -> set[str]:
    """Return the training options that an algorithm which draws "episodes" or "batches" does not read under a schedule."""
    names = (
        {"batch_size"} if draws == "episodes" else {"train_ways", "train_shots", "train_queries"}
    )
    return names if schedule == "halving" else {*names, "halve_every"}
