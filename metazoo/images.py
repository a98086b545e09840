"""Decoding of image files to small tensors."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metazoo.errors import DataError, OptionError

# Not all that Pillow opens: PostScript and WMF start other programs, and some formats have no
# signature, so that damaged files of another format pass for theirs.
_FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "PPM",
    "TIFF",
    "WEBP",
    "AVIF",
    "JPEG2000",
    "QOI",
    "ICO",
    "ICNS",
    "PCX",
    "PSD",
    "SGI",
    "SUN",
    "TGA",
    "XBM",
    "XPM",
    "DDS",
)

# The largest side of an example, in pixels, that a model's file may ask for.
LARGEST = 4096

# White in images of integers or floats: of masks and fractions, and of 8, 10, 12, 14 and 16 bits.
_WHITES = (1, 255, 1023, 4095, 16383, 65535)
_BITS, _INK, _SAMPLES = 258, 262, 339  # tags of TIFF: BitsPerSample and so on
_BAND = 2**18  # pixels that are converted at a time


@functools.cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the image formats that are read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the names of images, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in formats())


def is_image(name: str) -> bool:
    """Return whether a file name has a suffix of `suffixes`, in upper or lower case."""
    return Path(name).suffix.lower() in suffixes()


def decode(
    source: bytes | Path | Image.Image,
    *,
    size: int,
    channels: int,
    invert: bool,
    crop: float | None = None,
    name: str | None = None,
) -> Tensor:
    """Return an image as a uint8 tensor of shape (channels, size, size).

    Without `crop`, the whole image is resized with a Lanczos filter, and its aspect ratio changes.
    Transparent pixels become white, the EXIF orientation is applied, and the first frame or page is
    taken.

    Images of integers above 8 bits or of floats rarely say which value is white. It is the smallest
    of 1, 255, 1023, 4095, 16383 and 65535 that no pixel exceeds; if pixels exceed 65535, the
    brightest pixel is white and the darkest black. Negative pixels make the darkest pixel black.
    NaN is black.

    Args:
        source: a file's contents, its path, or a Pillow image
        size: side of the result in pixels
        channels: 1 (grey) or 3 (red, green, blue)
        invert: subtract the values from 255, so that dark ink on white paper becomes 255 on 0
        crop: take the central square with this share of the short side, above 0 and at most 1
        name: what errors call the image

    Raises:
        DataError: the file is missing, damaged or not an image, has more pixels than Pillow's
            `Image.MAX_IMAGE_PIXELS`, or has colours that Pillow cannot read
    """
    if channels not in (1, 3):
        raise OptionError(
            f"an image cannot have {channels} channels", "it has 1 (grey) or 3 (red, green, blue)"
        )
    with _reported(name or (str(source) if isinstance(source, Path) else "the image")):
        small = _resized(source, size, {1: "L", 3: "RGB"}[channels], crop)
    pixels = 255 - np.asarray(small) if invert else np.array(small)
    # numpy copies in this thread; torch would start others for each image.
    return torch.from_numpy(pixels.reshape(size, size, channels).transpose(2, 0, 1).copy())


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn what Pillow raises into DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name} {error.message}", error.hint) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} is not an image that can be read",
            f"it may be damaged; images are {', '.join(formats())} files",
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"{name} has too many pixels", f"make it smaller than {Image.MAX_IMAGE_PIXELS} pixels"
        ) from None
    except FileNotFoundError:
        raise DataError(f"there is no file {name}", "check the path") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes a decoder raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"cannot read {name}: {error.strerror}", "check the path and its permissions"
            ) from error
        raise DataError(
            f"{name} cannot be read as an image: {error}",
            "it seems damaged; replace or remove it",
        ) from error


def _resized(
    source: bytes | Path | Image.Image, size: int, mode: str, crop: float | None
) -> Image.Image:
    with warnings.catch_warnings():
        # Warnings about odd metadata do not help the user. A decompression bomb must be an error.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if isinstance(source, Image.Image):
            image = _loaded(source)
        else:
            with _file(source) as file, Image.open(file, formats=formats()) as image:
                # A JPEG decodes several times faster at a fraction of its size.
                side = round(3 * size / (crop or 1))
                image.draft(None, (side, side))
                _loaded(image)
        taken = image.size if crop is None else (crop * min(image.size),) * 2
        # As `resize` with reducing_gap=3.0 computes them.
        across, down = (int(side / size / 3.0) or 1 for side in taken)
        left, top = ((side - part) / 2 for side, part in zip(image.size, taken))
        box = (
            left / across,
            top / down,
            (left + taken[0]) / across,
            (top + taken[1]) / down,
        )
        reduced = _reduced(image, (across, down), mode)
        return _upright(reduced.resize((size, size), Image.Resampling.LANCZOS, box), image)


def _file(source: bytes | Path) -> BinaryIO:
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise DataError("is not a file", "give an image")  # a pipe would wait for a writer
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    if not file.read(1):
        file.close()
        raise DataError("is not an image: it is empty", "replace or remove it")
    return file


def _loaded(image: Image.Image) -> Image.Image:
    """Load an image and return it. Raises DataError if Pillow drops the bits that it uses."""
    # Of colours with 16 bits, Pillow keeps the upper 8.
    stored = str(getattr(image, "tile", ""))
    halved = image.format in ("PNG", "TIFF") and ";16" in stored
    image.load()
    _scale_transparency(image, stored)
    if halved and not image.mode.startswith("I"):
        colours = np.asarray(image.getextrema())[[band != "A" for band in image.getbands()]]
        if 0 < colours.max() < 16:
            raise DataError(
                "has 16 bits for each colour, but uses only the lowest 12, which cannot be read",
                "convert it to 8 bits for each colour",
            )
    return image


def _scale_transparency(image: Image.Image, stored: str) -> None:
    """Scale the transparent colour of a PNG as Pillow has scaled its pixels."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or isinstance(colour, bytes | None):
        return
    if image.mode == "L" and (";2" in stored or ";4" in stored):
        image.info["transparency"] = colour * (85 if ";2" in stored else 17)
    elif image.mode == "RGB" and ";16" in stored:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _reduced(image: Image.Image, factors: tuple[int, int], mode: str) -> Image.Image:
    """Return an image in a mode, each side divided by a whole number, rounded up.

    The image is converted in bands of rows, since a whole one may take gigabytes.
    """
    (across, down), (width, height) = factors, image.size
    rows = down * max(1, _BAND // (width * down))
    convert = _converter(image, mode, rows)
    reduced = Image.new(mode, (-(-width // across), -(-height // down)))
    for top, band in _bands(image, rows):
        reduced.paste(convert(band).reduce(factors), (0, top // down))
    return reduced


def _bands(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield an image in bands of `rows` rows, each with the number of its first row."""
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _upright(small: Image.Image, image: Image.Image) -> Image.Image:
    """Return a small image turned as the metadata of the large one say."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata do not make an image unusable
        return small
    small.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(small)


def _converter(image: Image.Image, mode: str, rows: int) -> Callable[[Image.Image], Image.Image]:
    """Return the function that converts a band of an image to a mode."""
    if image.mode == "F" or image.mode.startswith("I"):
        # TIFF may store 0 as white, and numbers up to 2**32 that Pillow takes for negative ones.
        tags = getattr(image, "tag_v2", {})
        inverted, unsigned = tags.get(_INK) == 0, image.mode == "I" and tags.get(_SAMPLES) == (1,)
        transparent = image.info.get("transparency") if image.format == "PNG" else None

        def values(band: Image.Image) -> np.ndarray:
            found = np.asarray(band)
            numbers = (found.view(np.uint32) if unsigned else found).astype(np.float64)
            return (
                numbers if transparent is None else np.where(found == transparent, np.inf, numbers)
            )

        black, white = _black_and_white(image, rows, values)
        if inverted:
            black, white = white, black
        return lambda band: _eight_bits(values(band), black, white).convert(mode)
    return lambda band: _opaque(band, mode)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert(image.mode.upper())
    if image.mode == "LAB":  # which converts to RGB only
        image = image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _eight_bits(values: np.ndarray, black: float, white: float) -> Image.Image:
    scaled = ((values - black) * (255 / (white - black))).clip(0, 255)
    return Image.fromarray(np.nan_to_num(scaled).round().astype(np.uint8))


def _black_and_white(
    image: Image.Image, rows: int, values_of: Callable[[Image.Image], np.ndarray]
) -> tuple[float, float]:
    """Return the values of black and white in an image of integers or floats (see `decode`)."""
    lowest, highest = np.inf, -np.inf
    for _, band in _bands(image, rows):
        values = values_of(band)
        finite = values[np.isfinite(values)]
        lowest, highest = finite.min(initial=lowest), finite.max(initial=highest)
    if lowest > highest:
        raise DataError("has no pixel with a number: all are NaN or infinite", "replace it")
    if image.mode != "F" and image.format == "PPM":  # Pillow has scaled the values to 16 bits
        return 0.0, 65535.0
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))[0]
    whites = _WHITES if bits in (16, 32, 64) else (2**bits - 1,)
    # A float may exceed its white a little after a filter that overshoots.
    white = next((white for white in whites if highest < white + 1), None)
    if white is None:
        return (lowest if lowest < highest else 0.0), highest
    return min(lowest, 0.0), float(white)
