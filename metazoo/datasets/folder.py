"""Images of your own, with one folder for each class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.class_splits import complete_splits
from metazoo.datasets.image_stream import image_stream
from metazoo.errors import OptionError
from metazoo.image_folders import classes_by_split
from metazoo.io.archives import open_tree
from metazoo.io.files import expand_user
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples, Stream


class Folder(ClassDataset):
    """Images in folders `split/class/file` or `class/file`, shape (channels, size, size).

    The root may be a folder or a .zip archive, and may hold the tree inside other folders.

    In the first layout, the splits are called train, val (or valid, or validation) and test, and
    any may be missing. If val is missing, some classes of train become val. In the second layout,
    the classes are divided into all three splits. The choice of classes depends only on `seed` and
    their names (see `metazoo.datasets.class_splits`).

    Files without the suffix of an image are left out, with a warning unless they are texts or
    tables. Images are not cached: every process decodes them. The default `size` lies between that
    of tiny images (32) and that of miniImageNet (84).

    Raises DataError if the layout is another one, a class has no images, two classes have the same
    name, or an image is damaged. The message names the file or class.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[str, "the folder, or a .zip of it"] = ""
        size: Annotated[int, "height and width in pixels", options.Range(8, 512)] = 64
        channels: Annotated[Literal["rgb", "grey"], "colour or grey images"] = "rgb"
        invert: Annotated[bool, "invert the images: dark on light becomes light on dark"] = False
        crop: Annotated[
            float | None,
            "take the central square with this share of the short side  [default: the whole image, stretched]",
            options.Range(0.01, 1),
        ] = None
        val_fraction: Annotated[
            float,
            "fraction of the classes for validation, if there is no split val",
            options.Range(0, 1),
        ] = 0.2
        test_fraction: Annotated[
            float, "fraction of the classes for test, if there are no splits", options.Range(0, 1)
        ] = 0.2
        seed: Annotated[int, "seed for choosing these classes", options.Range(0)] = 0

    config: Config
    local_options = ("root",)
    licence = "the user's own"

    @property
    def input_format(self) -> dict[str, Any]:
        crop = {} if self.config.crop is None else {"crop": self.config.crop}
        return {
            "size": self.config.size,
            "channels": 3 if self.config.channels == "rgb" else 1,
            "invert": self.config.invert,
            **crop,
        }

    @classmethod
    def reading_options(cls, input_format: Mapping[str, Any]) -> dict[str, Any]:
        if "channels" not in input_format:  # those of another kind of data
            return {}
        channels = "rgb" if input_format["channels"] == 3 else "grey"
        return {**input_format, "channels": channels}

    @classmethod
    def options_for(cls, input_format: Mapping[str, Any]) -> dict[str, Any]:
        # Nothing is trained, so every class is a test class if there are no splits.
        return {**cls.reading_options(input_format), "val_fraction": 0.0, "test_fraction": 1.0}

    def load(self) -> dict[str, Examples]:
        with self.streams() as streams:
            return {name: stream.examples() for name, stream in streams.items()}

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        if not self.config.root:
            raise OptionError(
                "the data set 'folder' needs a folder of images", "name it with --data-root"
            )
        with open_tree(expand_user(self.config.root, "--data-root")) as tree:
            config = self.config
            splits = complete_splits(
                classes_by_split(tree),
                (config.val_fraction, config.test_fraction),
                config.seed,
                config.root,
            )
            yield {
                split: image_stream(tree, split, splits[split], self.input_format)
                for split in splits
            }


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"folder": Folder}
