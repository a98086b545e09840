"""Decoding of image files to small tensors."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metazoo.errors import DataError, OptionError

SUFFIXES = frozenset(
    {
        ".bmp",
        ".gif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)

# Without a list Pillow also tries formats that start other programs (PostScript).
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

# The largest side of an example, in pixels, that a model's file may ask for.
LARGEST = 4096


def is_image(name: str) -> bool:
    """Return whether a file name has a suffix of `SUFFIXES`, in upper or lower case."""
    return Path(name).suffix.lower() in SUFFIXES


def check_input_format(values: Any) -> dict[str, Any]:
    """Return `input_format`: empty, or the arguments of `decode`. Raises ValueError."""
    kinds = {"size": int, "channels": int, "invert": bool}
    if not isinstance(values, dict) or {key: type(value) for key, value in values.items()} not in (
        {},
        kinds,
    ):
        raise ValueError("'input_format' must be empty or have size, channels and invert")
    if values and not (1 <= values["size"] <= LARGEST and values["channels"] in (1, 3)):
        raise ValueError(f"'input_format' must have a size from 1 to {LARGEST} and 1 or 3 channels")
    return values


def decode(
    source: bytes | Path | Image.Image,
    *,
    size: int,
    channels: int,
    invert: bool,
    name: str | None = None,
) -> Tensor:
    """Return an image as a uint8 tensor of shape (channels, size, size).

    The whole image is resized with a Lanczos filter; its aspect ratio changes. Transparent pixels
    become white, the EXIF orientation is applied, and of an animation the first frame is taken.

    Args:
        source: a file's contents, its path, or a Pillow image
        size: side of the result in pixels
        channels: 1 (grey) or 3 (red, green, blue)
        invert: subtract the values from 255, so that dark ink on white paper becomes 255 on 0
        name: what errors call the image

    Raises:
        DataError: the file is missing, damaged or not an image, or has more pixels than Pillow's
            `Image.MAX_IMAGE_PIXELS`
    """
    if channels not in (1, 3):
        raise OptionError(
            f"an image cannot have {channels} channels", "it has 1 (grey) or 3 (red, green, blue)"
        )
    with _reported(name or (str(source) if isinstance(source, Path) else "the image")):
        small = _resized(source, size, {1: "L", 3: "RGB"}[channels])
    pixels = 255 - np.asarray(small) if invert else np.array(small)
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1).contiguous()


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn what Pillow raises into DataError."""
    try:
        yield
    except UnidentifiedImageError:
        raise DataError(
            f"{name} is not an image that can be read",
            f"it may be damaged; images are {', '.join(_FORMATS)} files",
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"{name} has too many pixels", f"make it smaller than {Image.MAX_IMAGE_PIXELS} pixels"
        ) from None
    except FileNotFoundError:
        raise DataError(f"there is no file {name}", "check the path") from None
    except Exception as error:  # a damaged file makes a decoder raise anything
        raise DataError(
            f"{name} cannot be read as an image: {error}",
            "it seems damaged; replace or remove it",
        ) from error


def _resized(source: bytes | Path | Image.Image, size: int, mode: str) -> Image.Image:
    with warnings.catch_warnings():
        # Warnings about odd metadata do not help the user. A decompression bomb must be an error.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = source if isinstance(source, Image.Image) else _open(source, size)
        image = _opaque(_upright(image), mode)
        return image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _open(source: bytes | Path, size: int) -> Image.Image:
    data = source.read_bytes() if isinstance(source, Path) else source
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        # A JPEG decodes several times faster at a fraction of its size.
        image.draft(None, (3 * size, 3 * size))
        image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata do not make an image unusable
        return image


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey image of integers or floats in 8 bits.

    White is 65535 for integers, and for floats 1, or 255 if any value is above 1.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = 65535.0 if image.mode != "F" else 1.0 if values.max(initial=0) <= 1 else 255.0
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
