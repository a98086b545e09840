"""Drawing tasks: metazoo and easyfsl; growth with the number of classes; numpy and torch samplers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metazoo import EpisodeSampler, Examples
from metazoo.tasks import random_on_gpu

from . import rivals
from .harness import OURS, Bench, Call, Way

WAYS, SHOTS, QUERIES = 5, 1, 15
BLOCK = 16  # tasks of one call
EASYFSL = "easyfsl, images in memory"


def run(bench: Bench) -> None:
    bench.cpu_only()
    bench.work = "drawing tasks, time for one task (sampler: for choosing the examples of 64)"
    with bench.part("5-way 1-shot 15-query, Omniglot"):
        omniglot(bench)
    with bench.part("growth with classes"):
        growth(bench)
    for ways, shots, queries in ((5, 1, 15), (20, 5, 5)):
        with bench.part(f"sampler, {ways}-way {shots}-shot {queries}-query, 1,000 classes"):
            samplers(bench, ways, shots + queries)


def drawn(sampler: EpisodeSampler, tasks: int, at_once: int = BLOCK) -> Call:
    """Return a call that draws new tasks each time: the sampler keeps its last choice."""
    numbers = itertools.count()

    def draw() -> None:
        first = tasks * next(numbers)
        for i in range(first, first + tasks, at_once):
            sampler.draw(i, at_once)

    return draw


def unequal(values: Sequence[Tensor], expected: Sequence[Tensor]) -> int:
    """Return how many tensors differ from those expected in any bit."""
    return sum(not torch.equal(a, b) for a, b in zip(values, expected))


def omniglot(bench: Bench) -> None:
    """Race metazoo with easyfsl's loader, which keeps float32 images in memory."""
    examples, tasks = rivals.characters(bench.pick(1623, 40)), bench.pick(64, 16)
    sampler = EpisodeSampler(examples, WAYS, SHOTS, QUERIES)
    floats = examples.with_values(examples.take(torch.arange(len(examples.x))))
    ways = {
        OURS: Way(drawn(sampler, tasks), f"{BLOCK} tasks a call", tasks),
        f"{OURS}, float32 in memory": Way(
            drawn(EpisodeSampler(floats, WAYS, SHOTS, QUERIES), tasks),
            f"{BLOCK} tasks a call",
            tasks,
        ),
        f"{OURS}, one task at a time": Way(drawn(sampler, tasks, 1), "", tasks),
    }
    with bench.rival(EASYFSL):
        items = rivals.InMemory(examples)
        source = rivals.easyfsl().sampler(items, WAYS, SHOTS, QUERIES, tasks)
        load = partial(DataLoader, items, collate_fn=source.episodic_collate_fn)
        support, _, query, _, _ = next(iter(load(batch_sampler=rivals.Tasks(sampler, 0, 1))))
        task = sampler.draw(0, 1)
        off = unequal((support, query), (task.support_x[0], task.query_x[0]))
        bench.check(f"{EASYFSL}: the same images of the same task", off, 0)
        loaders = {
            f"workers: {n}": lambda n=n: list(load(batch_sampler=source, num_workers=n))
            for n in bench.pick((0, 2), (0,))
        }
        setting, call = bench.quickest(loaders)
        ways[EASYFSL] = Way(call, setting, tasks)
    bench.race(ways)


def made(classes: int, *shape: int) -> Examples:
    """Return 20 random examples of each class."""
    x = torch.randint(256, (classes * 20, *shape), dtype=torch.uint8)
    return Examples(x, (20,) * classes, tuple(map(str, range(classes))))


def growth(bench: Bench) -> None:
    """Draw from more and more classes: the cost of a task must not grow."""
    tasks, ways = bench.pick(512, 16), {}
    for classes in bench.pick((10**2, 10**3, 10**4, 10**5), (10**2, 10**3)):
        sampler = EpisodeSampler(made(classes, 1, 8, 8), WAYS, SHOTS, QUERIES)
        ways[f"{classes:,} classes"] = Way(drawn(sampler, tasks), "1x8x8 bytes", tasks)
    bench.race(ways, unit="us")


def samplers(bench: Bench, ways: int, each: int) -> None:
    """Race the sampler of the CPU (numpy) with that of the GPU (torch), both on the CPU."""
    classes, block = 1000, 64
    sampler = EpisodeSampler(made(classes, 0), ways, 1, each - 1)
    counts, starts = torch.full((classes,), 20), 20 * torch.arange(classes)
    numbers = [itertools.count(step=block), itertools.count(step=block)]

    def by_numpy() -> Tensor:
        return torch.from_numpy(sampler.choose(next(numbers[0]), block)[1])

    def by_torch() -> Tensor:
        return random_on_gpu.choose(0, next(numbers[1]), block, ways, each, counts, starts)

    both = {"numpy": Way(by_numpy), "torch operations": Way(by_torch)}
    expected = torch.from_numpy(sampler.choose(0, block)[1])
    bench.race(both, rounds=31, limit=0, error=lambda rows: unequal([rows], [expected]))
