"""What data sets of intents have in common: texts, with classes divided by published folds.

The folds are those of Dopierre et al. 2021 (arXiv:2105.12995). Their protocol draws 5-way tasks with
1 or 5 shots at random, so there are no fixed tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from metazoo import options
from metazoo.base.dataset import ClassDataset
from metazoo.datasets.raw_examples import Length, Tokenizer, raw_stream
from metazoo.errors import DataError
from metazoo.quoting import printable
from metazoo.tasks.examples import Examples
from metazoo.texts import NGRAMS

Labelled = list[tuple[str, str]]  # texts, each with its intent

SPLITS = {"t": "train", "v": "val", "s": "test"}  # the letters of `intent_folds`


class Intents(ClassDataset):
    """A data set of texts of intents. A subclass sets `folds` and implements `texts`."""

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[
            str | None,
            "folder that holds the files  [default: $METAZOO_DATA, else download to the cache]",
        ] = None
        fold: Annotated[
            int, "which of the published divisions of the classes", options.Range(1, 5)
        ] = 1
        tokenizer: Tokenizer = NGRAMS
        length: Length = 128

    config: Config
    folds: ClassVar[Mapping[str, str]]  # the letters of each class, one for each fold
    local_options = ("root", "url")
    recipe = {"backbone": "bag", "lr": 0.01, "steps": 300}

    @property
    def input_format(self) -> dict[str, Any]:
        return {"tokenizer": self.config.tokenizer, "length": self.config.length}

    def texts(self) -> dict[str, list[str]]:
        """Return the texts of every class."""
        raise NotImplementedError

    def load(self) -> dict[str, Examples]:
        texts = self.texts()
        classes: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS.values()}
        for name in sorted(texts):
            classes[SPLITS[self.folds[name][self.config.fold - 1]]][name] = texts[name]
        title = f"{type(self).__name__} (fold {self.config.fold}"
        return {
            split: raw_stream(found, self.input_format, f"{title}, {split})").examples()
            for split, found in classes.items()
        }


def grouped(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the texts of each intent."""
    texts: dict[str, list[str]] = {}
    for text, intent in rows:
        texts.setdefault(intent, []).append(text)
    return texts


def check_intents(path: Path, rows: Labelled, known: Iterable[str]) -> None:
    """Raise DataError unless a file has texts of each of the known intents, and of no others."""
    for intent in sorted({*known} ^ {intent for _, intent in rows}):
        what = "has no text of" if intent in known else "has texts of the unknown intent"
        raise DataError(f"{path} {what} '{printable(intent)}'", "get it again from its publisher")
