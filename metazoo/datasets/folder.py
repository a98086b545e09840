"""Anybody's images: one folder a class."""

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

_LAYOUT_HINT = "a tree is class/file, or split/class/file with splits called train, val and test"
_SUFFIX_HINT = f"images are files that end in {', '.join(sorted(SUFFIXES))}"

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Folder(ClassDataset):
    """Images in a tree `split/class/file` or `class/file`, a directory or a .zip, shape (channels, size, size).

    The splits of the first kind are called train, val (or valid, or validation) and test; any may be missing, but where
    val is, it is carved from train. The second kind is divided by class into all three. Carving and dividing go by
    `seed` and the names of the classes alone (see `choose`). One folder around the tree does not matter. Files that
    are no images by their suffix are left out; images are not cached, but decoded anew in every process.

    The default `size` lies between the 32 of tiny images and the 84 of miniImageNet.

    Raises DataError, naming the file or class, where the tree has another form, a class has no images, two classes
    differ only in case, or an image is damaged.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[str, "the folder, or a .zip of it"] = ""
        size: Annotated[int, "height and width in pixels", options.Range(8, 512)] = 64
        channels: Annotated[Literal["rgb", "grey"], "colour, or grey"] = "rgb"
        invert: Annotated[bool, "turn dark on light into light on dark"] = False
        val_fraction: Annotated[
            float, "part of the classes to validate on, if there is no val", options.Range(0, 1)
        ] = 0.2
        test_fraction: Annotated[
            float, "part of the classes to test on, if there are no splits", options.Range(0, 1)
        ] = 0.2
        seed: Annotated[int, "seed of the choice of these classes", options.Range(0)] = 0

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
                "the data set 'folder' needs to know which folder", "give it with --data-root"
            )
        with open_tree(Path(self.config.root).expanduser()) as tree:
            splits = self._divide(_classes_by_split(tree))
            yield {
                name: self._stream(tree, name, splits[name])
                for name in ("train", "val", "test")
                if name in splits
            }

    def _divide(self, found: dict[str, Classes]) -> dict[str, Classes]:
        """Return the classes of each split: as they were found, or chosen where the tree leaves that to us."""
        pool = found.get("", found.get("train"))
        if pool is None or "val" in found:
            return found
        c = self.config
        val, test, train = choose(
            pool, (c.val_fraction, c.test_fraction if "" in found else 0.0), c.seed
        )
        if not train:
            several = "classes" if len(pool) > 1 else f"class ('{next(iter(pool), '')}')"
            raise DataError(
                f"{c.root} has {len(pool)} {several} to choose from, and none is left for training",
                "add classes, or make --data-val-fraction and --data-test-fraction smaller",
            )
        chosen = {"train": train, "val": val, "test": test}
        return {
            **found,
            **{
                split: {name: pool[name] for name in names}
                for split, names in chosen.items()
                if names
            },
        }

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
                sha.update(
                    f"{'/'.join(file)}\0{tree.stamp(file)}\0".encode("utf-8", "surrogateescape")
                )
            return sha.hexdigest()

        return Stream(
            read,
            tuple(map(len, classes.values())),
            tuple(classes),
            f"{tree.path} ({split})",
            digest,
        )


def choose(names: Iterable[str], fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Return as many groups of these names as there are fractions, and then the group of those left over.

    Names are ranked by the sha256 of "seed:name" and taken in that order, `fraction` of all a group, rounded, but at least one
    unless the fraction is 0; so the choice is a pure function of names and seed. Each group is sorted.
    """
    ranked = sorted(
        names,
        key=lambda name: hashlib.sha256(
            f"{seed}:{name}".encode("utf-8", "surrogateescape")
        ).digest(),
    )
    sizes = [max(1, round(fraction * len(ranked))) if fraction else 0 for fraction in fractions]
    ends = [0, *itertools.accumulate(sizes), len(ranked)]
    return [sorted(ranked[start:end]) for start, end in itertools.pairwise(ends)]


def support_images(path: Path) -> list[tuple[str, list[Path]]]:
    """Return the classes in a directory of one folder a class, and the images of each, both in sorted order.

    Raises DataError where it is no such directory, or a class has no images.
    """
    if path.is_file():
        raise DataError(f"{path} is a file", "give a folder that has one folder of images a class")
    with open_tree(path) as tree:
        found = _classes_by_split(tree)
    if "" not in found:
        split = next(iter(found))
        raise DataError(
            f"{path} holds the splits of a data set", f"give one of them: {path / split}"
        )
    return [(name, [path.joinpath(*file) for file in files]) for name, files in found[""].items()]


def query_images(path: Path) -> list[Path]:
    """Return all images below a directory, in sorted order, or the one image that the path names.

    Raises DataError where there is none.
    """
    if path.is_file():
        if not is_image(path.name):
            raise DataError(f"{path} is no image by its name", _SUFFIX_HINT)
        return [path]
    with open_tree(path) as tree:
        return [path.joinpath(*file) for file in _images(tree)]


def _images(tree: Tree) -> list[Parts]:
    images = [parts for parts in tree.files if is_image(parts[-1])]
    if not images:
        what = (
            f"none of the {len(tree.files)} files in {tree.path} is an image"
            if tree.files
            else f"{tree.path} is empty"
        )
        packed = (INDEX,) in tree.files
        raise DataError(
            what,
            "it was packed by `metazoo data pack`: --dataset packed reads it"
            if packed
            else _SUFFIX_HINT,
        )
    return images


def _classes_by_split(tree: Tree) -> dict[str, Classes]:
    """Return the images of each class of each split; where the tree has no splits, of the split called ""."""
    images = _images(tree)
    depth = 0  # of folders around the tree
    while len({p[depth] for p in images}) == 1 and all(
        len(p) > depth + 2 and not _is_split(p[depth]) for p in images
    ):
        depth += 1
    with_splits = any(_is_split(p[depth]) and len(p) == depth + 3 for p in images)
    found: dict[str, Classes] = {}
    spelt: dict[str, str] = {}
    for parts in images:
        *folders, _ = parts[depth:]
        if len(folders) != 1 + with_splits or (with_splits and not _is_split(folders[0])):
            raise DataError(
                f"{tree.name(parts)} does not lie in the folder of a class", _LAYOUT_HINT
            )
        split = SPLIT_NAMES[folders[0].lower()] if with_splits else ""
        if spelt.setdefault(split, folders[0]) != folders[0] and with_splits:
            raise DataError(
                f"{tree.path} has both '{spelt[split]}' and '{folders[0]}', which mean the same split",
                "merge them",
            )
        found.setdefault(split, {}).setdefault(folders[-1], []).append(parts)
    _check_folders(tree, images, images[0][:depth], with_splits)
    _check_names(tree, found)
    return found


def _check_folders(tree: Tree, images: list[Parts], around: Parts, with_splits: bool) -> None:
    """Raise DataError where a split or class is there as a folder, but has no images."""
    bearing = {parts[:depth] for parts in images for depth in range(len(parts))}
    for folder in sorted(tree.folders - bearing):
        inner = folder[len(around) :]
        is_ours = folder[: len(around)] == around and (not with_splits or _is_split(inner[0]))
        if is_ours and len(inner) <= 1 + with_splits:
            raise DataError(
                f"{tree.name(folder)} has no images",
                f"add some, or remove the folder; {_SUFFIX_HINT}",
            )


def _check_names(tree: Tree, found: dict[str, Classes]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for split, classes in found.items():
        for name in classes:
            other_split, other = seen.setdefault(name.casefold(), (split, name))
            if other_split != split:
                raise DataError(
                    f"class '{name}' of {tree.path} is in '{other_split}' and in '{split}'",
                    "splits have no class in common; put all images into one class/file tree, which is then divided by class",
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
