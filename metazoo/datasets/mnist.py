"""MNIST: handwritten digits by LeCun, Cortes and Burges, read from the four published files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.download import find_or_fetch, read_whole
from metazoo.errors import DataError
from metazoo.images import decode
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples

# The checksums that torchvision checks.
MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
SIDE = 28
_LARGEST = 2**27  # largest accepted IDX file, in bytes; the largest of MNIST has 47 million
_UNSIGNED_BYTES = 8  # the type code of an IDX file


class MNIST(ClassDataset):
    """Handwritten digits, ink 1 on background 0, shape (1, size, size). A class is a digit.

    With `digits="split"`, train has the digits 0 to 4 of the training file, val the same digits of
    the test file, and test the digits 5 to 9 of both files. Ten digits are too few for three
    disjoint sets of five. With `digits="all"`, there is only a test split: all ten digits of the
    test file, for models trained on other data.

    `input_format` expects images as in the files, light ink on a dark background. Invert images of
    dark ink on white paper first.

    Raises DataError if a file is missing and cannot be downloaded, is truncated or is not an IDX
    file.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[
            str | None,
            "folder that holds mnist/ or its files  [default: $METAZOO_DATA, else download to the cache]",
        ] = None
        digits: Annotated[
            Literal["split", "all"], "split: train on 0-4, test on 5-9; all: test on all digits"
        ] = "split"
        size: Annotated[int, "height and width in pixels", options.Range(8, 112)] = SIDE
        url: Annotated[str, "where to download from"] = (
            "https://ossci-datasets.s3.amazonaws.com/mnist/"
        )

    config: Config
    local_options = ("root", "url")
    drawings = True
    licence = "CC BY-SA 3.0 (as commonly stated)"

    @property
    def input_format(self) -> dict[str, Any]:
        return {"size": self.config.size, "channels": 1, "invert": False}

    def load(self) -> dict[str, Examples]:
        small = self._read("t10k")
        if self.config.digits == "all":
            return {"test": self._examples([small], range(10), "test")}
        large = self._read("train")
        return {
            "train": self._examples([large], range(5), "train"),
            "val": self._examples([small], range(5), "val"),
            "test": self._examples([large, small], range(5, 10), "test"),
        }

    def _read(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        names = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
        paths = [
            find_or_fetch(self.config.root, "mnist", name, self.config.url, MD5[name])
            for name in names
        ]
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if (
            images.shape[1:] != (SIDE, SIDE)
            or len(images) != len(labels)
            or labels.max(initial=0) > 9
        ):
            raise DataError(
                f"{paths[0]} {images.shape} and {paths[1]} {labels.shape} are not the images and "
                "labels of digits",
                "remove both files, and get them again",
            )
        return images, labels

    def _examples(
        self, files: list[tuple[np.ndarray, np.ndarray]], digits: range, split: str
    ) -> Examples:
        title = f"MNIST ({self.config.digits}, {split})"
        each = [
            np.concatenate([images[labels == digit] for images, labels in files])
            for digit in digits
        ]
        x = torch.from_numpy(np.concatenate(each)).unsqueeze(1)
        if self.config.size != SIDE:
            x = torch.stack(
                [
                    decode(Image.fromarray(image.numpy()), **self.input_format, name=title)
                    for (image,) in x
                ]
            )
        return Examples(
            x, tuple(len(images) for images in each), tuple(str(digit) for digit in digits), title
        )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the unsigned bytes of an IDX file, gzipped or not, as an array.

    Raises DataError if the file is truncated, too long, or not an IDX file of unsigned bytes with
    this number of dimensions.
    """
    hint = "remove it, and get it again"
    data = read_whole(path, _LARGEST)
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]):
        raise DataError(f"{path} is not an IDX file of bytes in {dimensions} dimensions", hint)
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4"))
    if 0 in shape:
        raise DataError(f"{path} is empty: its shape is {shape}", hint)
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{path} has {len(data) - start} bytes of data, but {shape} needs {math.prod(shape)}",
            hint,
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"mnist": MNIST}
