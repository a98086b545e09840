"""Times a second-order MAML step of Conv4, its tasks in a loop and under vmap: `python benchmarks/maml_step.py`.

Eight 5-way 1-shot tasks with 5 queries a class, both ways in turn; the ratio of medians is to the loop.
"""

from __future__ import annotations

import statistics
import time

import torch

import metazoo
from metazoo.algorithms.maml import MAML
from metazoo.backbones import Conv4
from metazoo.cli.memory import keep_freed_memory
from metazoo.datasets.glyphs import Glyphs
from metazoo.runs import machine

ROUNDS = 9


def main() -> None:
    print(machine())
    keep_freed_memory()
    task = Glyphs(Glyphs.Config(alphabets=6)).tasks("train", 5, 1, 5, 0).draw(0, 8)
    for inner_steps in (1, 5):
        times: dict[str, list[float]] = {"loop": [], "vmap": []}
        models = {}
        for how in times:
            torch.manual_seed(0)
            config = MAML.Config(tasks=how, inner_steps=inner_steps)
            models[how] = MAML(Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), 5), config)
        for _ in range(ROUNDS):
            for how, model in models.items():
                began = time.perf_counter()
                model.zero_grad()
                model.loss(task).backward()
                times[how].append(time.perf_counter() - began)
        middle = {how: statistics.median(values[1:]) for how, values in times.items()}
        for how, values in times.items():
            spread = f"{min(values):.3f} to {max(values):.3f}"
            print(f"{inner_steps} inner steps  {how}  {middle[how]:.3f} s ({spread})  {middle[how] / middle['loop']:.2f}")


if __name__ == "__main__":
    main()
