"""Omniglot: handwritten characters by Lake, Salakhutdinov and Tenenbaum.

1,623 characters of 50 alphabets, each drawn once by 20 people: "Human-level concept learning
through probabilistic program induction", Science 350, 2015.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from metazoo import options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.datasets.cache import load_or_build
from metazoo.datasets.download import find_or_fetch
from metazoo.datasets.omniglot_splits import (
    BACKGROUND,
    EVALUATION,
    SMALL1,
    SMALL2,
    character_names,
    part_of,
)
from metazoo.errors import DataError
from metazoo.images import decode
from metazoo.io.archives import Parts, Tree, digest, open_tree
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.episode import Episode, TaskSource
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import choose_distinct, random_words_batch
from metazoo.tasks.sampler import EpisodeSampler

DRAWERS = 20
RUNS, RUN_SIZE = 20, 20  # of the one-shot challenge

# The first two MD5s are published. The others are those of the files in the official repository.
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
    "images_background_small1": "e704a628b5459e08445c13499850abc4",
    "images_background_small2": "b75a71a51d3b13f821f212756fe481fd",
    "all_runs": "e8996daecdf12afeeb4a53a179f06b19",
}
ALPHABETS = {
    "images_background": BACKGROUND,
    "images_evaluation": EVALUATION,
    "images_background_small1": {name: BACKGROUND[name] for name in SMALL1},
    "images_background_small2": {name: BACKGROUND[name] for name in SMALL2},
}


class Omniglot(ClassDataset):
    """Handwritten characters, ink 1 on background 0, shape (1, size, size). A class is a character.

    Class names look like "Greek/character03". With `rotations`, each character gives three more
    classes, turned counter-clockwise ("Greek/character03/rot090"), in every split. With `mirrored`,
    each training class gives one more ("Greek/character03/rot090/mirrored"), even if its mirror
    image equals the character itself or another one. Images are resized before they are turned and
    mirrored; the other order would change pixels by a few of 255 grey levels.

    Splits:

    - `lake` trains on 25 of the 30 background alphabets, validates on the other 5 and tests on the
      20 evaluation alphabets;
    - `vinyals` has 1028/172/423 characters, divided by alphabet except for one alphabet;
    - `random` has 1100/100/423 characters from all alphabets, as in Finn et al. 2017
      (arXiv:1703.03400), and is easier;
    - `small1` and `small2` train on 4 alphabets, validate on 1 and test as `lake` does.

    With `train_on_val`, the training part also has the validation characters, as at the end of
    Snell et al. 2017 (arXiv:1703.05175). The validation accuracy, and the checkpoint that it
    selects, then say nothing about new characters.

    Raises DataError if an archive is missing and cannot be downloaded, is damaged, or does not have
    the characters that it should have.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[
            str | None,
            "folder that holds omniglot/ or its archives  [default: $METAZOO_DATA, else download to the cache]",
        ] = None
        split: Annotated[
            Literal["lake", "vinyals", "random", "small1", "small2"],
            "which characters are for training, validation and test",
        ] = "lake"
        size: Annotated[int, "height and width in pixels", options.Range(8, 105)] = 28
        rotations: Annotated[
            bool, "add each character turned by 90, 180 and 270 degrees as new classes"
        ] = True
        mirrored: Annotated[bool, "add the mirror image of each training class as a new class"] = (
            False
        )
        train_on_val: Annotated[
            bool, "also train on the validation characters, once nothing is left to choose"
        ] = False
        within_alphabet: Annotated[
            bool,
            "draw the classes of a task from one alphabet, turned alike, as the challenge does",
        ] = False
        url: Annotated[str, "where to download from"] = (
            "https://github.com/brendenlake/omniglot/raw/master/python"
        )

    config: Config
    local_options = ("root", "url")
    training_options = ("mirrored", "train_on_val")
    drawings = True
    licence = "MIT"

    @property
    def input_format(self) -> dict[str, Any]:
        return {"size": self.config.size, "channels": 1, "invert": True}

    def load(self) -> dict[str, Examples]:
        config = self.config
        small = f"_{config.split}" if config.split in ("small1", "small2") else ""
        background = self._characters(f"images_background{small}")
        evaluation = self._characters("images_evaluation")
        both = background.merge(evaluation, "Omniglot")
        parts = [part_of(config.split, name) for name in both.names]
        chosen = {part: [other == part for other in parts] for part in ("train", "val", "test")}
        if config.train_on_val:
            chosen["train"] = [part != "test" for part in parts]
        return {
            part: _select(
                both,
                is_chosen,
                f"Omniglot ({config.split}, {part})",
                rotations=config.rotations,
                mirrored=config.mirrored and part == "train",
            )
            for part, is_chosen in chosen.items()
        }

    @property
    def sampler(self) -> type[EpisodeSampler]:
        return _WithinAlphabet if self.config.within_alphabet else EpisodeSampler

    def protocols(self) -> Mapping[str, Callable[[], tuple[TaskSource, int]]]:
        """Return the one-shot challenge of Lake et al. 2015.

        It has 20 runs. Each is 20-way 1-shot within one alphabet, with 20 queries.
        """
        return {"one-shot-challenge": lambda: self._challenge}

    def _find(self, name: str) -> Path:
        return find_or_fetch(
            self.config.root, "omniglot", f"{name}.zip", self.config.url, MD5[name]
        )

    def _characters(self, archive: str) -> Examples:
        path = self._find(archive)
        read = functools.partial(_read_characters, path, ALPHABETS[archive], self.config.size)
        return load_or_build("omniglot", f"{digest(path)} {archive} {self.config.size}", read)

    @functools.cached_property
    def _challenge(self) -> tuple[TaskSource, int]:
        with open_tree(self._find("all_runs")) as tree:
            files = {parts[-3:]: parts for parts in tree.files}
            runs = [
                _read_run(tree, files, f"run{run:02}", self.config.size)
                for run in range(1, RUNS + 1)
            ]
        tasks = Episode(*(torch.stack(tensors) for tensors in zip(*runs)))
        return _FixedTasks(tasks, character_names(ALPHABETS["images_evaluation"])), RUNS


class _WithinAlphabet(EpisodeSampler):
    """Draws all classes of a task from one alphabet, turned and mirrored alike.

    Every alphabet with enough characters is equally likely.
    """

    def __init__(self, examples: Examples, ways: int, shots: int, queries: int, seed: int = 0):
        super().__init__(examples, ways, shots, queries, seed)
        groups: dict[tuple[str, str], list[int]] = {}
        for c, name in enumerate(examples.names):
            alphabet, _, rest = name.partition("/")
            orientation = rest.partition("/")[2]
            groups.setdefault((alphabet, orientation), []).append(c)
        self._groups = [group for group in groups.values() if len(group) >= ways]
        if not self._groups:
            largest = max(len(group) for group in groups.values())
            raise DataError(
                f"no alphabet of {examples.title} has {ways} characters; the largest has {largest}",
                "lower --ways",
            )

    def choose(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        words = random_words_batch(
            self.seed, first, count, 1 + self.ways * (1 + self.shots + self.queries)
        )
        groups = [self._groups[word % len(self._groups)] for word in words[:, 0].tolist()]
        sizes = np.array([len(group) for group in groups])
        chosen = choose_distinct(words[:, 1 : 1 + self.ways], sizes)
        classes = np.stack([np.array(group)[c] for group, c in zip(groups, chosen)])
        return classes, self.choose_examples(words[:, 1 + self.ways :], classes)


class _FixedTasks:
    """A fixed list of tasks, with the names of the classes that they come from."""

    def __init__(self, tasks: Episode, names: tuple[str, ...]):
        self.tasks, self.names = tasks, names

    def draw(self, first: int, count: int) -> Episode:
        if first < 0 or first + count > len(self.tasks):
            raise DataError(
                f"the protocol has {len(self.tasks)} tasks; "
                f"task number {first + count - 1} does not exist",
                "lower --episodes",
            )
        return self.tasks[first : first + count]


def _select(
    characters: Examples, is_chosen: list[bool], title: str, *, rotations: bool, mirrored: bool
) -> Examples:
    """Return the chosen characters, with rotations and mirror images as classes after each."""
    drawings = characters.x.unflatten(0, (-1, DRAWERS))  # (characters, DRAWERS, 1, size, size)
    x = drawings[torch.tensor(is_chosen)]
    names = [name for name, chosen in zip(characters.names, is_chosen) if chosen]
    if rotations:
        x = torch.stack([x.rot90(turns, (-2, -1)) for turns in range(4)], dim=1).flatten(0, 1)
        suffixes = ("", "/rot090", "/rot180", "/rot270")
        names = [name + suffix for name in names for suffix in suffixes]
    if mirrored:
        x = torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)
        names = [name + suffix for name in names for suffix in ("", "/mirrored")]
    return Examples(x.flatten(0, 1), (DRAWERS,) * len(names), tuple(names), title)


def _read_characters(path: Path, alphabets: Mapping[str, int], size: int) -> Examples:
    with open_tree(path) as tree:
        drawings = _find_drawings(tree)
        names = character_names(alphabets)
        _check_drawings(path, drawings, names)
        x = torch.stack([_image(tree, file, size) for name in names for file in drawings[name]])
    return Examples(x, (DRAWERS,) * len(names), names, f"Omniglot ({path.name})")


def _find_drawings(tree: Tree) -> dict[str, list[Parts]]:
    """Return the files of each character, in sorted order."""
    files = {parts[-3:]: parts for parts in tree.files if parts[-1].lower().endswith(".png")}
    drawings: dict[str, list[Parts]] = {}
    for key, parts in sorted(files.items()):
        if len(key) == 3:
            alphabet, character, _ = key
            drawings.setdefault(f"{alphabet}/{character}", []).append(parts)
    return drawings


def _check_drawings(
    path: Path, drawings: Mapping[str, list[Parts]], expected: tuple[str, ...]
) -> None:
    """Raise DataError unless each expected character, and no other, has DRAWERS drawings."""
    hint = f"get {path.name} again from the official repository of Omniglot"
    if unknown := sorted(set(drawings) - set(expected)):
        raise DataError(
            f"{path} has drawings of {unknown[0]}, which is not a character of this archive", hint
        )
    for name in expected:
        found = len(drawings.get(name, ()))
        if found != DRAWERS:
            raise DataError(f"{path} has {found} drawings of {name} instead of {DRAWERS}", hint)


def _image(tree: Tree, parts: Parts, size: int) -> Tensor:
    return decode(tree.read(parts), size=size, channels=1, invert=True, name=tree.name(parts))


def _read_run(
    tree: Tree, files: Mapping[Parts, Parts], run: str, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return support_x, support_y, query_x and query_y of one run of the challenge.

    The label of an image classNN.png is NN - 1.
    """
    support = [
        _find_file(tree, files, (run, "training", f"class{i:02}.png"))
        for i in range(1, RUN_SIZE + 1)
    ]
    queries, query_y = _read_answers(tree, files, run)
    support_x, query_x = (
        torch.stack([_image(tree, file, size) for file in part]).float() / 255
        for part in (support, queries)
    )
    return support_x, torch.arange(RUN_SIZE), query_x, torch.tensor(query_y)


def _read_answers(
    tree: Tree, files: Mapping[Parts, Parts], run: str
) -> tuple[list[Parts], list[int]]:
    """Return the query images of a run and their labels."""
    path = _find_file(tree, files, (run, "class_labels.txt"))
    queries, labels = [], []
    for line in tree.read(path).decode("utf-8", "replace").split("\n"):
        if not line.strip():
            continue
        query, label = _parse_answer(line)
        if not 0 <= label < RUN_SIZE:
            raise DataError(
                f"{tree.name(path)} has an invalid line: {line[:80]!r}", "get all_runs.zip again"
            )
        queries.append(_find_file(tree, files, query))
        labels.append(label)
    if len(queries) != RUN_SIZE:
        raise DataError(
            f"{tree.name(path)} lists {len(queries)} queries, not {RUN_SIZE}",
            "get all_runs.zip again",
        )
    return queries, labels


def _parse_answer(line: str) -> tuple[Parts, int]:
    """Return the query's path and its label, or -1 if the line is invalid."""
    try:
        query, answer = line.split()
        label = int(answer.rpartition("class")[2].removesuffix(".png")) - 1
    except ValueError:
        return (), -1
    return tuple(query.split("/")[-3:]), label


def _find_file(tree: Tree, files: Mapping[Parts, Parts], end: Parts) -> Parts:
    """Return the file whose path ends in these parts.

    `files` maps the last three parts of each path to the path.
    """
    for key, parts in files.items():
        if key[-len(end) :] == end:
            return parts
    raise DataError(f"{tree.path} has no file {'/'.join(end)}", "get all_runs.zip again")


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"omniglot": Omniglot}
