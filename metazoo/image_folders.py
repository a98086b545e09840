"""Folders of images: one folder for each class, perhaps inside a folder for each split."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path

from metazoo.errors import DataError, DataWarning
from metazoo.images import is_image, suffixes
from metazoo.io.archives import Parts, Tree, open_tree
from metazoo.quoting import printable

Classes = dict[str, list[Parts]]  # the images of each class

_LAYOUT_HINT = "the layout is class/file, or split/class/file with splits train, val and test"

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NO_SPLIT = ""  # the split of all classes in a tree without splits
PACKED_INDEX = "index.json"  # in a folder that `metazoo data pack` wrote

# What data sets hold beside images: notes, lists, and what systems leave behind.
_TEXTS = (
    ".csv",
    ".htm",
    ".html",
    ".json",
    ".jsonl",
    ".md",
    ".rst",
    ".tsv",
    ".txt",
    ".xml",
    ".yaml",
)
_NOT_IMAGES = frozenset({*_TEXTS, ".db", ".ini", ".log", ".py", ".yml"})
_NOTES = frozenset({"copying", "licence", "license", "makefile", "readme"})
_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"})
_NAMED = 3  # files that a warning names


def support_images(path: Path) -> list[tuple[str, list[Path]]]:
    """Return the classes below a folder and the images of each, in sorted order.

    Raises DataError if the path is not a folder with one folder of images for each class.
    """
    if path.is_file():
        raise DataError(
            f"{path} is a file", "give a folder that has one folder of images for each class"
        )
    with open_tree(path) as tree:
        found = classes_by_split(tree)
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
            raise DataError(
                f"{path} does not have the suffix of an image", _suffix_hint([path.name])
            )
        return [path]
    with open_tree(path) as tree:
        return [path.joinpath(*file) for file in _images(tree)]


def _images(tree: Tree) -> list[Parts]:
    images = [parts for parts in tree.files if is_image(parts[-1])]
    if images:
        _warn_of_left_out(tree)
        return images
    if (PACKED_INDEX,) in tree.files:
        hint = "`metazoo data pack` wrote this folder; read it with --dataset packed"
    else:
        hint = _suffix_hint([parts[-1] for parts in tree.files])
    if not tree.files:
        raise DataError(f"{tree.path} is empty", hint)
    raise DataError(f"none of the {len(tree.files)} files in {tree.path} is an image", hint)


def _warn_of_left_out(tree: Tree) -> None:
    """Warn of files that may be images, but do not have the suffix of one that can be read."""
    left_out = [parts for parts in tree.files if not _is_known(parts[-1])]
    if not left_out:
        return
    count = "1 file" if len(left_out) == 1 else f"{len(left_out)} files"
    more = ", ..." if len(left_out) > _NAMED else ""
    named = ", ".join("/".join(parts) for parts in left_out[:_NAMED])
    warnings.warn(
        f"{count} in {tree.path} left out: {printable(named)}{more}\n"
        f"  hint: {_suffix_hint([parts[-1] for parts in left_out])}",
        DataWarning,
        stacklevel=2,
    )


def _is_known(name: str) -> bool:
    """Return whether a file is an image that can be read, or certainly something else."""
    path = Path(name.lower())
    return is_image(name) or path.suffix in _NOT_IMAGES or (not path.suffix and path.name in _NOTES)


def _suffix_hint(names: list[str]) -> str:
    """Return what to do with files that do not have the suffix of an image."""
    found = {Path(name).suffix.lower() for name in names}
    hints = []
    if found & {".heic", ".heif"}:
        hints.append("convert .heic to JPEG, for example with `heif-convert photo.heic photo.jpg`")
    if found & _ARCHIVES:
        hints.append("unpack archives first")
    return "; ".join([*hints, f"names of images end in {', '.join(sorted(suffixes()))}"])


def classes_by_split(tree: Tree) -> dict[str, Classes]:
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
                f"add some, or remove the folder; {_suffix_hint([])}",
            )


def _check_names(tree: Tree, found: dict[str, Classes]) -> None:
    """Raise DataError if two classes have the same name, or one is in two splits in any case."""
    seen: dict[str, str] = {}
    splits: dict[str, str] = {}
    for split, classes in found.items():
        for name in classes:
            # Systems write an accented letter as one character or as two, which look the same.
            same = unicodedata.normalize("NFC", name)
            other = seen.setdefault(same, name)
            other_split = splits.setdefault(same.casefold(), split)
            if other_split != split:
                raise DataError(
                    f"class '{printable(name)}' of {tree.path} is in '{other_split}' and in '{split}'",
                    "splits must not share classes; to divide by class, put all images into "
                    "class/file",
                )
            if other != name:
                raise DataError(
                    f"two classes of {tree.path} are named '{printable(name)}', in different Unicode forms",
                    "merge or rename them",
                )
    _warn_of_cases(tree, [name for classes in found.values() for name in classes])


def _warn_of_cases(tree: Tree, names: list[str]) -> None:
    """Warn of classes whose names differ only in case."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(name.casefold(), name), name) for name in names]
    if alike := [printable(f"'{one}' and '{other}'") for one, other in pairs if one != other]:
        more = ", ..." if len(alike) > _NAMED else ""
        warnings.warn(
            f"classes of {tree.path} differ only in case: {', '.join(alike[:_NAMED])}{more}\n"
            "  hint: each counts as a class of its own; merge them if they are one",
            DataWarning,
            stacklevel=2,
        )


def _is_split(name: str) -> bool:
    return name.lower() in SPLIT_NAMES
