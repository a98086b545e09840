"""From any image file to a small tensor: the one way in which images enter metazoo."""

from __future__ import annotations

import io
import warnings
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

# Named, because Pillow would otherwise also try formats that start other programs (PostScript).
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP")

# The side of an example in pixels, as far as a file may ask for it.
LARGEST = 4096


def is_image(name: str) -> bool:
    """Return whether a file of that name is taken for an image: its suffix, in either case, is in `SUFFIXES`."""
    return Path(name).suffix.lower() in SUFFIXES


def check_input_format(values: Any) -> dict[str, Any]:
    """Return how a user's image becomes an example, or raise ValueError unless that is nothing or arguments of `decode`."""
    kinds = {"size": int, "channels": int, "invert": bool}
    if not isinstance(values, dict) or {key: type(value) for key, value in values.items()} not in (
        {},
        kinds,
    ):
        raise ValueError("'input_format' is not empty and not size, channels and invert")
    if values and not (1 <= values["size"] <= LARGEST and values["channels"] in (1, 3)):
        raise ValueError(f"'input_format' has no size from 1 to {LARGEST}, or not 1 or 3 channels")
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

    The whole image is resized, its aspect ratio not kept, with an antialiasing filter (Lanczos); of an animation it
    is the first frame. Transparent parts become white, and EXIF orientation is applied. `channels` is 1 (grey) or 3 (red,
    green, blue); `invert` turns dark ink on white paper into ink 255 on 0. Errors call the image `name`.

    Raises DataError where it is missing, damaged, no image, or of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS`.
    """
    if channels not in (1, 3):
        raise OptionError(
            f"an image cannot have {channels} channels", "it has 1 (grey) or 3 (red, green, blue)"
        )
    name = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        with warnings.catch_warnings():
            # What Pillow has to say about odd metadata helps nobody here; a huge image must not pass with a warning.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else _open(source, size)
            mode = {1: "L", 3: "RGB"}[channels]
            small = _flat(_upright(image), mode).resize(
                (size, size), Image.Resampling.LANCZOS, reducing_gap=3.0
            )
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
            "it seems to be damaged; replace or remove it",
        ) from error
    pixels = 255 - np.asarray(small) if invert else np.array(small)
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1).contiguous()


def _open(source: bytes | Path, size: int) -> Image.Image:
    data = source.read_bytes() if isinstance(source, Path) else source
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        image.draft(
            None, (3 * size, 3 * size)
        )  # a JPEG decodes several times faster at a fraction of its size
        image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata are no reason to refuse the picture
        return image


def _flat(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a deep grey image in 8 bits: integers count to 65535, floats to 1 (or to 255, where any is above 1)."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = 65535.0 if image.mode != "F" else 1.0 if values.max(initial=0) <= 1 else 255.0
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
