"""Memory and time of a second-order MAML step with 5 inner steps, inner steps kept or computed again (`--checkpoint-inner`).

As `python -m benchmarks.memory HOW TASKS STEPS` it takes outer steps in this process, and prints what the first one
added to the most memory that the process held, in MiB, the seconds of the others, and the first's loss.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

import metazoo
from metazoo.algorithms.maml import MAML
from metazoo.backbones.conv4 import Conv4
from metazoo.cli.memory import keep_freed_memory
from metazoo.datasets.glyphs import Glyphs

from .suite import OURS, Options, Result, Unavailable, fresh

KEPT, AGAIN = "inner steps kept", OURS  # ours computes them again
MEMORY, TIME = "memory, MiB", "time, s"
INNER_STEPS, SHOTS, QUERIES = 5, 5, 5


def most_held() -> float:
    """Return the most memory that this process has held so far, in MiB."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def main() -> None:
    how, tasks, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    keep_freed_memory()
    torch.manual_seed(0)
    config = MAML.Config(inner_steps=INNER_STEPS, checkpoint_inner=how == AGAIN)
    model = MAML(Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), 5), config).train()
    episode = Glyphs(Glyphs.Config(alphabets=6)).tasks("train", 5, SHOTS, QUERIES, 0).draw(0, tasks)
    before, losses, times = most_held(), [], []
    for step in range(1 + steps):
        began = time.perf_counter()
        model.zero_grad()
        loss = model.loss(episode)
        loss.backward()
        times.append(time.perf_counter() - began)
        losses.append(loss.item())
        if step == 0:
            added = most_held() - before
    print(json.dumps({"memory": added, "times": times[1:], "loss": losses[0]}))


def run(options: Options) -> Result:
    if not Path("/proc/self/status").exists():
        raise Unavailable("only Linux tells how much memory a process has held")
    tasks, steps, rounds = options.pick(8, 1), options.pick(2, 1), options.pick(5, 1)
    result = Result(
        f"a second-order step of MAML, Conv4, {INNER_STEPS} inner steps, {tasks} tasks of 5 ways, {SHOTS} shots and {QUERIES} "
        "queries a class, each round in processes of its own",
        "MiB, s",
    )
    memory: dict[str, list[float]] = {AGAIN: [], KEPT: []}
    times: dict[str, list[float]] = {AGAIN: [], KEPT: []}
    losses = {}
    for _ in range(rounds):
        for how in (AGAIN, KEPT):
            found = fresh("benchmarks.memory", how, str(tasks), str(steps))
            memory[how].append(found["memory"])
            times[how] += found["times"]
            losses[how] = found["loss"]
    result.checked("the loss, to 1e-5", abs(losses[AGAIN] / losses[KEPT] - 1) < 1e-5)
    result.add(MEMORY, memory, {AGAIN: "--checkpoint-inner"})
    result.add(TIME, times, {AGAIN: "--checkpoint-inner"})
    result.notes.append(
        "memory: what the first step adds to the most that the process has held (VmHWM)"
    )
    result.aim(2, KEPT, part=MEMORY)
    # At most 1.3 times the time.
    result.aim(1 / 1.3, KEPT, part=TIME)
    return result


if __name__ == "__main__":
    main()
