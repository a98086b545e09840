"""Raw examples become tensors as a model's input format says, and odd formats are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metazoo
from metazoo import inputs
from metazoo.errors import DataError, OptionError, UnknownNameError
from metazoo.images import decode

IMAGE = {"size": 8, "channels": 3, "invert": False}
TEXT = {"tokenizer": "ngrams", "length": 12}


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


def test_an_image_is_read_from_whatever_it_is_in(picture: Image.Image, tmp_path: Path) -> None:
    path, data = tmp_path / "a.png", io.BytesIO()
    picture.save(path)
    picture.save(data, "png")
    x = inputs.read([path, str(path), data.getvalue(), picture], IMAGE)
    assert x.dtype == torch.uint8
    assert x.shape == (4, *inputs.shape_of(IMAGE))
    assert all(torch.equal(image, decode(picture, **IMAGE)) for image in x)
    cropped = inputs.read([picture], {**IMAGE, "crop": 0.5})
    assert torch.equal(cropped[0], decode(picture, **IMAGE, crop=0.5))
    assert not torch.equal(cropped[0], x[0])
    with pytest.raises(DataError, match=r"there is no file .*b\.png"):
        inputs.read([tmp_path / "b.png"], IMAGE)


def test_texts_become_tokens() -> None:
    x = inputs.read(["the card", "", "The CARD"], TEXT)
    assert x.dtype == torch.int64
    assert x.shape == (3, *inputs.shape_of(TEXT))
    assert torch.equal(x[0], x[2])
    assert not x[1].any()
    with pytest.raises(DataError, match=r"3\.5 is a float, not a text") as caught:
        inputs.read(["a", 3.5], TEXT)
    assert "list of strings" in (caught.value.hint or "")


@pytest.mark.parametrize("taken", [IMAGE, TEXT], ids=["images", "texts"])
def test_no_examples_have_a_shape_too(taken: dict[str, Any]) -> None:
    none, one = (
        inputs.read([], taken),
        inputs.read(["a"] if taken is TEXT else [Image.new("L", (9, 9))], taken),
    )
    assert (none.shape[1:], none.dtype) == (one.shape[1:], one.dtype)
    assert len(none) == 0


def test_kinds() -> None:
    assert [inputs.kind_of(taken) for taken in (IMAGE, TEXT, {})] == ["image", "text", "numbers"]


@pytest.mark.parametrize(
    "taken", [{}, IMAGE, {**IMAGE, "crop": 0.875}, TEXT, {**TEXT, "tokenizer": "hf:a/b"}]
)
def test_formats_that_are_allowed(taken: dict[str, Any]) -> None:
    assert inputs.check_input_format(taken) == taken


@pytest.mark.parametrize(
    "taken",
    [
        None,
        [],
        {"size": 8},
        {**IMAGE, "size": 8.0},
        {**IMAGE, "size": True},
        {**IMAGE, "size": 0},
        {**IMAGE, "size": 4097},
        {**IMAGE, "channels": 2},
        {**IMAGE, "crop": 1},
        {**IMAGE, "crop": 0.0},
        {**IMAGE, "crop": 1.5},
        {**IMAGE, "crop": float("nan")},
        {**IMAGE, "mean": 0.5},
        {"tokenizer": "ngrams"},
        {**TEXT, "length": 0},
        {**TEXT, "length": 4097},
        {**TEXT, "tokenizer": 3},
        {**IMAGE, **TEXT},
    ],
    ids=str,
)
def test_formats_that_are_refused(taken: Any) -> None:
    with pytest.raises(ValueError, match="'input_format' must"):
        inputs.check_input_format(taken)


def test_an_encoder_is_named_by_its_backbone_and_perhaps_its_own_name() -> None:
    backbone, config = inputs.encoder_named("hf:user/name@v1.0")
    assert issubclass(backbone, metazoo.Encoder)
    assert (config.name, config.revision, config.sha256) == ("user/name", "v1.0", "")
    assert inputs.encoder_named("hf:C:\\models\\a b")[1].name == "C:\\models\\a b"
    assert inputs.encoder_named("minilm")[1].sha256 == ""
    for reference, error, message in (
        ("", OptionError, "does not name an encoder"),
        ("a b:c", OptionError, "does not name an encoder"),
        ("resnet12", OptionError, "is not an encoder"),
        ("minilm:l12", OptionError, "is a single encoder"),
        ("nothing:x", UnknownNameError, "no backbone named 'nothing'"),
    ):
        with pytest.raises(error, match=message):
            inputs.encoder_named(reference)
