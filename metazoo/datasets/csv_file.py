"""Examples of your own in a table: texts, names of image files, or numbers, with a label column."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.class_splits import complete_splits
from metazoo.datasets.folder import Folder
from metazoo.datasets.intents import Intents
from metazoo.datasets.raw_examples import Length, Tokenizer, raw_stream
from metazoo.errors import DataError, DataWarning, OptionError
from metazoo.image_folders import NO_SPLIT, SPLIT_NAMES
from metazoo.io.files import expand_user
from metazoo.plugins.marker import hookimpl
from metazoo.quoting import printable
from metazoo.tables import Columns, Example, Kind, Row, Table, open_table
from metazoo.tasks.examples import Examples, Stream
from metazoo.texts import NGRAMS

Classes = dict[str, list[Example]]

# The options that matter for each kind of examples, and the training options that suit it.
OPTIONS: Mapping[Kind, tuple[str, ...]] = {
    "text": ("tokenizer", "length"),
    "image": ("size", "channels", "invert", "crop"),
    "numbers": (),
}
RECIPES: Mapping[Kind, Mapping[str, Any]] = {
    "text": Intents.recipe,
    "image": {"backbone": "conv4"},
    "numbers": {"backbone": "mlp"},
}
WORDS = {"text": "texts", "image": "images", "numbers": "numbers"}


class Csv(ClassDataset):
    """Examples in a .csv, .tsv or .jsonl file: texts, names of image files, or columns of numbers.

    A column holds the labels, which are the classes. Columns that are not named are guessed and
    said (see `metazoo.tables`). Names of image files are relative to the folder of the table.
    Rows without a label are left out, with a warning.

    With `split`, a column says "train", "val" or "test" for each row; a class must be in one split
    only, and a missing val gets some classes of train. Without it, the classes are divided into all
    three splits (see `metazoo.datasets.class_splits`).

    Texts are read as `tokenizer` and `length` say, images as `size`, `channels`, `invert` and
    `crop` do. Rows of numbers are float32 examples as they are.

    Raises DataError, with the line, if the table is damaged, and OptionError for an option that is
    for another kind of examples.
    """

    @dataclass(frozen=True)
    class Config(Folder.Config):
        root: Annotated[str, "the table: .csv, .tsv or .jsonl, perhaps packed as .gz"] = ""
        label: Annotated[str | None, "column of the labels  [default: guessed by its name]"] = None
        text: Annotated[str | None, "column of texts  [default: guessed]"] = None
        path: Annotated[str | None, "column of the names of image files  [default: guessed]"] = None
        split: Annotated[str | None, "column of the splits  [default: the classes are divided]"] = (
            None
        )
        tokenizer: Tokenizer = NGRAMS
        length: Length = 128

    config: Config
    local_options = ("root",)
    licence = "the user's own"

    @classmethod
    def reading_options(cls, input_format: Mapping[str, Any]) -> dict[str, Any]:
        of_images = Folder.reading_options(input_format)
        return of_images or super().reading_options(input_format)

    @classmethod
    def options_for(cls, input_format: Mapping[str, Any]) -> dict[str, Any]:
        # Nothing is trained, so every class is a test class if there are no splits.
        return {**cls.reading_options(input_format), "val_fraction": 0.0, "test_fraction": 1.0}

    def training_defaults(self) -> Mapping[str, Any]:
        return RECIPES[self._guess[0]]

    @property
    def notes(self) -> Sequence[str]:
        return self._guess[1]

    @property
    def input_format(self) -> dict[str, Any]:
        kind, config = self._guess[0], self.config
        if kind == "image":
            return Folder(config).input_format
        return {name: getattr(config, name) for name in OPTIONS[kind]}

    def load(self) -> dict[str, Examples]:
        with self.streams() as streams:
            return {name: stream.examples() for name, stream in streams.items()}

    @contextlib.contextmanager
    def streams(self) -> Iterator[dict[str, Stream]]:
        config = self.config
        fractions = config.val_fraction, config.test_fraction
        splits = complete_splits(self._rows(), fractions, config.seed, printable(config.root))
        yield {
            split: raw_stream(classes, self.input_format, f"{printable(config.root)} ({split})")
            for split, classes in splits.items()
        }

    @cached_property
    def _guess(self) -> tuple[Kind, list[str]]:
        """Return what the examples are, and what was guessed."""
        with self._open() as table:
            kind = table.kind
        usual = {option.name: option.default for option in options.read(self.Config)}
        for other, names in OPTIONS.items():
            for name in names:
                if other != kind and getattr(self.config, name) != usual[name]:
                    raise OptionError(
                        f"the examples of {self.config.root} are {WORDS[kind]}, and the option "
                        f"'{name}' is for {WORDS[other]}",
                        "leave it out, or name another column",
                    )
        return kind, table.said

    def _open(self) -> Table:
        config = self.config
        if not config.root:
            raise OptionError("the data set 'csv' needs a table", "name it with --data-root")
        columns = Columns(
            label=config.label or "",
            text=config.text or "",
            path=config.path or "",
            split=config.split or "",
        )
        return open_table(expand_user(config.root, "--data-root"), columns, labelled=True)

    def _rows(self) -> dict[str, Classes]:
        """Return the examples of each class, by split; all are in NO_SPLIT if there are none."""
        found: dict[str, Classes] = {}
        split_of: dict[str, str] = {}
        unlabelled = 0
        with self._open() as table:
            for row in table.rows:
                if row.label is None:
                    unlabelled += 1
                    continue
                split = self._split_of(row)
                if split_of.setdefault(row.label, split) != split:
                    raise DataError(
                        f"{self.config.root}, line {row.line}: class '{printable(row.label)}' is "
                        f"in '{split_of[row.label]}' and in '{split}'",
                        "splits must not share classes; leave out the option 'split' to divide by class",
                    )
                found.setdefault(split, {}).setdefault(row.label, []).append(row.example)
        if not found:
            raise DataError(f"{self.config.root} has no labelled rows", "add some")
        if unlabelled:
            self._warn_of_unlabelled(unlabelled)
        return {split: dict(sorted(classes.items())) for split, classes in found.items()}

    def _split_of(self, row: Row) -> str:
        if not self.config.split:
            return NO_SPLIT
        split = SPLIT_NAMES.get((row.split or "").lower())
        if split is None:
            raise DataError(
                f"{self.config.root}, line {row.line}: '{printable(row.split or '')}' is not a split",
                f"the splits are {', '.join(dict.fromkeys(SPLIT_NAMES.values()))}",
            )
        return split

    def _warn_of_unlabelled(self, count: int) -> None:
        rows = "1 row" if count == 1 else f"{count} rows"
        warnings.warn(
            f"{rows} of {printable(self.config.root)} without a label left out",
            DataWarning,
            stacklevel=2,
        )


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"csv": Csv}
