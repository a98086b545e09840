"""Tasks from packed data and from the same data in memory: `python -m benchmarks.packed --out FOLDER`.

Makes a set of IMAGES images (1, 28, 28) in classes of 20, never held in memory, packs it into FOLDER, and draws 5-way 1-shot
tasks with 15 queries a class from it: how many a second, and how much memory that takes. Then it loads the same images, and
draws from both in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metazoo import ClassDataset, EpisodeSampler, Examples, Stream
from metazoo.datasets.packed.dataset import Packed
from metazoo.datasets.packed.format import data_file
from metazoo.datasets.packed.writer import pack
from metazoo.io.files import digest
from metazoo.provenance import commit, machine
from metazoo.tasks.random import random_words

EACH = 20  # images of a class
SHAPE = (1, 28, 28)
ROUNDS = 5


class Made(ClassDataset):
    """A class is a random image, an example that image with one row of it overwritten by its number."""

    def __init__(self, images: int):
        super().__init__()
        self.classes = images // EACH

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        names = tuple(f"class{c:07}" for c in range(self.classes))
        yield {
            "train": Stream(made, (EACH,) * self.classes, names, "made", lambda: str(self.classes))
        }

    def load(self) -> dict[str, Examples]:
        with self.streams() as streams:
            return {name: stream.examples() for name, stream in streams.items()}


def made(first: int, last: int) -> Tensor:
    """Return images first, ..., last - 1."""
    classes = range(first // EACH, -(-last // EACH))
    words = (
        np.concatenate([random_words(0, c, 98) for c in classes])
        .view(np.uint8)
        .reshape(-1, 1, *SHAPE)
    )
    x = (
        torch.from_numpy(words)
        .repeat(1, EACH, 1, 1, 1)
        .flatten(0, 1)[first - classes.start * EACH : last - classes.start * EACH]
    )
    x[:, 0, 0, :] = (torch.arange(first, last) % 251).to(torch.uint8).unsqueeze(1)
    return x


def resident(part: str = "VmRSS") -> float:
    """Return what this process holds of memory, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[part].split()[0]) * 1024 / 1e6


def draw(sampler: EpisodeSampler, first: int, count: int) -> tuple[float, float]:
    """Draw tasks one by one; return how many a second, and the most memory that was held after any of them."""
    most, began, looking = 0.0, time.perf_counter(), 0.0
    for i in range(first, first + count):
        sampler.draw(i, 1)
        if i % 20 == 0:
            look = time.perf_counter()
            most = max(most, resident())
            looking += time.perf_counter() - look
    return count / (time.perf_counter() - began - looking), most


def forget(path: Path) -> None:
    """Have the system drop what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=2000, help="tasks of a round")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    start, began = resident(), time.perf_counter()
    size = pack(Made(arguments.images), "made", arguments.out).index.splits["train"].bytes
    figures = {
        "command": f"python -m benchmarks.packed --out FOLDER --images {arguments.images} --tasks {arguments.tasks}",
        "machine": machine(), "commit": commit(), "images": arguments.images, "megabytes": size / 1e6,
        "packing_seconds": time.perf_counter() - began, "packing_growth_mb": resident("VmHWM") - start,
    }  # fmt: skip
    print(f"{arguments.images} images, {size / 1e6:.0f} MB, packed in {figures['packing_seconds']:.1f} s, "
          f"memory grew by {figures['packing_growth_mb']:.0f} MB")  # fmt: skip

    packed = Packed(Packed.Config(root=str(arguments.out))).tasks("train", 5, 1, 15, 0)
    packed.draw(0, 1)
    start = resident()
    forget(data_file(arguments.out, "train"))
    cold, most = draw(packed, 0, arguments.tasks // 4)
    # Now with all of the file in the system's cache, of which this process must not come to hold more and more.
    digest(data_file(arguments.out, "train"), "sha256")
    most = max(most, draw(packed, 0, ROUNDS * arguments.tasks)[1])
    figures |= {"cold_tasks_per_second": cold, "drawing_growth_mb": most - start}
    print(
        f"drawing from disk alone: {cold:.0f} tasks/s; memory grew by at most {most - start:.0f} MB in all tasks"
    )

    rates: dict[str, list[float]] = {"packed": [], "memory": []}
    memory = Made(arguments.images).tasks("train", 5, 1, 15, 0)
    for i in range(ROUNDS):
        for name, sampler in {"packed": packed, "memory": memory}.items():
            rates[name].append(draw(sampler, i * arguments.tasks, arguments.tasks)[0])
    for name, values in rates.items():
        figures[f"{name}_tasks_per_second"] = statistics.median(values)
        print(
            f"{name}: {statistics.median(values):.0f} tasks/s ({min(values):.0f} to {max(values):.0f})"
        )
    figures["ratio"] = statistics.median(a / b for a, b in zip(rates["packed"], rates["memory"]))
    print(f"packed is {figures['ratio']:.2f} times as fast as memory")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
