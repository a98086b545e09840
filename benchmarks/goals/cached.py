"""The accuracies of 10,000 tasks over features that lie on the device, in 0.1 s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import metazoo
from benchmarks.features import Given
from benchmarks.kernels.measure import Row, Scope, Way
from metazoo.algorithms.protonet import ProtoNet
from metazoo.evaluation.measure import embedded, evaluate
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler

from .part import OURS, Part, checked, verdict

WAYS, SHOTS, QUERIES, FEATURES = 5, 1, 15, 64
CLASSES, DRAWINGS = 1600, 20
TOGETHER = 1000  # tasks that the plain evaluation takes at once
LIMIT_US = 100_000
DRAWN, DRAWING = f"{OURS}, tasks drawn beforehand", "metazoo's drawing alone"
BATCHED, ONE = (
    f"cdist, {TOGETHER} tasks at once, drawn beforehand",
    "cdist, a task at a time, drawn beforehand",
)


def characters() -> Examples:
    """Return made-up features; classes lie close enough for some queries to be mistaken."""
    torch.manual_seed(0)
    means = torch.randn(CLASSES, 1, FEATURES)
    x = (means + 0.5 * FEATURES**0.5 * torch.randn(CLASSES, DRAWINGS, FEATURES)).flatten(0, 1)
    return Examples(x, (DRAWINGS,) * CLASSES, tuple(map(str, range(CLASSES))), "made-up features")


def plain(x: Tensor, rows: Tensor, size: int) -> Tensor:
    """Return the accuracies of tasks, so many at once, from the rows of their features (tasks, ways, shots + queries)."""
    labels = torch.arange(WAYS, device=x.device).repeat_interleave(QUERIES)
    scores = []
    for some in rows.split(size):
        z = x[some]  # (tasks, ways, shots + queries, features)
        distance = torch.cdist(z[:, :, SHOTS:].flatten(1, 2), z[:, :, :SHOTS].mean(2))
        scores.append((distance.argmin(-1) == labels).float().mean(1))
    return torch.cat(scores).cpu()


def part(scope: Scope) -> Part:
    """Return the goal's part."""
    count, few = (200, 20) if scope.quick else (10_000, 500)
    examples = characters().to(scope.device)
    model = ProtoNet(Given(FEATURES), metazoo.TaskSpec((FEATURES,), WAYS)).to(scope.device)
    rows = EpisodeSampler(examples, WAYS, SHOTS, QUERIES).rows(0, count).to(scope.device)
    drawn = embedded(model, EpisodeSampler(examples, WAYS, SHOTS, QUERIES), count, scope.device)

    def ours() -> Tensor:
        # A sampler keeps what it drew last; a new one draws everything.
        return evaluate(model, EpisodeSampler(examples, WAYS, SHOTS, QUERIES), count, scope.device)

    ways: dict[str, Way] = {
        OURS: ours,
        DRAWN: lambda: evaluate(model, drawn, count, scope.device),
        DRAWING: lambda: EpisodeSampler(examples, WAYS, SHOTS, QUERIES).rows(0, count).shape,
        BATCHED: lambda: plain(examples.x, rows, TOGETHER),
        ONE: lambda: plain(examples.x, rows[:few], 1),
    }
    expected = plain(examples.x.double(), rows, TOGETHER)

    def check() -> list[str]:
        return [
            # One query in 75 may be a tie, which rounding decides.
            checked(
                f"{way}: each task's accuracy, but for one query at most",
                difference(found, expected),
                1.5 / 75,
            )
            for way in (OURS, DRAWN, BATCHED, ONE)
            for found in [ways[way]()]
        ]

    def judge(result: Any) -> Row:
        if not isinstance(result, Tensor):
            return {}
        return {"result": result.mean().item(), "error_result": difference(result, expected)}

    def verdicts(us: Mapping[str, float]) -> list[Row]:
        goal = "10,000 cached episodes in 0.1 s, in microseconds"
        return [verdict(goal, way, us[way], LIMIT_US) for way in (OURS, DRAWN) if way in us]

    return Part(
        f"accuracies of {count:,} {WAYS}-way {SHOTS}-shot {QUERIES}-query tasks over {FEATURES} features of {CLASSES} classes",
        ways, check, judge, verdicts, episodes={**dict.fromkeys(ways, count), ONE: few},
    )  # fmt: skip


def difference(found: Tensor, expected: Tensor) -> float:
    """Return how far the accuracy of a task is off, the worst of those found."""
    return (found - expected[: len(found)]).abs().max().item()
