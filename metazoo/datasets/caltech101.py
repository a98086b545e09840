"""Caltech-101: photos of objects by Li, Andreeto, Ranzato and Perona (doi:10.22002/D1.20086)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.image_stream import image_stream
from metazoo.errors import DataError
from metazoo.image_folders import Classes
from metazoo.images import is_image
from metazoo.io.archives import Tree, open_tree
from metazoo.io.files import cache_directory, expand_user
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples, Stream

IMAGES = 40  # of each class; the smallest class has 33
PLACES = ("caltech101_photos.zip", "caltech101_photos", "101_ObjectCategories")
# Chosen at random, look-alike classes together. People, cartoons and the background are left out.
SPLITS = {
    "train": [
        "Leopards",
        "Motorbikes",
        "accordion",
        "airplanes",
        "anchor",
        "beaver",
        "binocular",
        "bonsai",
        "brain",
        "butterfly",
        "cannon",
        "ceiling_fan",
        "chair",
        "chandelier",
        "crab",
        "crayfish",
        "crocodile",
        "crocodile_head",
        "dalmatian",
        "dolphin",
        "ferry",
        "gerenuk",
        "gramophone",
        "hawksbill",
        "hedgehog",
        "ibis",
        "inline_skate",
        "kangaroo",
        "ketch",
        "lamp",
        "laptop",
        "lotus",
        "mandolin",
        "mayfly",
        "menorah",
        "metronome",
        "minaret",
        "octopus",
        "okapi",
        "pagoda",
        "panda",
        "pigeon",
        "pyramid",
        "revolver",
        "rhino",
        "rooster",
        "saxophone",
        "schooner",
        "scorpion",
        "soccer_ball",
        "starfish",
        "stop_sign",
        "strawberry",
        "sunflower",
        "trilobite",
        "umbrella",
        "watch",
        "water_lilly",
        "windsor_chair",
        "wrench",
        "yin_yang",
    ],
    "val": [
        "barrel",
        "bass",
        "camera",
        "car_side",
        "cougar_body",
        "cougar_face",
        "dollar_bill",
        "dragonfly",
        "electric_guitar",
        "helicopter",
        "lobster",
        "nautilus",
        "platypus",
        "stapler",
        "tick",
        "wild_cat",
    ],
    "test": [
        "ant",
        "brontosaurus",
        "buddha",
        "cellphone",
        "cup",
        "elephant",
        "emu",
        "euphonium",
        "ewer",
        "flamingo",
        "flamingo_head",
        "grand_piano",
        "headphone",
        "joshua_tree",
        "llama",
        "pizza",
        "scissors",
        "sea_horse",
        "stegosaurus",
        "wheelchair",
    ],
}


class Caltech101(ClassDataset):
    """The first 40 photos of each of 97 object classes, shape (3, size, size).

    It has 61 classes for training, 16 for validation and 20 for test. Caltech-101 has no published
    split for few-shot learning; this one is metazoo's own. The whole photo is stretched to a
    square, unless `crop` is set.

    Raises DataError if the photos are not there (they are not downloaded), or a class is missing.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[
            str | None,
            "folder that holds 101_ObjectCategories/, as published, or caltech101_photos.zip  "
            "[default: $METAZOO_DATA, else the cache]",
        ] = None
        size: Annotated[int, "height and width in pixels", options.Range(8, 512)] = 64
        crop: Annotated[
            float | None,
            "take the central square with this share of the short side  [default: the whole photo, stretched]",
            options.Range(0.01, 1),
        ] = None

    config: Config
    local_options = ("root",)
    licence = "CC BY 4.0"

    @property
    def input_format(self) -> dict[str, Any]:
        crop = {} if self.config.crop is None else {"crop": self.config.crop}
        return {"size": self.config.size, "channels": 3, "invert": False, **crop}

    def load(self) -> dict[str, Examples]:
        with self.streams() as streams:
            return {name: stream.examples() for name, stream in streams.items()}

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        with open_tree(self._place()) as tree:
            found = _classes(tree)
            yield {
                split: image_stream(
                    tree, split, {name: found[name] for name in names}, self.input_format
                )
                for split, names in SPLITS.items()
            }

    def _place(self) -> Path:
        root = self.config.root or os.environ.get("METAZOO_DATA")
        base = expand_user(root, "the data root") if root else cache_directory() / "caltech101"
        for name in PLACES:
            if (base / name).exists():
                return base / name
        raise DataError(
            f"there is no {PLACES[-1]} in {base}",
            f"unpack Caltech-101 (doi:10.22002/D1.20086) there, or name a folder that holds "
            f"{PLACES[-1]}/ with --data-root",
        )


def _classes(tree: Tree) -> Classes:
    """Return the first photos of each class; raise DataError if one is missing."""
    found: Classes = {}
    for parts in tree.files:
        if len(parts) > 1 and is_image(parts[-1]):
            found.setdefault(parts[-2], []).append(parts)
    for name in (name for names in SPLITS.values() for name in names):
        if name not in found:
            raise DataError(
                f"{tree.path} has no photos of class '{name}'",
                "unpack the whole of Caltech-101 (doi:10.22002/D1.20086) there",
            )
    return {name: photos[:IMAGES] for name, photos in found.items()}


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"caltech101": Caltech101}
