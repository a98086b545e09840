"""Drawing 5-way 1-shot 15-query tasks from packed data and from the same data in memory."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metazoo import ClassDataset, Examples, Stream
from metazoo.datasets.packed.dataset import Packed
from metazoo.datasets.packed.writer import pack
from metazoo.tasks.random import random_words

from .drawing import drawn
from .harness import OURS, ROOT, Bench, Way

EACH = 20  # images of a class


class Made(ClassDataset):
    """Each class is a random 28x28 image; an example overwrites one row of it with its number."""

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
    x = torch.from_numpy(words.view(np.uint8).reshape(-1, 1, 28, 28)).repeat_interleave(EACH, 0)
    x = x[first - classes.start * EACH : last - classes.start * EACH]
    x[:, 0, 0, :] = (torch.arange(first, last) % 251).to(torch.uint8).unsqueeze(1)
    return x


def run(bench: Bench) -> None:
    bench.cpu_only()
    images, tasks = bench.pick((1_000_000, 2000), (2000, 20))
    bench.work = f"{images:,} images of 28x28 bytes, packed into one file"
    (ROOT / "build").mkdir(exist_ok=True)  # /tmp may be in memory
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        with bench.part("packing"):
            began = time.perf_counter()
            pack(Made(images), "made", Path(folder))
            bench.add({OURS: [time.perf_counter() - began]}, unit="s")
        with bench.part("one task"):
            packed = Packed(Packed.Config(root=folder)).tasks("train", 5, 1, 15, 0)
            memory = Made(images).tasks("train", 5, 1, 15, 0)
            off = (packed.draw(0, 1).query_x - memory.draw(0, 1).query_x).abs().max().item()
            bench.check("the task drawn from the file and from memory", off, 0)
            ways = {
                f"{OURS}, packed": Way(drawn(packed, tasks, 1), "file in the cache", tasks),
                f"{OURS}, in memory": Way(drawn(memory, tasks, 1), "", tasks),
            }
            bench.race(ways, unit="us", rounds=5)
