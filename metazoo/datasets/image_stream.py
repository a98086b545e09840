"""The images of classes as a stream that decodes them when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metazoo.image_folders import Classes
from metazoo.images import decode
from metazoo.io.archives import Tree
from metazoo.tasks.examples import Stream


def image_stream(
    tree: Tree, title: str, classes: Classes, input_format: Mapping[str, Any]
) -> Stream:
    """Return the images of classes in a tree. Errors in reading one name its file.

    The digest is of the files' names, sizes and dates, since all images may not fit in memory.
    """
    files = [file for class_files in classes.values() for file in class_files]

    def read(first: int, last: int) -> Tensor:
        decoded = (
            decode(tree.read(file), **input_format, name=tree.name(file))
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
    return Stream(read, counts, tuple(classes), f"{tree.path} ({title})", digest)
