"""How the cost of drawing and evaluating grows: with classes, ways, shots, and worker processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader, Dataset

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.evaluation.measure import evaluate
from metazoo.tasks.episode import Episode
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler

from .features import Given
from .kernels import measure
from .suite import Options, Result, Row, rounded

BLOCK = 16
QUERIES, EACH = 15, 40  # queries a class, examples of a class
WIDTH = 64
PICTURE = "growth.png"
CLASSES = (10**2, 10**3, 10**4, 10**5)


class Blocks(Dataset[Episode]):
    """Tasks, a block an item: what a loader's worker processes draw from."""

    def __init__(self, sampler: EpisodeSampler, blocks: int):
        self.sampler, self.blocks = sampler, blocks

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, i: int) -> Episode:
        return self.sampler.draw(BLOCK * i, BLOCK)


def made(classes: int, *shape: int) -> Examples:
    """Return made-up examples of so many classes: images of bytes or, for one axis, features."""
    count = classes * EACH
    x = (
        torch.randn(count, *shape)
        if len(shape) == 1
        else torch.randint(256, (count, *shape), dtype=torch.uint8)
    )
    return Examples(x, (EACH,) * classes, tuple(map(str, range(classes))))


def run(options: Options) -> Result:
    result = Result(
        "tasks drawn, and evaluated by protonet from 64 features, as their number and size grow",
        "tasks a second",
    )
    tasks = options.pick(512, 16)
    model = ProtoNet(Given(WIDTH), metazoo.TaskSpec((WIDTH,), 5))

    def drawing(sampler: EpisodeSampler) -> Callable[[], object]:
        return lambda: [sampler.draw(first, BLOCK) for first in range(0, tasks, BLOCK)]

    def evaluating(sampler: EpisodeSampler) -> Callable[[], object]:
        return lambda: evaluate(model, sampler, tasks)

    def loading(sampler: EpisodeSampler, workers: int) -> Callable[[], object]:
        return lambda: list(
            DataLoader(Blocks(sampler, tasks // BLOCK), batch_size=None, num_workers=workers)
        )

    torch.manual_seed(0)
    several = options.pick((5, 10, 20, 40, 80), (5, 80))
    shots = options.pick((1, 2, 5, 10, 20), (1, 20))
    pixels, features = made(100, 1, 28, 28), made(100, WIDTH)
    curves = {
        "drawing, classes": {
            n: drawing(EpisodeSampler(made(n, 1, 8, 8), 5, 1, QUERIES))
            for n in options.pick(CLASSES, CLASSES[:2])
        },
        "drawing, ways": {n: drawing(EpisodeSampler(pixels, n, 1, QUERIES)) for n in several},
        "drawing, shots": {n: drawing(EpisodeSampler(pixels, 5, n, QUERIES)) for n in shots},
        "evaluation, ways": {
            n: evaluating(EpisodeSampler(features, n, 1, QUERIES)) for n in several
        },
        "evaluation, shots": {
            n: evaluating(EpisodeSampler(features, 5, n, QUERIES)) for n in shots
        },
        "drawing, worker processes": {
            n: loading(EpisodeSampler(pixels, 5, 1, QUERIES), n) for n in (0, 1, 2)
        },
    }
    found = {}
    for name, ways in curves.items():
        times = measure.race(
            measure.Scope(torch.device("cpu")),
            {str(n): way for n, way in ways.items()},
            options.pick(5, 1),
        )
        found[name] = {
            int(n): tuple(tasks * 1e6 / row[key] for key in ("us", "high", "low"))
            for n, row in times.items()
        }
        for n, values in found[name].items():
            result.rows.append(Row(name, str(n), *map(rounded, values)))
    result.notes.append(
        f"made-up examples: {EACH} a class, 1x8x8 bytes where classes grow, 1x28x28 where ways and shots do"
    )
    result.plots.append(plot(found, options.images))
    return result


def plot(found: dict[str, dict[int, tuple[float, ...]]], folder: Path) -> str:
    """Write the curves, with their extremes, and return the name of the picture."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), layout="constrained")
    for axis, (name, curve) in zip(axes.flat, found.items()):
        what, _, size = name.partition(", ")
        middle, low, high = zip(*curve.values())
        axis.plot(list(curve), middle, marker="o", color="tab:blue")
        axis.fill_between(list(curve), low, high, color="tab:blue", alpha=0.2, linewidth=0)
        axis.set(xlabel=size, title=what)
        if size == "worker processes":
            axis.set_xticks(list(curve))
        else:
            axis.set_xscale("log")
        if size in ("ways", "shots"):
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, None)
        axis.set_ylabel("tasks a second")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / PICTURE, dpi=100)
    plt.close(figure)
    return PICTURE
