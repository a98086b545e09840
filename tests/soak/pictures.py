"""Pictures in every format and mode: damaged, enormous, or the same picture stored in another way."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from . import mutations
from .commands import command, read_json
from .material import Material, picture
from .subject import Case, Subject, must

T = TypeVar("T")
Make = Callable[[np.ndarray], bytes]
TOLERANCE = 0.2  # of a probability: JPEG, a palette and 8 bits round


def subjects(material: Material) -> list[Subject]:
    """Return the subjects of pictures: damaged files, and the same picture in other modes."""

    def answered(data: bytes, suffix: str) -> tuple[str, dict[str, float], str]:
        """Return the label and the probabilities of an image, and what stderr says."""
        path = Path(f"query{suffix}")
        path.write_bytes(data)
        words = ("--model", material.run, "--support", material.support, "--device", "cpu")
        out, err = command("predict", *words, "--query", path, "--json")
        (row,) = read_json(out)
        must(all(0 <= p <= 1 for p in row["probabilities"].values()), f"{row['probabilities']}")
        return row["label"], row["probabilities"], err

    def run_damaged(case: Case) -> Any:
        suffix = case.rng.choice(list(FORMATS))
        data = FORMATS[suffix](picture(case.rng.randrange(12), 2))
        for _ in range(case.rng.choice((1, 1, 2, 3))):
            edit = case.rng.choice([mutations.some_bytes, *EDITS.get(suffix, [])])
            case.note(f"{suffix} {edit.__name__}")
            try:
                data = edit(case.rng, data)
            except Exception:
                break  # the edit before has left nothing to change
        return answered(data, suffix)[0]

    def run_stored(case: Case) -> Any:
        """The same picture gets the same answer, is refused, or is noted."""
        label, (name, (suffix, make)) = case.rng.randrange(12), _in_turn(list(STORED.items()), case)
        case.note(name)
        values = picture(label, case.rng.randrange(2, 4))
        _, sound, _ = answered(FORMATS[".png"](values), ".png")
        found, probabilities, err = answered(make(values), suffix)
        apart = max(abs(sound[key] - probabilities[key]) for key in sound)
        must(apart <= TOLERANCE or "query" in err, f"{name}: another answer, unsaid ({apart:.3f})")
        return found

    def run_large(case: Case) -> Any:
        """A small file that is a large picture."""
        mode, width, height = _in_turn(LARGE, case)
        case.note(f"{mode} {width} x {height}")
        return answered(_large(mode, width, height), ".png")[0]

    return [
        Subject("pictures", "damaged pictures, 7 formats", run_damaged, 1800, 60),
        Subject("modes", "the same picture in other modes", run_stored, 120, len(STORED)),
        Subject("large", "small files of large pictures", run_large, 24, 1, 20.0, 1000, 4),
    ]


def _in_turn(choices: Sequence[T], case: Case) -> T:
    return choices[case.number % len(choices)]


def _saved(format: str, change: Callable[[np.ndarray], Any] = lambda a: a, **options: Any) -> Make:
    def make(values: np.ndarray) -> bytes:
        buffer, made = io.BytesIO(), change(values)
        image = made if isinstance(made, Image.Image) else Image.fromarray(made)
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return make


def _mode(mode: str) -> Callable[[np.ndarray], Image.Image]:
    return lambda values: Image.fromarray(values).convert(mode)


def _with_alpha(values: np.ndarray) -> Image.Image:
    return Image.merge("LA", (Image.fromarray(values), Image.new("L", values.shape[::-1], 255)))


FORMATS: dict[str, Make] = {
    ".png": _saved("PNG"),
    ".jpg": _saved("JPEG", quality=95),
    ".gif": _saved("GIF"),
    ".bmp": _saved("BMP"),
    ".pgm": _saved("PPM"),
    ".tif": _saved("TIFF"),
    ".webp": _saved("WEBP", lossless=True),
}
EDITS: dict[str, list[mutations.Edit]] = {
    ".png": [mutations.png_chunks, mutations.png_chunks, mutations.one_bit],
    ".tif": [mutations.tiff_entry, mutations.tiff_entry],
    ".gif": [mutations.one_bit],
    ".webp": [mutations.one_bit],
    ".jpg": [mutations.one_bit],
}
STORED: dict[str, tuple[str, Make]] = {
    "32-bit integers": (".tif", _saved("TIFF", lambda a: a.astype(np.int32))),
    "16 bits": (".png", _saved("PNG", lambda a: a.astype(np.uint16) * 257)),
    "12 bits in 16": (".png", _saved("PNG", lambda a: a.astype(np.uint16) * 16)),
    "12 bits in 16, TIFF": (".tif", _saved("TIFF", lambda a: a.astype(np.uint16) * 16)),
    "10 bits in 16": (".png", _saved("PNG", lambda a: a.astype(np.uint16) * 4)),
    "32-bit integers of 16 bits": (".tif", _saved("TIFF", lambda a: a.astype(np.int32) * 257)),
    "floats to 1": (".tif", _saved("TIFF", lambda a: (a / 255).astype(np.float32))),
    "floats to 255": (".tif", _saved("TIFF", lambda a: a.astype(np.float32))),
    "RGB": (".png", _saved("PNG", _mode("RGB"))),
    "RGBA": (".png", _saved("PNG", _mode("RGBA"))),
    "grey and alpha": (".png", _saved("PNG", _with_alpha)),
    "a palette": (".png", _saved("PNG", _mode("P"))),
    "CMYK": (".tif", _saved("TIFF", lambda a: Image.fromarray(a).convert("RGB").convert("CMYK"))),
    "YCbCr": (".tif", _saved("TIFF", _mode("YCbCr"))),
    "a big-endian TIFF": (".tif", _saved("TIFF", lambda a: a.astype(">u2") * 257)),
    "JPEG": (".jpg", FORMATS[".jpg"]),
    "GIF": (".gif", FORMATS[".gif"]),
    "WebP": (".webp", FORMATS[".webp"]),
    "BMP": (".bmp", FORMATS[".bmp"]),
    "PGM": (".pgm", FORMATS[".pgm"]),
}
LARGE = [
    *(("I;16", 9400, 9400), ("L", 9400, 9400), ("RGB", 9400, 9400), ("RGBA", 9400, 9400)),
    *(("L", 89_000_000, 1), ("L", 1, 60_000), ("I;16", 60_000, 1000), ("P", 9400, 9400)),
]


@functools.cache
def _large(mode: str, width: int, height: int) -> bytes:
    """Return a PNG of zeros, which takes a few hundred kB, without an image of that size in memory."""
    depth, colour, channels = {
        "L": (8, 0, 1),
        "I;16": (16, 0, 2),
        "RGB": (8, 2, 3),
        "RGBA": (8, 6, 4),
        "P": (8, 3, 1),
    }[mode]
    packer, line = zlib.compressobj(9), bytes(1 + width * channels)
    body = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = [(b"PLTE", bytes(768))] if mode == "P" else []
    return mutations.png([(b"IHDR", head), *palette, (b"IDAT", body), (b"IEND", b"")])
