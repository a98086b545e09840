"""Drawing tasks: metazoo, the tutorials' loader and easyfsl's; growth; and the two samplers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metazoo import EpisodeSampler, Examples
from metazoo.tasks import random_on_gpu

from . import rivals
from .harness import OURS, Bench, Call, Way

WAYS, SHOTS, QUERIES = 5, 1, 15
BLOCK = 16  # tasks of one call
TUTORIAL, EASYFSL = "tutorial loader, image files", "easyfsl, images in memory"


def run(bench: Bench) -> None:
    bench.cpu_only()
    bench.work = "drawing tasks, time for one task (sampler: for 64)"
    threads = torch.get_num_threads()
    with bench.part("5-way 1-shot 15-query, Omniglot"):
        omniglot(bench)
    torch.set_num_threads(threads)
    with bench.part("growth with classes"):
        growth(bench)
    for ways, shots, queries in ((5, 1, 15), (20, 5, 5)):
        with bench.part(f"sampler, {ways}-way {shots}-shot {queries}-query"):
            samplers(bench, ways, shots + queries)


def in_threads(calls: Mapping[str, Call]) -> dict[str, Call]:
    """Return each call with one of PyTorch's threads and with all of them."""

    def one(call: Call, threads: int) -> Call:
        def run() -> object:
            torch.set_num_threads(threads)
            return call()

        return run

    counts = sorted({1, torch.get_num_threads()})
    return {f"{name}threads: {n}": one(c, n) for name, c in calls.items() for n in counts}


def drawn(sampler: EpisodeSampler, tasks: int, at_once: int) -> Call:
    """Return a call that draws new tasks each time: the sampler keeps its last choice."""
    numbers = itertools.count()

    def draw() -> None:
        first = tasks * next(numbers)
        for i in range(first, first + tasks, at_once):
            sampler.draw(i, at_once)

    return draw


def omniglot(bench: Bench) -> None:
    """Race metazoo with the loaders of the tutorials and of easyfsl, each in its fastest setting."""
    examples, tasks = rivals.characters(bench.pick(1623, 40)), bench.pick(64, 8)
    sampler = EpisodeSampler(examples, WAYS, SHOTS, QUERIES)
    floats = examples.with_values(examples.take(torch.arange(len(examples.x))))
    ways: dict[str, Way] = {}
    for name, source, at_once in (
        (OURS, sampler, min(BLOCK, tasks)),
        (f"{OURS}, one task at a time", sampler, 1),
        (
            f"{OURS}, float32 in memory",
            EpisodeSampler(floats, WAYS, SHOTS, QUERIES),
            min(BLOCK, tasks),
        ),
    ):
        setting, call = bench.quickest(in_threads({"": drawn(source, tasks, at_once)}))
        ways[name] = Way(call, f"tasks a call: {at_once}, {setting}", tasks)
    with rivals.unzipped(examples.names) as root:
        files = rivals.ImageFiles(root, examples.names)
        got = next(iter(rivals.tutorial_loader(files, sampler, 0, 1, 0)))
        bench.check(
            f"{TUTORIAL}: the same tensors", unequal(got, rivals.only_task(sampler.draw(0, 1))), 0
        )
        workers = {
            f"workers: {n}, ": lambda n=n: list(rivals.tutorial_loader(files, sampler, 0, tasks, n))
            for n in bench.pick((0, 2), (0,))
        }
        setting, call = bench.quickest(in_threads(workers))
        ways[TUTORIAL] = Way(call, setting, tasks)
        with bench.rival(EASYFSL):
            ways[EASYFSL] = easyfsl(bench, examples, sampler, tasks)
        bench.race(ways, unit="ms")


def easyfsl(bench: Bench, examples: Examples, sampler: EpisodeSampler, tasks: int) -> Way:
    """Return easyfsl's way, once it has stacked the same task from the same images."""
    items = rivals.InMemory(examples)
    source = rivals.easyfsl().sampler(items, WAYS, SHOTS, QUERIES, tasks)

    def load(order: object, workers: int) -> list[list[Tensor]]:
        collate = source.episodic_collate_fn
        return list(DataLoader(items, batch_sampler=order, num_workers=workers, collate_fn=collate))

    support, _, query, _, _ = load(rivals.Tasks(sampler, 0, 1), 0)[0]
    task = sampler.draw(0, 1)
    off = unequal((support, query), (task.support_x[0], task.query_x[0]))
    bench.check(f"{EASYFSL}: the same images (its labels are in another order)", off, 0)
    workers = {f"workers: {n}, ": lambda n=n: load(source, n) for n in bench.pick((0, 2), (0,))}
    setting, call = bench.quickest(in_threads(workers))
    return Way(call, setting, tasks)


def unequal(values: object, expected: object) -> int:
    """Return how many tensors differ from those expected, in any bit."""
    return sum(not torch.equal(a, b) for a, b in zip(values, expected))  # type: ignore[call-overload]


def growth(bench: Bench) -> None:
    """Draw from more and more classes: the cost of a task must not grow."""
    tasks, ways = bench.pick(512, 16), {}
    for classes in bench.pick((10**2, 10**3, 10**4, 10**5), (10**2, 10**3)):
        x = torch.randint(256, (classes * 20, 1, 8, 8), dtype=torch.uint8)
        examples = Examples(x, (20,) * classes, tuple(map(str, range(classes))))
        sampler = EpisodeSampler(examples, WAYS, SHOTS, QUERIES)
        ways[f"{classes:,} classes"] = Way(drawn(sampler, tasks, BLOCK), "1x8x8 bytes", tasks)
    bench.race(ways, unit="us")


def samplers(bench: Bench, ways: int, each: int) -> None:
    """Race the sampler in numpy with the one in torch, which serves the GPU; both on the CPU."""
    classes, block = 1000, 64
    counts = torch.full((classes,), 20)
    starts = 20 * torch.arange(classes)
    names = tuple(map(str, range(classes)))
    sampler = EpisodeSampler(
        Examples(torch.empty(20 * classes, 0), (20,) * classes, names), ways, 1, each - 1
    )
    numbers = {"numpy": itertools.count(), "torch": itertools.count()}

    def by_numpy() -> np.ndarray:
        return sampler.choose(block * next(numbers["numpy"]), block)[1]

    def by_torch() -> Tensor:
        first = block * next(numbers["torch"])
        return random_on_gpu.choose(0, first, block, ways, each, counts, starts)

    expected = by_torch()
    numbers["torch"] = itertools.count()
    found = {"numpy": Way(by_numpy), "torch operations": Way(by_torch)}
    bench.race(
        found,
        unit="ms",
        rounds=31,
        limit=0,
        error=lambda rows: unequal([torch.as_tensor(rows)], [expected]),
    )
