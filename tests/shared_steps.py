"""Outer steps in float64, in one process or shared among those of torchrun, which this file is given to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from metazoo import distributed
from metazoo.tasks.episode import Episode
from metazoo.training.loop import make_optimizer, outer_step
from metazoo.training.plan import plan

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "protonet": ("protonet", {}),
    "maml": ("maml", {"inner_lr": 0.02}),
    "maml one by one": ("maml", {"inner_lr": 0.02, "tasks": "loop"}),
    "matching": ("matching", {}),
}
# Three tasks: shares of two and one. Augmentation draws random numbers.
RECIPE = {
    "ways": 5,
    "train_ways": 5,
    "train_queries": 3,
    "meta_batch": 3,
    "optimizer": "sgd",
    "lr": 0.01,
    "augment": "drawing",
    "device": "cpu",
}
STEPS = 3


class Doubled:
    """A source of tasks, in float64."""

    def __init__(self, source: Any):
        self.source = source

    def draw(self, first: int, count: int) -> Episode:
        task = self.source.draw(first, count)
        return Episode(task.support_x.double(), task.support_y, task.query_x.double(), task.query_y)


def steps(case: str) -> Iterator[tuple[str, Tensor]]:
    """Take a few steps, and give the gradients and the weights after each, and the loss."""
    algorithm, options = CASES[case]
    blueprint, data = plan(algorithm, "glyphs", options, {"alphabets": 6}, {"width": 8}, RECIPE)
    recipe = blueprint.recipe
    torch.manual_seed(recipe.seed)
    model = blueprint.model().double()
    optimizer = make_optimizer(recipe, model)
    source = Doubled(data.tasks("train", recipe.train_ways, 1, recipe.train_queries, recipe.seed))
    for step in range(STEPS):
        loss = outer_step(model, optimizer, source, recipe, step, torch.device("cpu"))
        yield f"{case}: loss {step}", torch.tensor(loss, dtype=torch.float64)
        for name, p in model.named_parameters():
            if p.grad is not None:
                yield f"{case}: gradient {step} of {name}", p.grad.contiguous().clone()
        for name, value in model.state_dict().items():
            yield f"{case}: {name} after {step}", value.contiguous().clone()


if __name__ == "__main__":
    with distributed.joined():
        found = {key: value for case in CASES for key, value in steps(case)}
        if distributed.first():
            save_file(found, sys.argv[1])
    # A thread of gloo that outlives the group now and then aborts the process at its end.
    if os.path.exists("/proc/self/task"):
        assert len(os.listdir("/proc/self/task")) == 1
