"""The command line computes float32 in float32; a program that uses metazoo decides for itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import metazoo
from metazoo.cli import run


@pytest.fixture(autouse=True)
def allowed() -> Iterator[None]:
    """TF32, as by PyTorch's default."""
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = True


def images(folder: Path) -> Path:
    for label, shade in (("a", 0), ("b", 255)):
        (folder / label).mkdir(parents=True)
        Image.new("L", (28, 28), shade).save(folder / label / "1.png")
    return folder


def test_commands_that_compute(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    small = [
        "--dataset",
        "glyphs",
        "--data-alphabets",
        "6",
        "--backbone-width",
        "4",
        "--device",
        "cpu",
        "--progress",
        "none",
    ]
    short = ["--steps", "1", "--validation-episodes", "2", "--test-episodes", "2"]
    made = str(tmp_path / "run")
    commands = [
        ["train", "protonet", *small, *short, "--out", made],
        ["eval", made, "--episodes", "2", "--device", "cpu"],
        [
            "predict",
            "--model",
            made,
            "--support",
            str(folder),
            "--query",
            str(folder / "a"),
            "--device",
            "cpu",
        ],
        [
            "export",
            made,
            "--name",
            "protonet.x",
            "--out",
            str(tmp_path / "out"),
            "--episodes",
            "2",
            "--device",
            "cpu",
        ],
    ]
    for command in commands:
        torch.backends.cudnn.allow_tf32 = True
        assert run(command) == 0
        assert not torch.backends.cudnn.allow_tf32, command[0]


@pytest.mark.filterwarnings("ignore::metazoo.errors.DataWarning")
def test_a_program_keeps_what_it_has_set() -> None:
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    metazoo.FewShotClassifier("protonet.omniglot", device="cpu").fit(
        x, ["a", "a", "b", "b"]
    ).predict(x)
    assert torch.backends.cudnn.allow_tf32
