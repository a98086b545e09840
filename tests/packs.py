"""Data to pack, and scripts that pack or read them in another process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metazoo import ClassDataset, Examples
from metazoo.datasets.folder import Folder
from metazoo.datasets.packed.dataset import Packed

ROOT = Path(__file__).parents[1]


class Vectors(ClassDataset):
    """Numbers, in classes of different sizes."""

    licence = "none"

    def load(self) -> dict[str, Examples]:
        counts = {"train": (4, 6, 5, 9), "test": (3, 7, 3)}
        noise = torch.Generator().manual_seed(0)
        return {
            split: Examples(
                torch.randn(sum(c), 5, generator=noise),
                c,
                tuple(f"{split}{i}" for i in range(len(c))),
                split,
            )
            for split, c in counts.items()
        }


def images(root: Path, classes: int = 12, each: int = 6) -> Path:
    """Make a tree of images of noise, `classes` folders of them."""
    noise = np.random.default_rng(0)
    for c in range(classes):
        (root / f"c{c:02}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noise.integers(0, 256, (12, 12, 3), np.uint8)).save(
                root / f"c{c:02}" / f"{i}.png"
            )
    return root


def folder(root: Path, size: int = 16) -> Folder:
    return Folder(Folder.Config(root=str(root), size=size))


def packed(root: Path) -> Packed:
    return Packed(Packed.Config(root=str(root)))


def script(text: str, *words: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program; `words` are its arguments."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options
    )


def answer(process: subprocess.Popen[str]) -> str:
    """Return what a program that must succeed prints."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


RESIDENT = """
    import sys
    from pathlib import Path
    import torch

    def memory(part):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[part].split()[0]) * 1024
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
