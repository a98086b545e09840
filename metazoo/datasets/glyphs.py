"""Characters of made-up alphabets, drawn by a random stroke model; the data set needs no files."""

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

SIZE = 28  # height and width in pixels
CHARACTERS = 20  # in an alphabet
DRAWERS = 20  # of each character; each draws it once
STROKES = 4  # in a character, at most
SCRIBBLES = 1  # extra strokes in a drawing
SEGMENTS = 32  # in a stroke; each is then shorter than the pen is wide


class Glyphs(ClassDataset):
    """Made-up characters, 20 in an alphabet with 20 drawings each. A class is a character.

    Images are grey, shape (1, 28, 28), with ink 1. An alphabet has a few kinds of strokes, and a
    character joins two to four of them. Each drawing varies the hand, the pen and the tone of the
    paper, and adds a scribble. The tone varies more than anything else, so raw pixels and the
    features of an untrained network separate classes poorly.

    The data depend only on `seed`, except that rounding may change a grey level by one between
    machines. The splits share no alphabet.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        alphabets: Annotated[
            int,
            "number of alphabets: 15 % for validation, 15 % for test, the others for training",
            Range(6, 1000),
        ] = 48
        seed: Annotated[int, "seed that the alphabets are made from", Range(0, 2**63 - 1)] = 0

    config: Config
    licence = "made, no data"

    @property
    def input_format(self) -> dict[str, Any]:
        return {"size": SIZE, "channels": 1, "invert": True}

    def data_sha256(self) -> str:
        """Return an empty string: the options determine the data, up to rounding on this machine."""
        return ""

    def load(self) -> dict[str, Examples]:
        count = self.config.alphabets
        held_out = round(0.15 * count)
        alphabets = {
            "train": range(count - 2 * held_out),
            "val": range(count - 2 * held_out, count - held_out),
            "test": range(count - held_out, count),
        }
        return {split: self._examples(split, chosen) for split, chosen in alphabets.items()}

    def _examples(self, split: str, alphabets: range) -> Examples:
        x = torch.cat([draw_alphabet(self.config.seed, alphabet) for alphabet in alphabets])
        names = tuple(
            f"alphabet{alphabet:03}/character{c:02}"
            for alphabet in alphabets
            for c in range(CHARACTERS)
        )
        return Examples(x, (DRAWERS,) * len(names), names, f"Glyphs ({split})")


def draw_alphabet(seed: int, alphabet: int) -> Tensor:
    """Return the drawings of one alphabet, uint8 (CHARACTERS * DRAWERS, 1, SIZE, SIZE), ink 255.

    They are ordered by character.
    """
    random = _Random(seed, alphabet)
    characters = _characters(random)
    drawings = _place_on_paper(_join(_vary(characters, random)), random)
    return _render(drawings.reshape(CHARACTERS * DRAWERS, STROKES, SEGMENTS + 1, 2), random)


class _Random:
    """The random numbers of one alphabet. Each call uses a new stream."""

    def __init__(self, seed: int, alphabet: int):
        # Tasks count their streams from 0; alphabets use the upper half.
        self.seed, self.stream = seed, 2**63 + 1000 * alphabet

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        self.stream += 1
        words = random_words(self.seed, self.stream, int(np.prod(shape)))
        return low + (high - low) * uniform(words).reshape(shape)

    def choose(self, values: list[float], *shape: int) -> np.ndarray:
        return np.array(values)[self.between(0, len(values), *shape).astype(int)]


@dataclass
class _Strokes:
    """Strokes as arrays of one shape. Positions along a stroke run from 0 to 1.

    Attributes:
        heading: direction in which the stroke starts, in radians.
        turn: angle by which it bends to one side, an arc.
        twist: angle by which it bends to both sides, an S.
        kink: angle of the corner halfway.
        length: length, relative to other strokes; 0 for a stroke that is not drawn.
        joint: position on this stroke that touches the stroke before.
        place: position on the stroke before that is touched.
    """

    heading: np.ndarray
    turn: np.ndarray
    twist: np.ndarray
    kink: np.ndarray
    length: np.ndarray
    joint: np.ndarray
    place: np.ndarray

    def paths(self) -> np.ndarray:
        """Return the points of each stroke, (..., SEGMENTS + 1, 2), starting at the origin."""
        t = (np.arange(SEGMENTS) + 0.5) / SEGMENTS
        bend = self.turn[..., None] * (t - 0.5) + self.twist[..., None] * np.sin(2 * np.pi * t)
        bend += self.kink[..., None] * (t > 0.5)
        angle = self.heading[..., None] + bend
        directions = np.stack([np.cos(angle), np.sin(angle)], -1)
        steps = directions * (self.length / SEGMENTS)[..., None, None]
        return np.concatenate([np.zeros_like(steps[..., :1, :]), steps.cumsum(-2)], -2)


# How far a drawer deviates from the character, in either direction. Lengths deviate by this
# fraction.
_DEVIATION = {
    "heading": 0.12,
    "turn": 0.25,
    "twist": 0.2,
    "kink": 0.25,
    "length": 0.12,
    "joint": 0.08,
    "place": 0.08,
}


def _characters(random: _Random) -> _Strokes:
    """Return the characters of an alphabet, with arrays of shape (CHARACTERS, STROKES)."""
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


def _vary(characters: _Strokes, random: _Random) -> _Strokes:
    """Return the strokes of every drawing, with arrays of shape (CHARACTERS, DRAWERS, STROKES)."""
    varied = {}
    for field in fields(characters):
        amount = random.between(-1, 1, CHARACTERS, DRAWERS, STROKES) * _DEVIATION[field.name]
        value = getattr(characters, field.name)[:, None]
        varied[field.name] = value * (1 + amount) if field.name == "length" else value + amount
    return _Strokes(**varied)


def _join(strokes: _Strokes) -> np.ndarray:
    """Return the points of joined strokes, (CHARACTERS, DRAWERS, STROKES, SEGMENTS + 1, 2).

    Each drawing is centred on the origin, and its longer side is 1.
    """
    points = strokes.paths()
    for s in range(1, STROKES):
        target = _point_at(points[:, :, s - 1], strokes.place[:, :, s])
        points[:, :, s] += target - _point_at(points[:, :, s], strokes.joint[:, :, s])
    low, high = points.min((2, 3), keepdims=True), points.max((2, 3), keepdims=True)
    return (points - (low + high) / 2) / (high - low).max(-1, keepdims=True)


def _place_on_paper(points: np.ndarray, random: _Random) -> np.ndarray:
    """Scale, shear, rotate and shift each drawing. The paper is [-0.5, 0.5]^2."""
    shape = (CHARACTERS, DRAWERS)
    angle, shear = random.between(-0.2, 0.2, *shape), random.between(-0.2, 0.2, *shape)
    width = random.between(0.65, 0.9, *shape)
    height = width * random.between(0.8, 1.2, *shape)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [
        [width * cos, height * (shear * cos - sin)],
        [width * sin, height * (shear * sin + cos)],
    ]
    affine = np.stack([np.stack(row, -1) for row in rows], -2)  # (CHARACTERS, DRAWERS, 2, 2)
    shift = random.between(-0.12, 0.12, *shape, 1, 1, 2)
    return points @ affine.swapaxes(-1, -2)[:, :, None] + shift


def _point_at(paths: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Return the points (..., 1, 2) at positions t (...) of paths (..., SEGMENTS + 1, 2)."""
    index = (t * SEGMENTS).round().clip(0, SEGMENTS).astype(int)
    return np.take_along_axis(paths, index[..., None, None], -2)


def _render(points: np.ndarray, random: _Random) -> Tensor:
    """Return images, uint8 (N, 1, SIZE, SIZE), of strokes (N, STROKES, SEGMENTS + 1, 2)."""
    n = len(points)
    points = np.concatenate([points, _scribbles(n, random)], 1)
    pressure = np.concatenate([np.ones((n, STROKES)), random.between(0.5, 1, n, SCRIBBLES)], 1)
    pen = random.between(0.55, 0.85, n, 1, 1)
    ink = _ink(points, pressure, pen)

    pixel = _pixel_centres()
    slope = _tensor(random.between(-0.25, 0.25, 2, n, 1, 1)) / SIZE
    tone = _tensor(random.between(0, 0.7, n, 1, 1))
    paper = (tone + slope[0] * pixel + slope[1] * pixel[:, None]).clamp(0, 1)
    image = paper + (1 - paper) * _tensor(random.between(0.4, 1, n, 1, 1)) * ink
    return (image * 255).round().to(torch.uint8).unsqueeze(1)


def _scribbles(n: int, random: _Random) -> np.ndarray:
    """Return the points of the scribbles on n drawings, (n, SCRIBBLES, SEGMENTS + 1, 2)."""
    shape = (n, SCRIBBLES)
    zeros = np.zeros(shape)
    strokes = _Strokes(
        heading=random.between(0, 2 * np.pi, *shape),
        turn=random.between(-3, 3, *shape),
        twist=random.between(0, 1, *shape),
        kink=zeros,
        length=random.between(0.3, 0.7, *shape),
        joint=zeros,
        place=zeros,
    )
    return strokes.paths() + random.between(-0.5, 0.5, *shape, 1, 2)


def _ink(points: np.ndarray, pressure: np.ndarray, pen: np.ndarray) -> Tensor:
    """Return how much ink lies on each pixel, in [0, 1], (N, SIZE, SIZE).

    Each segment leaves a Gaussian spot. A Gaussian is a product of one in x and one in y, so the
    sum over all segments is one matrix product for each image. The spots are weighted by the
    segments' lengths: a long stroke then has ink 1, and 0.5 at a distance of 1.2 pens from its
    middle.

    Args:
        points: points of the strokes, (N, strokes, SEGMENTS + 1, 2).
        pressure: pressure of the pen on each stroke, (N, strokes).
        pen: width of the pen in pixels, (N, 1, 1).
    """
    n = len(points)
    length = np.linalg.norm(np.diff(points, axis=2), axis=-1) * SIZE
    weight = (length * pressure[..., None]).reshape(n, -1, 1) / (pen * np.sqrt(2 * np.pi))
    middle = ((points[:, :, 1:] + points[:, :, :-1]) / 2 * SIZE).reshape(n, -1, 2)
    pixel = _pixel_centres()
    across, down = (
        (-((pixel - _tensor(middle[..., i : i + 1])) / _tensor(pen)).square() / 2).exp()
        for i in (0, 1)
    )
    return ((down * _tensor(weight)).mT @ across * 2 - 0.5).clamp(0, 1)


def _pixel_centres() -> Tensor:
    return torch.arange(SIZE) + 0.5 - SIZE / 2


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"glyphs": Glyphs}
