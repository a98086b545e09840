"""Drawing 5-way 1-shot 15-query tasks of Omniglot: metazoo, the tutorials' loader over image files, and easyfsl's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from metazoo.tasks.sampler import EpisodeSampler

from . import rivals
from .kernels.measure import Way
from .suite import OURS, Options, Result, Unavailable, quickest

WAYS, SHOTS, QUERIES = 5, 1, 15
BLOCK = 16  # tasks that are asked for together
FLOATS = f"{OURS}, float32 in memory, as easyfsl's"
TUTORIAL, EASYFSL = "tutorial loader, image files", "easyfsl, images in memory"


class Tasks:
    """A batch sampler that gives the items of metazoo's tasks, one task a batch."""

    def __init__(self, sampler: EpisodeSampler, first: int, count: int):
        self.sampler, self.first, self.count = sampler, first, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for i in range(self.first, self.first + self.count):
            # By class, support first, which is also the order of easyfsl.
            yield self.sampler.rows(i, 1).flatten().tolist()


class Collate:
    """Stacks a task's items as the tutorials do: support images, support labels, query images, query labels."""

    def __init__(self, ways: int, shots: int):
        self.ways, self.shots = ways, shots

    def __call__(self, items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = torch.stack([image for image, _ in items]).unflatten(0, (self.ways, -1))
        y = torch.arange(self.ways).repeat_interleave(x.shape[1]).view(self.ways, -1)
        s = self.shots
        return (
            x[:, :s].flatten(0, 1),
            y[:, :s].flatten(),
            x[:, s:].flatten(0, 1),
            y[:, s:].flatten(),
        )


def tutorial_loader(
    files: Dataset[Any], sampler: EpisodeSampler, first: int, count: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return the tutorials' loader of some of metazoo's tasks."""
    return DataLoader(
        files,
        batch_sampler=Tasks(sampler, first, count),
        num_workers=workers,
        collate_fn=Collate(sampler.ways, sampler.shots),
    )


def run(options: Options) -> Result:
    threads = torch.get_num_threads()
    try:
        return measured(options)
    finally:
        torch.set_num_threads(threads)


def measured(options: Options) -> Result:
    """Return what was found, each way in as many of PyTorch's threads as it is quickest in."""
    result = Result(
        "5-way 1-shot 15-query tasks of Omniglot's 1,623 characters, drawn and stacked", "ms a task"
    )
    examples = rivals.characters()
    sampler = EpisodeSampler(examples, WAYS, SHOTS, QUERIES)
    tasks = options.pick(64, 8)
    ways: dict[str, Way] = {}
    counts: dict[str, float] = {}
    settings: dict[str, str] = {}
    threads = sorted({1, torch.get_num_threads()})
    numbers = itertools.count()  # no block is asked for twice: the sampler keeps its last choice

    def ours(sampler: EpisodeSampler, count: int) -> Way:
        def draw() -> None:
            first = tasks * next(numbers)
            for i in range(first, first + tasks, count):
                sampler.draw(i, count)

        return draw

    def in_threads(ways: Mapping[str, Way]) -> dict[str, Way]:
        """Return ways in each number of threads."""

        def one(way: Way, count: int) -> Way:
            def run() -> Any:
                torch.set_num_threads(count)
                return way()

            return run

        return {
            f"{name}threads: {count}": one(way, count)
            for name, way in ways.items()
            for count in threads
        }

    at_once = min(BLOCK, tasks)
    floats = EpisodeSampler(
        examples.over(examples.take(torch.arange(len(examples.x)))), WAYS, SHOTS, QUERIES
    )
    for name, some, count in (
        (OURS, sampler, at_once),
        (f"{OURS}, one at a time", sampler, 1),
        (FLOATS, floats, at_once),
    ):
        chosen, ways[name] = quickest(in_threads({"": ours(some, count)}))
        settings[name] = f"tasks a call: {count}, {chosen}"
    with rivals.unzipped() as root:
        files = rivals.ImageFiles(root, examples.names)
        expected = sampler.draw(0, 2)
        got = list(tutorial_loader(files, sampler, 0, 2, 0))
        result.checked(
            "from the same tasks the tutorial loader stacks the same tensors, bit for bit",
            all(torch.equal(torch.stack(g), e) for g, e in zip(zip(*got), vars(expected).values())),
        )

        def read(workers: int) -> Way:
            return lambda: list(tutorial_loader(files, sampler, 0, tasks, workers))

        chosen, ways[TUTORIAL] = quickest(
            in_threads({f"worker processes: {n}, ": read(n) for n in (0, 2)})
        )
        settings[TUTORIAL] = f"{chosen} (the quickest), started once for {tasks} tasks"
        try:
            library = rivals.easyfsl()
        except Unavailable as error:
            result.leave_out(EASYFSL, error)
        else:
            items = rivals.InMemory(examples)

            def collate(workers: int, source: Any, collated: Any) -> Way:
                return lambda: list(
                    DataLoader(
                        items, batch_sampler=source, num_workers=workers, collate_fn=collated
                    )
                )

            theirs = library.sampler(items, WAYS, SHOTS, QUERIES, tasks)
            support, _, query, _, _ = collate(
                0, Tasks(sampler, 0, 1), theirs.episodic_collate_fn
            )()[0]
            result.checked(
                "from the same tasks easyfsl stacks the same images, bit for bit (it numbers the classes in another order)",
                torch.equal(support, expected.support_x[0])
                and torch.equal(query, expected.query_x[0]),
            )
            loaders = {
                f"worker processes: {n}, ": collate(n, theirs, theirs.episodic_collate_fn)
                for n in (0, 2)
            }
            chosen, ways[EASYFSL] = quickest(in_threads(loaders))
            settings[EASYFSL] = f"{chosen} (the quickest), its sampler and collate function"
        counts = dict.fromkeys(ways, tasks)
        result.race("", ways, options, per=1e3, counts=counts, settings=settings)
    result.notes.append(
        "the tutorial loader's files have just been unzipped and are in the system's cache"
    )
    result.aim(100, TUTORIAL)
    result.aim(20, EASYFSL)
    result.aim(20, EASYFSL, ours=FLOATS)
    return result
