"""Images of your own, with one folder for each class."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.packed.format import INDEX
from metazoo.errors import DataError, OptionError
from metazoo.images import SUFFIXES, decode, is_image
from metazoo.io.archives import Parts, Tree, open_tree
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.examples import Examples, Stream

Classes = dict[str, list[Parts]]  # the images of each class

_LAYOUT_HINT = "the layout is class/file, or split/class/file with splits train, val and test"
_SUFFIX_HINT = f"names of images end in {', '.join(sorted(SUFFIXES))}"

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NO_SPLIT = ""  # the split of all classes in a tree without splits


class Folder(ClassDataset):
    """Images in folders `split/class/file` or `class/file`, shape (channels, size, size).

    The root may be a folder or a .zip archive, and may hold the tree inside other folders.

    In the first layout, the splits are called train, val (or valid, or validation) and test, and
    any may be missing. If val is missing, some classes of train become val. In the second layout,
    the classes are divided into all three splits. The choice of classes depends only on `seed` and
    their names (see `divide`).

    Files without the suffix of an image are ignored. Images are not cached: every process decodes
    them. The default `size` lies between that of tiny images (32) and that of miniImageNet (84).

    Raises DataError if the layout is another one, a class has no images, two classes differ only in
    case, or an image is damaged. The message names the file or class.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[str, "the folder, or a .zip of it"] = ""
        size: Annotated[int, "height and width in pixels", options.Range(8, 512)] = 64
        channels: Annotated[Literal["rgb", "grey"], "colour or grey images"] = "rgb"
        invert: Annotated[bool, "invert the images: dark on light becomes light on dark"] = False
        val_fraction: Annotated[
            float, "fraction of the classes for validation, if there is no val", options.Range(0, 1)
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
        return {
            "size": self.config.size,
            "channels": 3 if self.config.channels == "rgb" else 1,
            "invert": self.config.invert,
        }

    def load(self) -> dict[str, Examples]:
        with self.streams() as streams:
            return {name: stream.examples() for name, stream in streams.items()}

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        if not self.config.root:
            raise OptionError(
                "the data set 'folder' needs a folder of images", "name it with --data-root"
            )
        with open_tree(Path(self.config.root).expanduser()) as tree:
            splits = self._divide(_classes_by_split(tree))
            yield {
                name: self._stream(tree, name, splits[name])
                for name in ("train", "val", "test")
                if name in splits
            }

    def _divide(self, found: dict[str, Classes]) -> dict[str, Classes]:
        """Return the classes of each split, after choosing those of the missing splits."""
        pool = found.get(NO_SPLIT, found.get("train"))
        if pool is None or "val" in found:
            return found
        config = self.config
        test_fraction = config.test_fraction if NO_SPLIT in found else 0.0
        val, test, train = divide(pool, (config.val_fraction, test_fraction), config.seed)
        if not train:
            classes = "classes" if len(pool) > 1 else f"class ('{next(iter(pool), '')}')"
            raise DataError(
                f"{config.root} has only {len(pool)} {classes}, which leaves none for training",
                "add classes, or make --data-val-fraction and --data-test-fraction smaller",
            )
        splits = dict(found)
        for split, names in (("train", train), ("val", val), ("test", test)):
            if names:
                splits[split] = {name: pool[name] for name in names}
        return splits

    def _stream(self, tree: Tree, split: str, classes: Classes) -> Stream:
        files = [file for class_files in classes.values() for file in class_files]

        def read(first: int, last: int) -> Tensor:
            decoded = (
                decode(tree.read(file), **self.input_format, name=tree.name(file))
                for file in files[first:last]
            )
            return torch.stack(list(decoded))

        def digest() -> str:
            sha = hashlib.sha256()
            for file in files:
                line = f"{'/'.join(file)}\0{tree.stamp(file)}\0"
                sha.update(line.encode("utf-8", "surrogateescape"))
            return sha.hexdigest()

        counts = tuple(map(len, classes.values()))
        return Stream(read, counts, tuple(classes), f"{tree.path} ({split})", digest)


def divide(names: Iterable[str], fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Divide names into one group for each fraction, and a last group of those left over.

    Names are taken in the order of the sha256 of "seed:name", so the division depends only on the
    names and the seed. A group has its fraction of all names, rounded, and at least one name unless
    its fraction is 0. Each group is sorted.
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()

    ranked = sorted(names, key=rank)
    sizes = [max(1, round(fraction * len(ranked))) if fraction else 0 for fraction in fractions]
    ends = [0, *itertools.accumulate(sizes), len(ranked)]
    return [sorted(ranked[start:end]) for start, end in itertools.pairwise(ends)]


def support_images(path: Path) -> list[tuple[str, list[Path]]]:
    """Return the classes below a folder and the images of each, in sorted order.

    Raises DataError if the path is not a folder with one folder of images for each class.
    """
    if path.is_file():
        raise DataError(
            f"{path} is a file", "give a folder that has one folder of images for each class"
        )
    with open_tree(path) as tree:
        found = _classes_by_split(tree)
    if NO_SPLIT not in found:
        split = next(iter(found))
        raise DataError(
            f"{path} holds the splits of a data set", f"give one of them: {path / split}"
        )
    return [
        (name, [path.joinpath(*file) for file in files]) for name, files in found[NO_SPLIT].items()
    ]


def query_images(path: Path) -> list[Path]:
    """Return all images below a folder in sorted order, or the one image that the path names.

    Raises DataError if there are no images.
    """
    if path.is_file():
        if not is_image(path.name):
            raise DataError(f"{path} does not have the suffix of an image", _SUFFIX_HINT)
        return [path]
    with open_tree(path) as tree:
        return [path.joinpath(*file) for file in _images(tree)]


def _images(tree: Tree) -> list[Parts]:
    images = [parts for parts in tree.files if is_image(parts[-1])]
    if images:
        return images
    if (INDEX,) in tree.files:
        hint = "`metazoo data pack` wrote this folder; read it with --dataset packed"
    else:
        hint = _SUFFIX_HINT
    if not tree.files:
        raise DataError(f"{tree.path} is empty", hint)
    raise DataError(f"none of the {len(tree.files)} files in {tree.path} is an image", hint)


def _classes_by_split(tree: Tree) -> dict[str, Classes]:
    """Return the images of each class of each split, or of `NO_SPLIT` if there are no splits."""
    images = _images(tree)
    depth = _depth_of_tree(images)
    with_splits = any(_is_split(p[depth]) and len(p) == depth + 3 for p in images)
    found: dict[str, Classes] = {}
    spelling: dict[str, str] = {}
    for parts in images:
        *folders, _ = parts[depth:]
        if len(folders) != 1 + with_splits or (with_splits and not _is_split(folders[0])):
            raise DataError(f"{tree.name(parts)} is not in the folder of a class", _LAYOUT_HINT)
        split = SPLIT_NAMES[folders[0].lower()] if with_splits else NO_SPLIT
        if with_splits and spelling.setdefault(split, folders[0]) != folders[0]:
            raise DataError(
                f"'{spelling[split]}' and '{folders[0]}' in {tree.path} are the same split",
                "merge them",
            )
        found.setdefault(split, {}).setdefault(folders[-1], []).append(parts)
    _check_folders(tree, images, images[0][:depth], with_splits)
    _check_names(tree, found)
    return found


def _depth_of_tree(images: list[Parts]) -> int:
    """Return how many folders lie around the tree of splits or classes."""
    depth = 0
    while len({p[depth] for p in images}) == 1 and all(
        len(p) > depth + 2 and not _is_split(p[depth]) for p in images
    ):
        depth += 1
    return depth


def _check_folders(tree: Tree, images: list[Parts], around: Parts, with_splits: bool) -> None:
    """Raise DataError if the folder of a split or class has no images."""
    with_images = {parts[:depth] for parts in images for depth in range(len(parts))}
    for folder in sorted(tree.folders - with_images):
        inner = folder[len(around) :]
        in_tree = folder[: len(around)] == around and (not with_splits or _is_split(inner[0]))
        if in_tree and len(inner) <= 1 + with_splits:
            raise DataError(
                f"{tree.name(folder)} has no images",
                f"add some, or remove the folder; {_SUFFIX_HINT}",
            )


def _check_names(tree: Tree, found: dict[str, Classes]) -> None:
    """Raise DataError if two splits share a class, or two classes differ only in case."""
    seen: dict[str, tuple[str, str]] = {}
    for split, classes in found.items():
        for name in classes:
            other_split, other = seen.setdefault(name.casefold(), (split, name))
            if other_split != split:
                raise DataError(
                    f"class '{name}' of {tree.path} is in '{other_split}' and in '{split}'",
                    "splits must not share classes; to divide by class, put all images into "
                    "class/file",
                )
            if other != name:
                raise DataError(
                    f"classes '{other}' and '{name}' of {tree.path} differ only in case",
                    "merge or rename them",
                )


def _is_split(name: str) -> bool:
    return name.lower() in SPLIT_NAMES


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"folder": Folder}
