"""Sinusoids to regress on: Finn, Abbeel and Levine 2017 (arXiv:1703.03400), section 5.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from metazoo import options
from metazoo.base.dataset import Dataset
from metazoo.errors import DataError
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.episode import Episode
from metazoo.tasks.random import random_words, uniform


class Sinusoid(Dataset):
    """Tasks y = A sin(x - phase), with A in [0.1, 5], phase in [0, pi] and x in [-5, 5], all uniform.

    `shots` and `queries` count points; there are no ways. The splits are the same distribution, drawn with different keys.
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

    licence = "made, no data"
    recipe = {"backbone": "mlp", "shots": 10, "queries": 10, "meta_batch": 25}
    regression = True

    def tasks(self, split: str, ways: int, shots: int, queries: int, seed: int) -> SinusoidSampler:
        if split not in SPLITS:
            raise DataError(f"Sinusoid has no split '{split}'", f"it has {', '.join(SPLITS)}")
        return SinusoidSampler(self.config, SPLITS.index(split), shots, queries, seed)


SPLITS = ("train", "val", "test")


class SinusoidSampler:
    """Task i of a split: `shots` support and `queries` query points of one sinusoid, x and y of shape (B, points, 1)."""

    def __init__(self, config: Any, stream: int, shots: int, queries: int, seed: int):
        self.config, self.stream, self.shots, self.queries, self.seed = (
            config,
            stream,
            shots,
            queries,
            seed,
        )

    def draw(self, first: int, count: int) -> Episode:
        points = self.shots + self.queries
        # Task numbers of the splits interleave, so that no two splits share one.
        words = [
            random_words(self.seed, 3 * i + self.stream, 2 + points)
            for i in range(first, first + count)
        ]
        u = uniform(np.stack(words))
        amplitude = self.config.low + (self.config.high - self.config.low) * u[:, :1]
        phase = np.pi * u[:, 1:2]
        x = 10 * u[:, 2:] - 5
        y = amplitude * np.sin(x - phase)
        tx, ty = (
            torch.from_numpy(x).float().unsqueeze(-1),
            torch.from_numpy(y).float().unsqueeze(-1),
        )
        s = self.shots
        return Episode(tx[:, :s], ty[:, :s], tx[:, s:], ty[:, s:])


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"sinusoid": Sinusoid}
