"""Drawing 5-way 1-shot 15-query tasks from packed data and from the same data in memory."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metazoo import ClassDataset, EpisodeSampler, Examples, Stream
from metazoo.datasets.packed.dataset import Packed
from metazoo.datasets.packed.format import data_file
from metazoo.datasets.packed.writer import pack
from metazoo.io.files import digest
from metazoo.tasks.random import random_words

from .harness import OURS, ROOT, Bench, Unavailable, Way

EACH = 20  # images of a class
SHAPE = (1, 28, 28)
STATUS = Path("/proc/self/status")


class Made(ClassDataset):
    """Each class is a random image; an example overwrites one row of it with its number."""

    def __init__(self, images: int):
        super().__init__()
        self.classes = images // EACH

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        names, counts = tuple(f"class{c:07}" for c in range(self.classes)), (EACH,) * self.classes
        yield {"train": Stream(made, counts, names, "made", lambda: str(self.classes))}

    def load(self) -> dict[str, Examples]:
        with self.streams() as streams:
            return {name: stream.examples() for name, stream in streams.items()}


def made(first: int, last: int) -> Tensor:
    """Return images first, ..., last - 1."""
    classes = range(first // EACH, -(-last // EACH))
    words = np.concatenate([random_words(0, c, 98) for c in classes])
    x = torch.from_numpy(words.view(np.uint8).reshape(-1, *SHAPE)).repeat_interleave(EACH, 0)
    x = x[first - classes.start * EACH : last - classes.start * EACH]
    x[:, 0, 0, :] = (torch.arange(first, last) % 251).to(torch.uint8).unsqueeze(1)
    return x


def held(part: str = "VmRSS") -> float:
    """Return the memory that this process holds, in MiB."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[part].split()[0]) / 1024


def drawer(sampler: EpisodeSampler, tasks: int) -> Callable[[], float]:
    """Return a call that draws new tasks one by one; it returns the most memory held, in MiB."""
    numbers = itertools.count()

    def draw() -> float:
        first = tasks * next(numbers)
        most = 0.0
        for i in range(first, first + tasks):
            sampler.draw(i, 1)
            if i % 200 == 0:
                most = max(most, held())
        return most

    return draw


def run(bench: Bench) -> None:
    bench.cpu_only()
    if not STATUS.exists():
        raise Unavailable("only Linux tells how much memory a process holds")
    images, tasks = bench.pick((1_000_000, 2000), (2000, 20))
    bench.work = f"{images:,} images of 28x28 bytes in classes of {EACH}, packed in one file"
    (ROOT / "build").mkdir(exist_ok=True)  # /tmp may be in memory
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        with bench.part("packing"):
            before, began = held(), time.perf_counter()
            pack(Made(images), "made", Path(folder))
            bench.add({"time": [time.perf_counter() - began]}, unit="s")
            bench.add({"memory added": [held("VmHWM") - before]}, unit="MiB")
        sampler = Packed(Packed.Config(root=folder)).tasks("train", 5, 1, 15, 0)
        file = data_file(Path(folder), "train")
        with bench.part("one task"):
            race(bench, sampler, Made(images).tasks("train", 5, 1, 15, 0), file, tasks)


def race(
    bench: Bench, packed: EpisodeSampler, memory: EpisodeSampler, file: Path, tasks: int
) -> None:
    """Draw from disk only, then from the system's cache and from memory in turns."""
    off = (packed.draw(0, 1).query_x - memory.draw(0, 1).query_x).abs().max().item()
    bench.check("the same task from the file and from memory", off, 0)
    before, draw = held(), drawer(packed, tasks)
    with file.open("rb") as opened:  # make the system drop what it has cached of the file
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    most = draw()
    seconds = (time.perf_counter() - began) / tasks
    digest(file, "sha256")  # all of the file is cached now; this process must not hold more for it
    most = max(most, draw())
    bench.race(
        {
            f"{OURS}, packed": Way(draw, "file cached by the system", tasks),
            "in memory": Way(drawer(memory, tasks), "", tasks),
        },
        unit="us",
        rounds=5,
    )
    bench.add({f"{OURS}, packed, nothing cached": [seconds]}, unit="us")
    bench.add({"memory added by drawing": [most - before]}, unit="MiB")
