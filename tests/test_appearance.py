"""What pictures look like, and the warnings that follow from it."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture
from PIL import Image, ImageOps

from metazoo.appearance import Look, opposite, shares, unlike_drawings
from metazoo.classifier import FewShotClassifier
from metazoo.datasets.mnist import MNIST
from metazoo.errors import DataWarning
from metazoo.images import decode

DATA = Path(os.environ.get("METAZOO_DATA", ""))
LABELS = ["bar", "dot", "ring"]


def photo(seed: int) -> Image.Image:
    """Smooth patches of many tones."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (6, 6, 3), generator=generator).byte().numpy()
    return Image.fromarray(coarse).resize((60, 60), Image.Resampling.BICUBIC)


def seen(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([decode(x, size=28, channels=1, invert=True) for x in images]) / 255


DRAWINGS = [picture(label, i) for i in range(3) for label in LABELS]
PHOTOS = [photo(i) for i in range(9)]


def test_drawings_their_inverse_and_photos_are_told_apart() -> None:
    drawings, photos = seen(DRAWINGS), seen(PHOTOS)
    assert shares(drawings)[Look.DARK_GROUND] == 1
    assert shares(1 - drawings)[Look.LIGHT_GROUND] == 1
    assert unlike_drawings(shares(drawings)) is None
    assert unlike_drawings(shares(1 - drawings)) is Look.LIGHT_GROUND
    assert unlike_drawings(shares(photos)) is Look.TONES
    assert opposite(shares(drawings), shares(1 - drawings))
    assert opposite(shares(1 - drawings), shares(drawings))
    for others in (drawings, photos):
        assert not opposite(shares(drawings), shares(others))
    assert not opposite(shares(photos), shares(drawings))


def test_grey_paper_is_a_ground() -> None:
    grey = [ImageOps.colorize(x, "#303030", "#c0c0c0").convert("L") for x in DRAWINGS]
    assert unlike_drawings(shares(seen(grey))) is None


@pytest.mark.parametrize(
    ("support", "query", "words"),
    [
        (DRAWINGS, DRAWINGS, []),
        (
            [ImageOps.invert(x) for x in DRAWINGS],
            DRAWINGS,
            ["many labelled examples are dark on light once inverted, .* set invert=False"],
        ),
        (DRAWINGS, [ImageOps.invert(DRAWINGS[0])], ["many queries are dark on light"]),
        (DRAWINGS, PHOTOS[:1], ["many queries are full of tones"]),
        (
            PHOTOS,
            PHOTOS,
            [
                "many labelled examples are full of tones, as photos are, .* as 'ridge.photos'",
                "classified correctly by the others",
            ],
        ),
    ],
)
def test_a_model_of_drawings_says_what_does_not_look_like_one(
    support: Any, query: Any, words: list[str]
) -> None:
    classifier = FewShotClassifier("protonet.omniglot", device="cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.fit(support, LABELS * 3).predict(query)
    assert len(caught) == len(words)
    for warning, text in zip(caught, words):
        assert warning.category is DataWarning
        assert re.search(text, str(warning.message))


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="METAZOO_DATA names no MNIST")
def test_mnist_looks_as_it_should() -> None:
    x = MNIST(MNIST.Config(root=str(DATA))).split("test").x
    assert shares(x[::7] / 255)[Look.DARK_GROUND] > 0.999


@pytest.mark.parametrize(
    ("archive", "suffix", "invert", "look"),
    [
        ("omniglot/images_background.zip", ".png", True, None),
        ("omniglot/images_background.zip", ".png", False, Look.LIGHT_GROUND),
        ("caltech101_photos.zip", ".jpg", True, Look.TONES),
        ("caltech101_photos.zip", ".jpg", False, Look.TONES),
    ],
)
def test_real_pictures_look_as_they_should(
    archive: str, suffix: str, invert: bool, look: Look | None
) -> None:
    if not (DATA / archive).is_file():
        pytest.skip(f"METAZOO_DATA has no {archive}")
    with zipfile.ZipFile(DATA / archive) as members:
        names = sorted(name for name in members.namelist() if name.endswith(suffix))
        x = torch.stack(
            [
                decode(members.read(name), size=28, channels=1, invert=invert)
                for name in names[:: len(names) // 60]
            ]
        )
    assert unlike_drawings(shares(x / 255)) is look
