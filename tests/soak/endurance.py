"""Endurance: many tasks and predictions leave memory, threads and open files as they were."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

from metazoo.datasets.packed.dataset import Packed
from metazoo.evaluation.measure import evaluate
from metazoo.zoo.find import load

from .material import Material
from .readers import predict
from .subject import MIB, Case, Subject, must

EPISODES = 1000  # a case
GROWTH = 8 * MIB


class Level:
    """What the process holds after its first cases; the later ones must add nothing."""

    def __init__(self, after: int):
        self.after, self.seen, self.first = after, 0, (0, 0, 0)

    def check(self) -> None:
        """Remember what the process holds, or compare with that."""
        self.seen += 1
        now = held()
        if self.seen <= self.after:
            self.first = now
            return
        for what, before, after, allowed in zip(
            ("bytes", "threads", "open files"), self.first, now, (GROWTH, 0, 0)
        ):
            must(after - before <= allowed, f"{before} {what} became {after}")


def held() -> tuple[int, int, int]:
    """Return the memory, the threads and the open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    entries = (len(os.listdir(f"/proc/self/{name}")) for name in ("task", "fd"))
    return pages * resource.getpagesize(), *entries  # type: ignore[return-value]


def subjects(material: Material) -> list[Subject]:
    drawn, predicted = Level(10), Level(30)

    def run_episodes(case: Case) -> Any:
        """Draw tasks and evaluate a model on them, with features and without."""
        model, data = load(material.run), Packed(Packed.Config(root=str(material.packed)))
        tasks = data.tasks("train", 3, 1, 2, case.number)
        for first in range(0, EPISODES - 100, 100):
            tasks.draw(first, 100)
        scores = evaluate(model, tasks, 100, cache=case.number % 2 == 0)
        drawn.check()
        return scores.mean().item()

    def run_predictions(case: Case) -> Any:
        found = predict(material, material.run)
        predicted.check()
        return found

    return [
        Subject("episodes", f"{EPISODES:,} episodes each", run_episodes, 100, 14, together=100),
        Subject("predictions", "predictions", run_predictions, 1000, 50, together=1000),
    ]
