"""Raw examples as tensors: image files and texts, in the format that a model takes.

A model's `input_format` is a dictionary of JSON values, kept with the model:

- images: the arguments `size`, `channels`, `invert` and perhaps `crop` of `metazoo.images.decode`;
- texts: `tokenizer` and `length`. The tokenizer is "ngrams" (`metazoo.texts`) or an encoder with
  its own, as BACKBONE or BACKBONE:NAME;
- empty: examples are tensors of numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from metazoo import options, texts
from metazoo.base.encoder import Encoder
from metazoo.errors import DataError, OptionError
from metazoo.images import LARGEST, decode
from metazoo.plugins.registry import registry

Kind = Literal["image", "text", "numbers"]
LONGEST = 4096  # the most tokens that a model's file may ask for
REFERENCE = re.compile(r"([A-Za-z0-9_.-]+)(?::(.+))?", re.DOTALL)


def kind_of(input_format: Mapping[str, Any]) -> Kind:
    """Return what kind of raw examples a format is for."""
    if not input_format:
        return "numbers"
    return "text" if "tokenizer" in input_format else "image"


def shape_of(input_format: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of an example of images or texts in this format."""
    if kind_of(input_format) == "text":
        return (input_format["length"],)
    size = input_format["size"]
    return (input_format["channels"], size, size)


def read(raw: Sequence[Any], input_format: Mapping[str, Any]) -> Tensor:
    """Return raw examples as a tensor: images uint8 (N, C, H, W), texts int64 (N, length).

    Args:
        raw: texts; or images, as bytes, paths or Pillow images.
        input_format: of images or texts; see the module.

    Raises:
        DataError: an image cannot be read, or a text is not a string.
    """
    if kind_of(input_format) == "text":
        return _tokenized(list(raw), input_format["tokenizer"], input_format["length"])
    if not raw:
        return torch.zeros(0, *shape_of(input_format), dtype=torch.uint8)
    return torch.stack([decode(_source(image), **input_format) for image in raw])


def _source(image: Any) -> bytes | Path | Image.Image:
    return Path(image) if isinstance(image, str) else image


def _tokenized(raw: list[Any], tokenizer: str, length: int) -> Tensor:
    for text in raw:
        if not isinstance(text, str):
            raise DataError(
                f"{text!r} is a {type(text).__name__}, not a text", "give a list of strings"
            )
    if not raw:
        return torch.zeros(0, length, dtype=torch.long)
    if tokenizer == texts.NGRAMS:
        return texts.ngrams(raw, length)
    encoder, config = encoder_named(tokenizer)
    return encoder.tokenize(config, raw, length)


def encoder_named(reference: str) -> tuple[type[Encoder], Any]:
    """Return the class of an encoder BACKBONE or BACKBONE:NAME, and its options (not pinned).

    Raises OptionError if the backbone is not an encoder, UnknownNameError if it does not exist.
    """
    matched = REFERENCE.fullmatch(reference)
    if matched is None:
        raise OptionError(f"'{reference}' does not name an encoder", "it is BACKBONE:NAME")
    backbone = registry().backbone(matched[1]).value
    if not issubclass(backbone, Encoder):
        raise OptionError(
            f"backbone '{matched[1]}' is not an encoder: its weights must be trained",
            f"`metazoo train ALGORITHM --backbone {matched[1]}` trains it",
        )
    values = backbone.named(matched[2] or "")
    return backbone, options.build(backbone.Config, values, f"backbone '{matched[1]}'")


def check_input_format(values: Any) -> dict[str, Any]:
    """Return a valid `input_format`, or raise ValueError."""
    if not isinstance(values, dict):
        raise ValueError("'input_format' must be a dictionary")
    kinds = {key: type(value) for key, value in values.items()}
    if kinds == {"tokenizer": str, "length": int}:
        if not 1 <= values["length"] <= LONGEST:
            raise ValueError(f"'input_format' must have a length from 1 to {LONGEST}")
        return values
    image = {"size": int, "channels": int, "invert": bool}
    if kinds not in ({}, image, {**image, "crop": float}):
        raise ValueError(
            "'input_format' must be empty, have size, channels and invert (and perhaps crop), "
            "or have tokenizer and length"
        )
    if values and not (1 <= values["size"] <= LARGEST and values["channels"] in (1, 3)):
        raise ValueError(f"'input_format' must have a size from 1 to {LARGEST} and 1 or 3 channels")
    if not 0 < values.get("crop", 1.0) <= 1:
        raise ValueError("'input_format' must have a crop above 0 and at most 1")
    return values
