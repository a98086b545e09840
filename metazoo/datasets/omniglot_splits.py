"""The characters of Omniglot and its published splits."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

# Number of characters in each alphabet.
BACKGROUND = {
    "Alphabet_of_the_Magi": 20,
    "Anglo-Saxon_Futhorc": 29,
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Burmese_(Myanmar)": 34,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Syriac_(Estrangelo)": 23,
    "Tagalog": 17,
    "Tifinagh": 55,
}
EVALUATION = {
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Sylheti": 28,
    "Syriac_(Serto)": 23,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}
SMALL1 = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
SMALL2 = ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog")

# Lake's split has no validation part. metazoo validates on every sixth background alphabet in
# alphabetical order, and on the last alphabet of a minimal set. Neither rule depends on a result.
VALIDATION = {
    "lake": (
        "Balinese",
        "Early_Aramaic",
        "Inuktitut_(Canadian_Aboriginal_Syllabics)",
        "Mkhedruli_(Georgian)",
        "Tifinagh",
    ),
    "small1": ("Latin",),
    "small2": ("Tagalog",),
}

# Vinyals' 1028/172/423 characters, from the lists in github.com/jakesnell/prototypical-networks.
# Alphabets that are not named here are for training. One alphabet is divided: its characters 1 to
# 41 are for training, 42 to 45 for test.
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Sylheti",
    "Syriac_(Serto)",
    "Tengwar",
    "Tibetan",
    "ULOG",
)
VINYALS_DIVIDED = "Gurmukhi"
VINYALS_DIVIDED_TRAIN = 41

RANDOM_TRAIN, RANDOM_VAL = 1100, 100


def character_names(alphabets: Mapping[str, int]) -> tuple[str, ...]:
    """Return the class names of all characters, such as "Greek/character03"."""
    return tuple(
        f"{alphabet}/character{number:02}"
        for alphabet, count in alphabets.items()
        for number in range(1, count + 1)
    )


def part_of(split: str, name: str) -> str:
    """Return the part of a split that a character is in: "train", "val" or "test"."""
    alphabet, _, number = name.partition("/character")
    if split == "random":
        return _random_part(name)
    if split == "vinyals":
        return _vinyals_part(alphabet, int(number))
    if alphabet in VALIDATION[split]:
        return "val"
    return "train" if alphabet in BACKGROUND else "test"


def _vinyals_part(alphabet: str, number: int) -> str:
    if alphabet == VINYALS_DIVIDED:
        return "train" if number <= VINYALS_DIVIDED_TRAIN else "test"
    if alphabet in VINYALS_VAL:
        return "val"
    return "test" if alphabet in VINYALS_TEST else "train"


def _random_part(name: str) -> str:
    place = random_order()[name]
    if place < RANDOM_TRAIN:
        return "train"
    return "val" if place < RANDOM_TRAIN + RANDOM_VAL else "test"


@functools.cache
def random_order() -> dict[str, int]:
    """Return the place of each character in the order of the sha256 of their names.

    Finn et al. 2017 (arXiv:1703.03400) shuffle a list of files, whose order differs from machine to
    machine.
    """
    names = sorted(
        character_names(BACKGROUND | EVALUATION),
        key=lambda name: hashlib.sha256(name.encode()).digest(),
    )
    return {name: place for place, name in enumerate(names)}
