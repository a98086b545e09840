"""Regression on sinusoids: Finn, Abbeel and Levine 2017 (arXiv:1703.03400), section 5.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from metazoo import options
from metazoo.base.dataset import Dataset
from metazoo.errors import DataError
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.episode import Episode
from metazoo.tasks.random import random_words, uniform

SPLITS = ("train", "val", "test")


class Sinusoid(Dataset):
    """Regression tasks y = A sin(x - phase), with A in [0.1, 5], phase in [0, pi] and x in [-5, 5].

    All three are uniform. `shots` and `queries` count points; there are no ways. The splits have
    the same distribution and different tasks.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        low: Annotated[float, "smallest amplitude", options.Range(0)] = 0.1
        high: Annotated[float, "largest amplitude", options.Range(0)] = 5.0

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(
                    f"the smallest amplitude, {self.low:g}, is above the largest, {self.high:g}"
                )

    config: Config
    licence = "made, no data"
    recipe = {"backbone": "mlp", "shots": 10, "queries": 10, "meta_batch": 25}
    regression = True

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> SinusoidSampler:
        if split not in SPLITS:
            raise DataError(f"Sinusoid has no split '{split}'", f"it has {', '.join(SPLITS)}")
        return SinusoidSampler(self.config, SPLITS.index(split), shots, queries, seed)


class SinusoidSampler:
    """The tasks of one split: each has `shots` support and `queries` query points of one sinusoid.

    x and y have shape (B, points, 1). `split` is the split's place in `SPLITS`.
    """

    def __init__(self, config: Sinusoid.Config, split: int, shots: int, queries: int, seed: int):
        self.config = config
        self.split = split
        self.shots = shots
        self.queries = queries
        self.seed = seed

    def draw(self, first: int, count: int) -> Episode:
        u = self._uniform(first, count)
        amplitude = self.config.low + (self.config.high - self.config.low) * u[:, :1]
        phase = np.pi * u[:, 1:2]
        x = 10 * u[:, 2:] - 5
        y = amplitude * np.sin(x - phase)
        x_tensor, y_tensor = (torch.from_numpy(part).float().unsqueeze(-1) for part in (x, y))
        s = self.shots
        return Episode(x_tensor[:, :s], y_tensor[:, :s], x_tensor[:, s:], y_tensor[:, s:])

    def _uniform(self, first: int, count: int) -> np.ndarray:
        """Return the random numbers of the tasks, (count, 2 + shots + queries)."""
        numbers = 2 + self.shots + self.queries
        words = [
            # The splits take every third stream, so that no two splits share a task.
            random_words(self.seed, len(SPLITS) * i + self.split, numbers)
            for i in range(first, first + count)
        ]
        return uniform(np.stack(words))


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"sinusoid": Sinusoid}
