"""Caltech-101: its published layout with made-up photos, and the real ones if METAZOO_DATA has them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from metazoo import DataError
from metazoo.datasets.caltech101 import SPLITS, Caltech101

NAMES = [name for names in SPLITS.values() for name in names]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published tree: photos of all classes, more of one, and classes that are left out."""
    root = tmp_path_factory.mktemp("data")
    for i, name in enumerate([*NAMES, "Faces", "BACKGROUND_Google"]):
        folder = root / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for number in range(1, 43 if name == "ant" else 3):
            colour = (2 * i, number, 0)
            Image.new("RGB", (12, 10), colour).save(folder / f"image_{number:04}.png")
    return root


def test_the_splits_share_no_class() -> None:
    assert [len(names) for names in SPLITS.values()] == [61, 16, 20]
    assert len(set(NAMES)) == 97


def test_the_published_layout_is_read(published: Path) -> None:
    data = Caltech101(Caltech101.Config(root=str(published), size=8))
    assert {name: part.names for name, part in data.splits.items()} == {
        name: tuple(names) for name, names in SPLITS.items()
    }
    test = data.split("test")
    assert test.names[0] == "ant"
    assert test.counts == (40, *(2,) * 19)
    # The first photos in the order of their names, each of one colour.
    assert test.x[:40, 1, 4, 4].tolist() == list(range(1, 41))
    assert data.input_format == {"size": 8, "channels": 3, "invert": False}


def test_a_missing_class_is_named(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "101_ObjectCategories" / "emu")
    with pytest.raises(DataError, match="no photos of class 'emu'"):
        Caltech101(Caltech101.Config(root=str(tmp_path))).load()


def test_without_photos_the_error_says_what_to_unpack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no 101_ObjectCategories") as caught:
        Caltech101(Caltech101.Config(root=str(tmp_path))).load()
    assert "--data-root" in str(caught.value.hint)


def test_the_real_photos() -> None:
    root = os.environ.get("METAZOO_DATA")
    if not root or not Path(root, "caltech101_photos.zip").is_file():
        pytest.skip("METAZOO_DATA has no caltech101_photos.zip")
    with Caltech101(Caltech101.Config(root=root)).streams() as streams:
        assert {name: sum(each.counts) for name, each in streams.items()} == {
            "train": 2393,
            "val": 628,
            "test": 799,
        }
        assert streams["val"].read(0, 2).shape == (2, 3, 64, 64)
