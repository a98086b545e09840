"""Omniglot: Lake, Salakhutdinov and Tenenbaum 2015, Science 350, "Human-level concept learning through probabilistic
program induction": 1,623 handwritten characters of 50 alphabets, each drawn once by the same number of 20 people."""

from __future__ import annotations

import functools
import hashlib
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
from metazoo.errors import DataError
from metazoo.images import decode
from metazoo.io.archives import Parts, Tree, digest, open_tree
from metazoo.plugins.marker import hookimpl
from metazoo.tasks.episode import Episode, TaskSource
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import choose_distinct, random_words_batch
from metazoo.tasks.sampler import EpisodeSampler

DRAWERS = 20

# Characters of each alphabet.
BACKGROUND = {
    "Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41, "Asomtavruli_(Georgian)": 40,
    "Balinese": 24, "Bengali": 46, "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14, "Braille": 26, "Burmese_(Myanmar)": 34,
    "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43, "Greek": 24, "Gujarati": 48, "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16, "Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40,
    "Latin": 26, "Malay_(Jawi_-_Arabic)": 40, "Mkhedruli_(Georgian)": 41, "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42, "Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55,
}  # fmt: skip
EVALUATION = {
    "Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26, "Ge_ez": 26, "Glagolitic": 45,
    "Gurmukhi": 45, "Kannada": 41, "Keble": 26, "Malayalam": 47, "Manipuri": 40, "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45, "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23, "Tengwar": 25, "Tibetan": 42,
    "ULOG": 26,
}  # fmt: skip
SMALL1 = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
SMALL2 = ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog")

# Lake's split has no validation part. Ours is every sixth background alphabet in alphabetical order,
# and the last alphabet of a minimal set: rules that look at no result.
VALIDATION = {
    "lake": (
        "Balinese", "Early_Aramaic", "Inuktitut_(Canadian_Aboriginal_Syllabics)", "Mkhedruli_(Georgian)", "Tifinagh",
    ),
    "small1": ("Latin",),
    "small2": ("Tagalog",),
}  # fmt: skip

# Vinyals' 1028/172/423 characters, from the lists in github.com/jakesnell/prototypical-networks: nearly by alphabet,
# the training part being all that is not named here.
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti",
    "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
)  # fmt: skip
VINYALS_SHARED, VINYALS_SHARED_TRAIN = (
    "Gurmukhi",
    41,
)  # characters 1 to 41 are for training, 42 to 45 for test

RANDOM_TRAIN, RANDOM_VAL = 1100, 100

# The first two MD5s are the published ones; the others are those of the unchanged files of the official repository.
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
RUNS, RUN_SIZE = 20, 20


class Omniglot(ClassDataset):
    """Handwritten characters, ink 1 on 0, shape (1, size, size); a class is a character ("Greek/character03").

    With `rotations` each character also gives three classes turned counter-clockwise ("Greek/character03/rot090"), in
    every split, and with `mirrored` every training class one more ("Greek/character03/rot090/mirrored"), also where the
    mirror image of a character is itself or another one. Images are resized, then turned and mirrored; the other order would
    differ by a few of 255 grey levels. Splits:
    `lake` trains on the 30 background alphabets, 5 of which are for validation, and tests on the 20 of the evaluation set;
    `vinyals` has 1028/172/423 characters, nearly by alphabet; `random` 1100/100/423 of all alphabets, as Finn et al. 2017
    (arXiv:1703.03400), and is easier; `small1` and `small2` train on 4 alphabets, validate on 1 and test as `lake` does.
    With `train_on_val` the training part has the characters of the validation part as well, as at the end of Snell et al. 2017
    (arXiv:1703.05175); validation, and the checkpoint that it chooses, then say nothing of new characters.

    Raises DataError where an archive is missing and cannot be fetched, is damaged, or has not the characters that it should.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        root: Annotated[
            str | None,
            "folder of the archives  [default: $METAZOO_DATA, else download to the cache]",
        ] = None
        split: Annotated[
            Literal["lake", "vinyals", "random", "small1", "small2"],
            "which characters are for what",
        ] = "lake"
        size: Annotated[int, "height and width in pixels", options.Range(8, 105)] = 28
        rotations: Annotated[
            bool, "turn each character by 90, 180 and 270 degrees, as classes of their own"
        ] = True
        mirrored: Annotated[bool, "mirror each training class, as a class of its own"] = False
        train_on_val: Annotated[
            bool, "train on the validation characters as well, once nothing is to be chosen"
        ] = False
        within_alphabet: Annotated[
            bool,
            "draw the classes of a task from one alphabet, turned one way, as the challenge does",
        ] = False
        url: Annotated[str, "where to download from"] = (
            "https://github.com/brendenlake/omniglot/raw/master/python"
        )

    config: Config
    local_options = ("root", "url")
    training_options = ("mirrored", "train_on_val")
    licence = "MIT"

    @property
    def input_format(self) -> dict[str, Any]:
        return {"size": self.config.size, "channels": 1, "invert": True}

    def load(self) -> dict[str, Examples]:
        split = self.config.split
        background = self._characters(
            "images_background" + (f"_{split}" if split in ("small1", "small2") else "")
        )
        evaluation = self._characters("images_evaluation")
        both = background.merge(evaluation, "Omniglot")
        parts = [_part(split, *_alphabet_and_number(character)) for character in both.names]
        chosen = {name: [part == name for part in parts] for name in ("train", "val", "test")}
        if self.config.train_on_val:
            chosen["train"] = [part != "test" for part in parts]
        turned, mirrored = self.config.rotations, self.config.mirrored
        return {
            name: _select(
                both,
                chosen[name],
                f"Omniglot ({split}, {name})",
                turned,
                mirrored and name == "train",
            )
            for name in chosen
        }

    @property
    def sampler(self) -> type[EpisodeSampler]:
        return _WithinAlphabet if self.config.within_alphabet else EpisodeSampler

    def protocols(self) -> Mapping[str, Callable[[], tuple[TaskSource, int]]]:
        """Return the one-shot challenge: 20 runs of 20-way 1-shot within an alphabet, 20 queries each (Lake et al. 2015)."""
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
        return _FixedTasks(
            Episode(*(torch.stack(tensors) for tensors in zip(*runs))),
            _names(ALPHABETS["images_evaluation"]),
        ), RUNS


class _WithinAlphabet(EpisodeSampler):
    """Draws an alphabet (turned one way) that has enough characters, each as likely, and then as its parent does, from it."""

    def __init__(self, examples: Examples, ways: int, shots: int, queries: int, seed: int = 0):
        super().__init__(examples, ways, shots, queries, seed)
        groups: dict[tuple[str, str], list[int]] = {}
        for c, name in enumerate(examples.names):
            alphabet, _, rest = name.partition("/")
            groups.setdefault((alphabet, rest.partition("/")[2]), []).append(c)
        self._groups = [group for group in groups.values() if len(group) >= ways]
        if not self._groups:
            largest = max(len(group) for group in groups.values())
            raise DataError(
                f"no alphabet of {examples.title} has {ways} characters; the largest has {largest}",
                "ask for fewer ways",
            )

    def choose(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        words = random_words_batch(
            self.seed, first, count, 1 + self.ways * (1 + self.shots + self.queries)
        )
        groups = [self._groups[word % len(self._groups)] for word in words[:, 0].tolist()]
        chosen = choose_distinct(
            words[:, 1 : 1 + self.ways], np.array([len(group) for group in groups])
        )
        classes = np.stack([np.array(group)[c] for group, c in zip(groups, chosen)])
        return classes, self.choose_examples(words[:, 1 + self.ways :], classes)


class _FixedTasks:
    """A list of tasks, all there from the start, and the names of the classes that they are drawn from."""

    def __init__(self, tasks: Episode, names: tuple[str, ...]):
        self.tasks, self.names = tasks, names

    def draw(self, first: int, count: int) -> Episode:
        if first < 0 or first + count > len(self.tasks):
            raise DataError(
                f"the protocol has {len(self.tasks)} tasks; there is no task {first + count - 1}",
                "ask for fewer episodes",
            )
        return self.tasks[first : first + count]


def _alphabet_and_number(character: str) -> tuple[str, int]:
    alphabet, _, number = character.partition("/character")
    return alphabet, int(number)


def _names(alphabets: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{name}/character{i:02}" for name, count in alphabets.items() for i in range(1, count + 1)
    )


@functools.cache
def _random_order() -> dict[str, int]:
    """Return each character's place among all, whatever their alphabet, by the sha256 of its name.

    Finn et al. 2017 (arXiv:1703.03400) shuffle them by a list of files, which is another one on every machine.
    """
    names = sorted(
        _names(BACKGROUND | EVALUATION), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    return {name: place for place, name in enumerate(names)}


def _part(split: str, alphabet: str, number: int) -> str:
    """Return what a character is for: "train", "val" or "test"."""
    if split == "random":
        place = _random_order()[f"{alphabet}/character{number:02}"]
        return (
            "train"
            if place < RANDOM_TRAIN
            else "val"
            if place < RANDOM_TRAIN + RANDOM_VAL
            else "test"
        )
    if split != "vinyals":
        return (
            "val"
            if alphabet in VALIDATION[split]
            else "train"
            if alphabet in BACKGROUND
            else "test"
        )
    if alphabet == VINYALS_SHARED:
        return "train" if number <= VINYALS_SHARED_TRAIN else "test"
    return "val" if alphabet in VINYALS_VAL else "test" if alphabet in VINYALS_TEST else "train"


def _select(
    characters: Examples, chosen: list[bool], title: str, rotations: bool, mirrored: bool
) -> Examples:
    x = characters.x.unflatten(0, (-1, DRAWERS))[
        torch.tensor(chosen)
    ]  # (characters, drawers, 1, size, size)
    names = [name for name, is_chosen in zip(characters.names, chosen) if is_chosen]
    if rotations:
        x = torch.stack([x.rot90(turns, (-2, -1)) for turns in range(4)], dim=1).flatten(0, 1)
        names = [
            name + turned for name in names for turned in ("", "/rot090", "/rot180", "/rot270")
        ]
    if mirrored:
        x = torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)
        names = [name + side for name in names for side in ("", "/mirrored")]
    return Examples(x.flatten(0, 1), (DRAWERS,) * len(names), tuple(names), title)


def _read_characters(path: Path, alphabets: Mapping[str, int], size: int) -> Examples:
    with open_tree(path) as tree:
        files = {parts[-3:]: parts for parts in tree.files if parts[-1].lower().endswith(".png")}
        drawings: dict[str, list[Parts]] = {}
        for key, parts in sorted(files.items()):
            if len(key) == 3:
                drawings.setdefault(f"{key[0]}/{key[1]}", []).append(parts)
        expected = _names(alphabets)
        hint = f"get {path.name} again from the official repository of Omniglot"
        if unknown := sorted(set(drawings) - set(expected)):
            raise DataError(
                f"{path} has drawings of {unknown[0]}, which is no character of it", hint
            )
        for character in expected:
            if len(drawings.get(character, ())) != DRAWERS:
                found = len(drawings.get(character, ()))
                raise DataError(
                    f"{path} has {found} drawings of {character}, where there should be {DRAWERS}",
                    hint,
                )
        x = torch.stack(
            [_image(tree, parts, size) for character in expected for parts in drawings[character]]
        )
    return Examples(x, (DRAWERS,) * len(expected), expected, f"Omniglot ({path.name})")


def _image(tree: Tree, parts: Parts, size: int) -> Tensor:
    return decode(tree.read(parts), size=size, channels=1, invert=True, name=tree.name(parts))


def _read_run(
    tree: Tree, files: Mapping[Parts, Parts], run: str, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return support_x, support_y, query_x, query_y of one run of the challenge; the label of classNN is NN - 1."""

    def find(key: Parts) -> Parts:
        # The list of labels stands one level above the images.
        parts = next((files[k] for k in files if k[-len(key) :] == key), None)
        if parts is None:
            raise DataError(f"{tree.path} has no file {'/'.join(key)}", "get all_runs.zip again")
        return parts

    labels = find((run, "class_labels.txt"))
    support = [find((run, "training", f"class{i:02}.png")) for i in range(1, RUN_SIZE + 1)]
    queries, query_y = [], []
    for line in tree.read(labels).decode("utf-8", "replace").split("\n"):
        if line.strip():
            try:
                item, answer = line.split()
                query_y.append(int(answer.rpartition("class")[2].removesuffix(".png")) - 1)
            except ValueError:
                query_y.append(-1)
            if not 0 <= query_y[-1] < RUN_SIZE:
                raise DataError(
                    f"{tree.name(labels)} has a line that cannot be read: {line[:80]!r}",
                    "get all_runs.zip again",
                )
            queries.append(find(tuple(item.split("/")[-3:])))
    if len(queries) != RUN_SIZE:
        raise DataError(
            f"{tree.name(labels)} lists {len(queries)} queries, not {RUN_SIZE}",
            "get all_runs.zip again",
        )
    support_x, query_x = (
        torch.stack([_image(tree, p, size) for p in part]).float() / 255
        for part in (support, queries)
    )
    return support_x, torch.arange(RUN_SIZE), query_x, torch.tensor(query_y)


@hookimpl
def register_datasets() -> Mapping[str, type[Dataset]]:
    return {"omniglot": Omniglot}
