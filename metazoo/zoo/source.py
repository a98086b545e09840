"""A model that was found, before it is built."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metazoo.base.algorithm import Algorithm
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.errors import MetazooError
from metazoo.io.files import is_same_place
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.weights import build_model


@dataclass(frozen=True)
class Source:
    """A model that was found: its name, the path and the bytes of its weights, and its blueprint.

    The bytes are read once, because a file or an address may hold other weights later.
    """

    name: str
    weights: Path
    contents: bytes = field(repr=False)
    blueprint: Blueprint

    @property
    def sha256(self) -> str:
        """The sha256 of the weights."""
        return hashlib.sha256(self.contents).hexdigest()

    def model(self, **changes: Any) -> Algorithm:
        """Return the model in eval mode; `changes` override options of the algorithm."""
        return build_model(self.blueprint, self.contents, str(self.weights), **changes)

    def changed(self, data: Dataset) -> str | None:
        """Return how data differ from those the model was trained on, in words, or None.

        None if the options differ, or if the data are in another place and the recorded place still
        exists: that is intended.
        """

        def same(name: str, value: Any) -> bool:
            here = getattr(data.config, name, None)
            if name not in data.local_options or value is None:
                return here == value
            return not Path(value).exists() or (here is not None and is_same_place(here, value))

        recorded = self.blueprint.dataset_options
        return self.blueprint.changed(data) if all(map(same, recorded, recorded.values())) else None

    def trained_on(self, data: Dataset) -> frozenset[str]:
        """Return the names of the classes the model was trained on; empty if they cannot be found.

        A card does not say where its data are, and a run's data may have moved. They are looked
        for at the place of `data`, which is the same data set, perhaps with other options. Data with
        another number of classes are not those. Classes of a model that training started from are
        not included.
        """
        here = {
            name: getattr(data.config, name)
            for name in data.local_options
            if hasattr(data.config, name)
        }
        recorded = self.blueprint.dataset_options
        unrecorded = {name: place for name, place in here.items() if recorded.get(name) is None}
        for place in (unrecorded, here):  # a recorded path may be stale
            with contextlib.suppress(MetazooError):
                theirs = self.blueprint.data(**place)
                known = data if theirs.config == data.config else theirs
                if not isinstance(known, ClassDataset):
                    break
                # A stream that has not been read, as of `folder`, names its classes already.
                with known.streams() as streams:
                    names = streams["train"].names if "train" in streams else ()
                    same = len(names) == self.blueprint.spec.classes
                    return frozenset(names) if same else frozenset()
        return frozenset()
