"""Characters of made-up alphabets, drawn by a seeded stroke model: a data set that needs no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.options import Range
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import random_words, uniform

SIZE = 28
CHARACTERS = 20  # of an alphabet
DRAWERS = 20  # of a character: each draws it once
STROKES = 4  # of a character, at most
SCRIBBLES = 1  # strokes of a drawing that belong to no character
SEGMENTS = 32  # of a stroke: enough for one to be shorter than the pen is wide


class Glyphs(ClassDataset):
    """Characters of made-up alphabets, grey images (1, 28, 28) with ink 1, 20 characters an alphabet and 20 drawings each.

    An alphabet is a few kinds of strokes, a character two to four of them joined, and a drawing is that character in
    some drawer's hand, with some pen, on paper of some tone, beside a scribble. The tone of the paper varies more than
    anything else, so that raw pixels and the features of an untrained network tell little. All is a pure function of
    `seed`; between machines a grey level may differ by one, for they round differently. The splits share no alphabet.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        alphabets: Annotated[
            int,
            "alphabets: 15 % each for validation and test, the others to train on",
            Range(6, 1000),
        ] = 48
        seed: Annotated[int, "seed of the alphabets", Range(0, 2**63 - 1)] = 0

    licence = "made, no data"

    @property
    def input_format(self) -> dict[str, Any]:
        return {"size": SIZE, "channels": 1, "invert": True}

    def load(self) -> dict[str, Examples]:
        count = self.config.alphabets
        held_out = round(0.15 * count)
        bounds = {
            "train": (0, count - 2 * held_out),
            "val": (count - 2 * held_out, count - held_out),
        }
        bounds["test"] = (count - held_out, count)
        return {split: self._examples(split, range(*bound)) for split, bound in bounds.items()}

    def _examples(self, split: str, alphabets: range) -> Examples:
        x = torch.cat([draw_alphabet(self.config.seed, alphabet) for alphabet in alphabets])
        names = tuple(
            f"alphabet{alphabet:03}/character{c:02}"
            for alphabet in alphabets
            for c in range(CHARACTERS)
        )
        return Examples(x, (DRAWERS,) * len(names), names, f"Glyphs ({split})")


def draw_alphabet(seed: int, alphabet: int) -> Tensor:
    """Return the drawings of one alphabet, uint8 (CHARACTERS * DRAWERS, 1, SIZE, SIZE), 255 for ink, character by character."""
    random = _Random(seed, alphabet)
    written = _by_hand(_characters(random), random)
    return _ink(written.reshape(CHARACTERS * DRAWERS, STROKES, SEGMENTS + 1, 2), random)


class _Random:
    """Random numbers of one alphabet, each call's from a stream of its own."""

    def __init__(self, seed: int, alphabet: int):
        # The upper half of the generator's streams: tasks are numbered from 0.
        self.seed, self.stream = seed, 2**63 + 1000 * alphabet

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        self.stream += 1
        words = random_words(self.seed, self.stream, int(np.prod(shape)))
        return low + (high - low) * uniform(words).reshape(shape)

    def choose(self, values: list[float], *shape: int) -> np.ndarray:
        return np.array(values)[self.between(0, len(values), *shape).astype(int)]


@dataclass
class _Strokes:
    """Strokes as arrays of one shape: angles in radians, lengths relative, places in [0, 1] along a stroke.

    A stroke sets out towards `heading`; `turn` makes it an arc, `twist` an S, `kink` a corner halfway. Its point
    `joint` lies on the point `place` of the stroke before it. A length of 0 is no stroke.
    """

    heading: np.ndarray
    turn: np.ndarray
    twist: np.ndarray
    kink: np.ndarray
    length: np.ndarray
    joint: np.ndarray
    place: np.ndarray

    def paths(self) -> np.ndarray:
        """Return the points of each stroke, (..., SEGMENTS + 1, 2), the first in the origin."""
        t = (np.arange(SEGMENTS) + 0.5) / SEGMENTS
        bend = self.turn[..., None] * (t - 0.5) + self.twist[..., None] * np.sin(2 * np.pi * t)
        bend += self.kink[..., None] * (t > 0.5)
        angle = self.heading[..., None] + bend
        steps = (
            np.stack([np.cos(angle), np.sin(angle)], -1) * (self.length / SEGMENTS)[..., None, None]
        )
        return np.concatenate([np.zeros_like(steps[..., :1, :]), steps.cumsum(-2)], -2)


# How far a drawer departs from the character, either way.
_UNSTEADY = {
    "heading": 0.12,
    "turn": 0.25,
    "twist": 0.2,
    "kink": 0.25,
    "length": 0.12,
    "joint": 0.08,
    "place": 0.08,
}


def _characters(random: _Random) -> _Strokes:
    """Return the characters of an alphabet, each array (CHARACTERS, STROKES)."""
    kinds, shape = 5, (CHARACTERS, STROKES)
    kind = random.choose(list(range(kinds)), *shape)
    strokes = random.choose([2, 3, 3, 4], CHARACTERS, 1)
    return _Strokes(
        heading=random.between(0, np.pi / 4)
        + random.choose([k * np.pi / 4 for k in range(8)], *shape),
        turn=random.choose([0, 0, 1.6, 3, 4.7], kinds)[kind] * random.choose([-1, 1], *shape),
        twist=random.choose([0, 0, 0, 2.5], kinds)[kind],
        kink=random.choose([-2, 0, 0, 0, 2], kinds)[kind],
        length=random.between(0.5, 1.5, kinds)[kind] * (np.arange(STROKES) < strokes),
        joint=random.choose([0, 0, 0.5], *shape),
        place=random.choose([0, 0.5, 1], *shape),
    )


def _by_hand(characters: _Strokes, random: _Random) -> np.ndarray:
    """Return the points of every drawing, (CHARACTERS, DRAWERS, STROKES, SEGMENTS + 1, 2), the image being [-0.5, 0.5]^2."""
    shape = (CHARACTERS, DRAWERS)
    drawn = {}
    for field in fields(characters):
        amount = random.between(-1, 1, *shape, STROKES) * _UNSTEADY[field.name]
        value = getattr(characters, field.name)[:, None]
        drawn[field.name] = value * (1 + amount) if field.name == "length" else value + amount
    strokes = _Strokes(**drawn)
    points = strokes.paths()
    for s in range(1, STROKES):
        there = _point_at(points[:, :, s - 1], strokes.place[:, :, s])
        points[:, :, s] += there - _point_at(points[:, :, s], strokes.joint[:, :, s])

    low, high = points.min((2, 3), keepdims=True), points.max((2, 3), keepdims=True)
    points = (points - (low + high) / 2) / (high - low).max(-1, keepdims=True)
    angle, shear = random.between(-0.2, 0.2, *shape), random.between(-0.2, 0.2, *shape)
    width = random.between(0.65, 0.9, *shape)
    height = width * random.between(0.8, 1.2, *shape)
    cos, sin = np.cos(angle), np.sin(angle)
    # A rotation, of a shear, of a scaling.
    rows = [
        [width * cos, height * (shear * cos - sin)],
        [width * sin, height * (shear * sin + cos)],
    ]
    affine = np.stack([np.stack(row, -1) for row in rows], -2)  # (CHARACTERS, DRAWERS, 2, 2)
    return points @ affine.swapaxes(-1, -2)[:, :, None] + random.between(
        -0.12, 0.12, *shape, 1, 1, 2
    )


def _point_at(paths: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the points (..., 1, 2) at t (...) along paths (..., SEGMENTS + 1, 2)."""
    index = (t * SEGMENTS).round().clip(0, SEGMENTS).astype(int)
    return np.take_along_axis(paths, index[..., None, None], -2)


def _ink(points: np.ndarray, random: _Random) -> Tensor:
    """Return images, uint8 (N, 1, SIZE, SIZE), of the strokes (N, STROKES, SEGMENTS + 1, 2) and scribbles, on paper."""
    n, each = len(points), (len(points), SCRIBBLES)
    none = np.zeros(each)
    scribbles = _Strokes(
        heading=random.between(0, 2 * np.pi, *each),
        turn=random.between(-3, 3, *each),
        twist=random.between(0, 1, *each),
        kink=none,
        length=random.between(0.3, 0.7, *each),
        joint=none,
        place=none,
    )
    points = np.concatenate([points, scribbles.paths() + random.between(-0.5, 0.5, *each, 1, 2)], 1)
    pressure = np.concatenate([np.ones((n, STROKES)), random.between(0.5, 1, *each)], 1)
    pen = random.between(0.55, 0.85, n, 1, 1)

    # A Gaussian is a product of one in x and one in y, so that the sum over all segments is one matrix product an image.
    # Weighted by the segments' lengths it is 1 on a long stroke, and half of it at 1.2 pens from the middle.
    length = np.linalg.norm(np.diff(points, axis=2), axis=-1) * SIZE
    weight = (length * pressure[..., None]).reshape(n, -1, 1) / (pen * np.sqrt(2 * np.pi))
    middle = ((points[:, :, 1:] + points[:, :, :-1]) / 2 * SIZE).reshape(n, -1, 2)
    pixel = (torch.arange(SIZE) + 0.5) - SIZE / 2
    across, down = (
        (-((pixel - _tensor(middle[..., i : i + 1])) / _tensor(pen)).square() / 2).exp()
        for i in (0, 1)
    )
    stroke = ((down * _tensor(weight)).mT @ across * 2 - 0.5).clamp(0, 1)  # (N, SIZE, SIZE)

    slope = _tensor(random.between(-0.25, 0.25, 2, n, 1, 1)) / SIZE
    paper = (
        _tensor(random.between(0, 0.7, n, 1, 1)) + slope[0] * pixel + slope[1] * pixel[:, None]
    ).clamp(0, 1)
    image = paper + (1 - paper) * _tensor(random.between(0.4, 1, n, 1, 1)) * stroke
    return (image * 255).round().to(torch.uint8).unsqueeze(1)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"glyphs": Glyphs}
