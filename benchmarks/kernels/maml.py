"""The whole second-order step of MAML, Conv4 under vmap, with METAZOO_KERNELS=auto and =off: two processes, taking turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch

from .measure import Case, Row, Scope, count, sample

MODES = ("auto", "off")


class Worker:
    """A process that measures when it is told to: the variable is read once a process."""

    def __init__(self, scope: Scope, mode: str):
        command = [
            sys.executable,
            "-m",
            "benchmarks.kernels.maml",
            scope.device.type,
            str(int(scope.quick)),
        ]
        environment = {**os.environ, "METAZOO_KERNELS": mode}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> Row:
        """Return what it answers; raise RuntimeError with its last line where it died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            said = self.process.communicate()[1].strip().splitlines()
            raise RuntimeError(
                said[-1] if said else f"it ended with status {self.process.returncode}"
            )
        return json.loads(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(scope: Scope) -> list[Row]:
    """Return a row for every size and mode."""
    sizes = [(2, 1)] if scope.quick else [(tasks, steps) for tasks in (4, 32) for steps in (1, 5)]
    rounds = 5 if scope.cuda else 2 if scope.quick else 4
    workers = {mode: Worker(scope, mode) for mode in MODES}
    rows: list[Row] = []
    try:
        for tasks, steps in sizes:
            first: dict[str, Row] = {}
            times: dict[str, list[float]] = {mode: [] for mode in MODES}
            for mode, worker in workers.items():
                first[mode] = {
                    "way": mode,
                    "tasks": tasks,
                    "steps": steps,
                    **worker.ask(what="first", tasks=tasks, steps=steps),
                }
            for _ in range(rounds):
                for mode, worker in workers.items():
                    times[mode].append(worker.ask(what="time", tasks=tasks, steps=steps)["us"])
            for mode in MODES:
                first[mode].update(
                    us=statistics.median(times[mode]), low=min(times[mode]), high=max(times[mode])
                )
            off = first["off"]["gradient"]
            difference = sum((a - b) ** 2 for a, b in zip(first["auto"]["gradient"], off)) / sum(
                b * b for b in off
            )
            for mode in MODES:
                del first[mode]["gradient"]
            first["auto"]["error"] = (
                difference**0.5
            )  # against the other, in the norm of samples of the gradient
            first["auto"]["faster"] = round(first["off"]["us"] / first["auto"]["us"], 3)
            if not difference**0.5 < 1e-2:
                first["auto"]["problem"] = "the gradient is not that of stock PyTorch"
            rows += first.values()
    except RuntimeError as error:
        rows.append({"way": "auto", "problem": f"a worker died: {error}"})
    finally:
        for worker in workers.values():
            worker.close()
    return rows


def cases(scope: Scope) -> Iterator[Case]:
    """Yield what there is to measure."""
    yield Case("maml", "second-order steps", 3, lambda: run(scope))


def work() -> None:
    """Answer questions from stdin until it ends."""
    import metazoo
    from metazoo.algorithms.maml import MAML
    from metazoo.backbones.conv4 import Conv4
    from metazoo.cli.memory import keep_freed_memory
    from metazoo.datasets.glyphs import Glyphs

    scope = Scope(torch.device(sys.argv[1]), quick=sys.argv[2] == "1")
    if not scope.cuda:
        keep_freed_memory()
    source = Glyphs(Glyphs.Config(alphabets=6)).tasks("train", 5, 1, 5, 0)
    for line in sys.stdin:
        question = json.loads(line)
        if question["what"] == "first":
            torch.manual_seed(0)
            config = MAML.Config(tasks="vmap", inner_steps=question["steps"])
            model = MAML(Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), 5), config).to(
                scope.device
            )
            task = source.draw(0, question["tasks"]).to(scope.device)

            def step(model: Any = model, task: Any = task) -> None:
                model.zero_grad()
                model.loss(task).backward()

            step()
            gradient = torch.cat(
                [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            ).double()
            answer = {"gradient": gradient[::101].tolist(), **count(scope, step)}
            answer.pop("kernels", None)  # a hundred names of stock ones
        else:
            step()
            times = [sample(scope, step, 1) for _ in range(5 if scope.cuda else 1)]
            answer = {"us": statistics.median(times)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    work()
