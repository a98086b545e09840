"""From nothing to 98 % on 5-way 1-shot Omniglot: metazoo and the loop of the tutorials, reading the data included.

As `python -m benchmarks.to_98 JOB` it goes there once, in this process, and prints how it went.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from metazoo.cli.memory import keep_freed_memory
from metazoo.datasets.omniglot import DRAWERS
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import EpisodeSampler
from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan
from metazoo.zoo import run_folder

from . import rivals
from .drawing import tutorial_loader
from .kernels.measure import Way
from .protonet_step import new_model, plain_loss
from .suite import OURS, Options, Result, fresh, quickest

WAYS, QUERIES = 60, 5
BF16, TUTORIAL = f"{OURS} --precision bf16", "tutorial loop, image files"
SPLITS = "splits.json"  # the names of the classes of each split
STEPS = 2000  # after which a way gives up


@dataclass(frozen=True)
class Job:
    """Which way is to go how far: `every` so many steps it is validated on so many tasks."""

    way: str
    root: str
    target: float = 0.98
    every: int = 50
    validation: int = 200
    workers: int = 0
    order: str = "contiguous"


class Reached(Exception):
    """The validation is as good as was asked for."""


class Until(Watcher):
    """Stops a run once its validation reaches a target."""

    def __init__(self, target: float):
        self.target = target

    def validation(self, step: int, value: float, improved: bool) -> None:
        if value >= self.target:
            raise Reached(step, value)


def metazoo_run(job: Job) -> None:
    """Train as `metazoo train` does, at a constant rate: neither way knows when it will be there."""
    recipe = {
        "train_ways": WAYS, "train_queries": QUERIES, "schedule": "constant", "steps": STEPS, "validate_every": job.every,
        "validation_episodes": job.validation, "precision": "bf16" if job.way == BF16 else "float32", "device": "cpu",
    }  # fmt: skip
    blueprint, data = plan("protonet", "omniglot", {}, {"split": "vinyals"}, {}, recipe)
    with TemporaryDirectory() as folder:
        run_folder.create(Path(folder) / "run", blueprint)
        train(blueprint, data, Path(folder) / "run", Until(job.target))


def tutorial_run(job: Job) -> None:
    """Train on the same tasks from the same weights with an ordinary network, opening each image when it is asked for."""
    named = json.loads((Path(job.root) / SPLITS).read_text())
    files = {part: rivals.ImageFiles(Path(job.root), tuple(names)) for part, names in named.items()}
    training = chooser(len(named["train"]), WAYS, QUERIES)
    validation = chooser(len(named["val"]), 5, 15)
    network = rivals.ordered(rivals.plain_conv4(new_model().backbone), job.order)
    optimizer = torch.optim.Adam(network.parameters())
    loader = tutorial_loader(files["train"], training, 0, STEPS, job.workers)
    for step, task in enumerate(loader, start=1):
        network.train()
        loss = plain_loss(network, task)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % job.every == 0:
            value = accuracy(
                network.eval(),
                tutorial_loader(files["val"], validation, 0, job.validation, job.workers),
            )
            if value >= job.target:
                raise Reached(step, value)


def chooser(classes: int, ways: int, queries: int) -> EpisodeSampler:
    """Return metazoo's tasks of so many classes without the examples: which to open is all that the tutorials' loader asks."""
    names = tuple(map(str, range(classes)))
    return EpisodeSampler(
        Examples(torch.empty(DRAWERS * classes, 0), (DRAWERS,) * classes, names), ways, 1, queries
    )


@torch.no_grad()
def accuracy(network: nn.Module, loader: Iterable[Sequence[Tensor]]) -> float:
    """Return the mean accuracy on the tasks of a loader."""
    found = []
    for support_x, support_y, query_x, query_y in loader:
        z = network(torch.cat([support_x, query_x]))
        nearest = torch.cdist(z[len(support_x) :], z[: len(support_x)]).argmin(1)
        found.append((support_y[nearest] == query_y).float().mean())
    return torch.stack(found).mean().item()


def main() -> None:
    keep_freed_memory()
    job = Job(**json.loads(sys.argv[1]))
    try:
        (tutorial_run if job.way == TUTORIAL else metazoo_run)(job)
    except Reached as reached:
        step, value = reached.args
        print(json.dumps({"steps": step, "accuracy": value}))
    else:
        raise SystemExit(f"{job.way} did not reach {job.target:.0%} in {STEPS} steps")


def run(options: Options) -> Result:
    target = options.pick(0.98, 0.4)
    result = Result(
        f"from nothing to {target:.0%} in validation, 5-way 1-shot Omniglot, Vinyals' split: protonet, Conv4, tasks of 60 ways",
        "s",
    )
    splits = rivals.omniglot(rotations=True).splits
    with rivals.unzipped() as root:
        named = {part: splits[part].names for part in ("train", "val")}
        (root / SPLITS).write_text(json.dumps(named))
        job = Job(OURS, str(root), target, options.pick(50, 2), options.pick(200, 10))
        files = rivals.ImageFiles(root, named["train"])
        sampler = EpisodeSampler(splits["train"], WAYS, 1, QUERIES)
        expected = sampler.draw(0, 1)
        got = next(iter(tutorial_loader(files, sampler, 0, 1, 0)))
        same = all(torch.equal(a, b[0]) for a, b in zip(got, vars(expected).values()))
        result.checked("the first training task, turned images included, bit for bit", same)
        loaders = {
            n: (lambda n=n: list(tutorial_loader(files, sampler, 0, 8, int(n)))) for n in ("0", "2")
        }
        workers = int(quickest(loaders)[0])
        order = quickest({order: plain_step(order, got) for order in rivals.ORDERS})[0]
        jobs = [
            job,
            replace(job, way=BF16),
            replace(job, way=TUTORIAL, workers=workers, order=order),
        ]
        times: dict[str, list[float]] = {job.way: [] for job in jobs}
        steps: dict[str, dict[str, float]] = {}
        for job in jobs:
            with TemporaryDirectory() as cache:
                began = time.perf_counter()
                steps[job.way] = fresh(
                    "benchmarks.to_98",
                    json.dumps(asdict(job)),
                    environment={"METAZOO_CACHE": cache},
                )
                times[job.way].append(time.perf_counter() - began)
    said = {
        way: f"{end['steps']} steps, {100 * end['accuracy']:.2f} %" for way, end in steps.items()
    }
    said[TUTORIAL] += f"; {workers} worker processes, {order} (the quicker of each)"
    result.add("", times, said)
    result.notes += [
        "one run of each, the time of a whole process; all train on the same tasks from the same weights and are validated "
        f"every {job.every} steps on the same {job.validation} tasks; metazoo decodes the archives first, with nothing cached",
        "the tutorial loop's files are unzipped before; that is not counted",
    ]
    result.aim(3, TUTORIAL)
    return result


def plain_step(order: str, task: Sequence[Tensor]) -> Way:
    """Return a training step of the ordinary network without the optimizer's part."""
    network = rivals.ordered(rivals.plain_conv4(new_model().backbone), order)
    return lambda: plain_loss(network, task).backward()


if __name__ == "__main__":
    main()
