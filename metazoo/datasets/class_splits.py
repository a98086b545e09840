"""The division of classes into splits for training, validation and test."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from metazoo.errors import DataError
from metazoo.image_folders import NO_SPLIT

V = TypeVar("V")


def complete_splits(
    found: Mapping[str, Mapping[str, V]], fractions: tuple[float, float], seed: int, where: str
) -> dict[str, dict[str, V]]:
    """Return the classes of each split, after choosing those of the splits that are missing.

    Without any splits (`found` has only NO_SPLIT), the classes are divided into all three. If only
    "val" is missing, it gets some of "train".

    Args:
        found: what belongs to each class, by split.
        fractions: the shares of the classes for validation and test.
        seed: of `divide`.
        where: the data, for the message if no class is left for training.
    """
    splits = {split: dict(classes) for split, classes in found.items() if split != NO_SPLIT}
    pool = found.get(NO_SPLIT, splits.pop("train", None) if "val" not in found else None)
    if pool is not None:
        shares = fractions[0], fractions[1] if NO_SPLIT in found else 0.0
        val, test, train = divide(pool, shares, seed)
        if not train and sum(shares) < 1:
            classes = "classes" if len(pool) > 1 else f"class ('{next(iter(pool), '')}')"
            raise DataError(
                f"{where} has only {len(pool)} {classes}, which leaves none for training",
                "add classes, or make --data-val-fraction and --data-test-fraction smaller",
            )
        chosen = {"train": train, "val": val, "test": test}
        splits |= {split: {c: pool[c] for c in names} for split, names in chosen.items() if names}
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


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
