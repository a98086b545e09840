"""The sound inputs that the soak damages, made once: pictures, packed data, runs, a model with its card.

Everything is tiny, so that a case takes milliseconds.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metazoo import cli
from metazoo.datasets.folder import Folder
from metazoo.datasets.packed.writer import pack
from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan
from metazoo.zoo import run_folder

CLASSES, EACH, SIDE = 12, 4, 16
NAME = "protonet.soak"
RECIPE = {
    "ways": 2,
    "queries": 2,
    "train_ways": 3,
    "train_queries": 2,
    "meta_batch": 2,
    "steps": 8,
    "validate_every": 2,
    "validation_episodes": 2,
    "test_episodes": 4,
    "device": "cpu",
}


@dataclass(frozen=True)
class Material:
    """The folder with everything."""

    root: Path

    @property
    def images(self) -> Path:
        """Class folders of PNGs, grey on black."""
        return self.root / "images"

    @property
    def support(self) -> Path:
        """Two pictures of each of three classes."""
        return self.root / "support"

    @property
    def query(self) -> Path:
        """Two others of each."""
        return self.root / "query"

    @property
    def zip(self) -> Path:
        """The same in an archive."""
        return self.root / "images.zip"

    @property
    def packed(self) -> Path:
        """The same, packed."""
        return self.root / "packed"

    @property
    def stopped(self) -> Path:
        """A packing of the same that was stopped after the first split."""
        return self.root / "stopped"

    @property
    def run(self) -> Path:
        """A finished run of protonet."""
        return self.root / "run"

    @property
    def begun(self) -> Path:
        """A run of protonet that was stopped in the middle."""
        return self.root / "begun"

    @property
    def maml(self) -> Path:
        """A finished run of maml, which adapts by gradients and is transductive."""
        return self.root / "maml"

    @property
    def model(self) -> Path:
        """The folder with the weights and the card of `NAME`."""
        return self.root / "model"

    @property
    def mnist(self) -> Path:
        """A data root with MNIST's test files, of a few digits."""
        return self.root / "data"


def picture(label: int, number: int) -> np.ndarray:
    """Return a bright bar of its class's direction, at a place of its own."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    angle = np.pi * label / CLASSES
    distance = np.abs(x * np.sin(angle) - y * np.cos(angle) + (number - EACH / 2) / 2)
    return (255 * np.clip(2.5 - distance, 0, 1)).astype(np.uint8)


def make(root: Path) -> Material:
    """Make everything in a new folder."""
    material = Material(root)
    for label in range(CLASSES):
        (material.images / f"c{label:02}").mkdir(parents=True)
        for number in range(EACH):
            path = material.images / f"c{label:02}" / f"{number}.png"
            Image.fromarray(picture(label, number)).save(path)
    material.query.mkdir()
    for label in ("c00", "c04", "c08"):
        (material.support / label).mkdir(parents=True)
        for number in range(EACH):
            of_class = material.images / label / f"{number}.png"
            to = material.support / label if number < 2 else material.query
            shutil.copy(of_class, to / f"{label}_{number}.png")
    with zipfile.ZipFile(material.zip, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(material.images.rglob("*.png")):
            archive.write(path, path.relative_to(material.images))
    _command("data", "pack", "folder", material.packed, *folder_options(material.images))
    _stop_packing(material)
    # Enough for answers that depend on the picture.
    _train(material, material.run, "protonet", steps=60, validate_every=60, lr=0.02)
    _train(material, material.maml, "maml", steps=60, validate_every=60, lr=0.01)
    _train(material, material.begun, "protonet", stop=True)
    _command(
        *("export", material.run, "--name", NAME, "--licence", "CC0-1.0", "--out", material.model),
        *("--episodes", 4, "--device", "cpu"),
    )
    _write_mnist(material.mnist / "mnist")
    return material


def folder_options(root: Path) -> tuple[Any, ...]:
    """Return the options of the data set `folder` for the pictures."""
    return ("--data-root", root, "--data-size", SIDE, "--data-channels", "grey")


def _command(*words: Any) -> None:
    assert cli.run([str(word) for word in words]) == 0


def _stop_packing(material: Material) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    config = Folder.Config(root=str(material.images), size=SIDE, channels="grey")
    with contextlib.suppress(KeyboardInterrupt):
        pack(Folder(config), "folder", material.stopped, stop)


class _Stop(Watcher):
    """Stops a run after its fourth step, as Ctrl-C does."""

    def step(self, step: int, steps: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt


def _train(
    material: Material, folder: Path, algorithm: str, *, stop: bool = False, **more: Any
) -> None:
    data = {"root": str(material.packed)}
    blueprint, source = plan(algorithm, "packed", {}, data, {"width": 4}, {**RECIPE, **more})
    run_folder.create(folder, blueprint)
    try:
        train(blueprint, source, folder, _Stop() if stop else Watcher())
    except KeyboardInterrupt:
        assert stop
    for events in folder.glob("events.*"):
        events.unlink()


def _write_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    images = np.stack(
        [np.kron(picture(label % 10, label), np.ones((2, 2)))[2:30, 2:30] for label in range(40)]
    )
    labels = np.arange(40) % 10
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
        data = gzip.compress(head + values.astype(np.uint8).tobytes(), mtime=0)
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(data)


def copied(source: Path, to: Path) -> Path:
    """Return a copy of a folder of the material, to damage."""
    return Path(shutil.copytree(source, to))
