"""Model cards, which may come from an untrusted place."""

from __future__ import annotations

import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metazoo.errors import CheckpointError
from metazoo.io.files import json_text, parse_json, read_json

NAME = re.compile(r"[A-Za-z0-9_+-]+\.[A-Za-z0-9_-]+")
WEIGHTS = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*\.safetensors")
SHA256 = re.compile(r"[0-9a-f]{64}")
REINSTALL = "reinstall the package that provides it, or export it again"


def read_card(path: Path) -> dict[str, Any]:
    """Return the card in a local file; raise CheckpointError if it is damaged."""
    return _check(read_json(path, REINSTALL), str(path), REINSTALL)


def parse_card(data: bytes, where: str) -> dict[str, Any]:
    """Return a card from another machine; raise CheckpointError naming `where` if it is damaged.

    Its name must be ALGORITHM.TAG and its weights the bare name of a .safetensors file, so that
    neither can point to another folder.
    """
    hint = "give the address of a card that `metazoo export` or `metazoo push` wrote"
    try:
        values = parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{where} is not a model card: {error}", hint) from error
    card = _check(values, where, hint)
    for key, pattern, expected in (
        ("name", NAME, "ALGORITHM.TAG of letters, digits, _ and -"),
        ("weights", WEIGHTS, "the bare name of a .safetensors file beside it"),
    ):
        if not pattern.fullmatch(card[key]):
            raise CheckpointError(
                f"{where} is refused: its '{key}' is {card[key]!r}, not {expected}", hint
            )
    return card


def card_text(card: Mapping[str, Any]) -> bytes:
    """Return the contents of a card's file."""
    return (json_text(card, indent=2) + "\n").encode()


def size_of(card: dict[str, Any]) -> int | None:
    """Return the size of the weights in bytes, or None if the card does not state it."""
    size = card.get("bytes")
    return size if type(size) is int and size >= 0 else None


def check_details(card: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError, naming `where`, if a value that people read has the wrong type.

    Loading a model needs none of them, and cards of other tools may lack some.
    """
    _check_types(card, CARD, where, REINSTALL)
    for result in card["results"]:
        check_result(result, f"a result in {where}", REINSTALL)


def check_result(result: Mapping[str, Any], where: str, hint: str) -> None:
    """Raise CheckpointError, naming `where`, if a value of a result has the wrong type."""
    _check_types(result, RESULT, where, hint)


def _check(card: Any, where: str, hint: str) -> dict[str, Any]:
    for key, kind in {"name": str, "weights": str, "sha256": str, "results": list}.items():
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise CheckpointError(f"{where} is not a model card: it has no '{key}'", hint)
    if not SHA256.fullmatch(card["sha256"]):
        raise CheckpointError(
            f"{where} is not a model card: its 'sha256' is not 64 hexadecimal digits", hint
        )
    return card


def _check_types(
    values: Mapping[str, Any], known: Mapping[str, Callable[[Any], bool]], where: str, hint: str
) -> None:
    for key, value in values.items():
        if key in known and not known[key](value):
            raise CheckpointError(f"{where} has {reprlib.repr(value)} as its '{key}'", hint)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, dict)


CARD: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("summary", "algorithm", "backbone", "dataset", "licence"), _is_text),
    "data_licence": _is_text,
    "split_sha256": lambda value: value is None or _is_text(value),
    "parameters": _is_count,
    **dict.fromkeys(("dataset_options", "training"), _is_dictionary),
    "results": lambda value: isinstance(value, list) and all(map(_is_dictionary, value)),
}
RESULT: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("metric", "split", "protocol", "machine", "metazoo"), _is_text),
    **dict.fromkeys(("mean", "interval", "seconds", "validation"), _is_number),
    **dict.fromkeys(("tasks", "ways", "shots", "queries"), lambda n: _is_count(n) and n > 0),
    **dict.fromkeys(("seed", "best_step", "steps"), _is_count),
    "transductive": lambda value: isinstance(value, bool),
    "options": _is_dictionary,
}
