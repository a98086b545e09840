"""Model cards, which may come from an untrusted place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from metazoo.errors import CheckpointError
from metazoo.io.files import read_json

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
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
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


def size_of(card: dict[str, Any]) -> int | None:
    """Return the size of the weights in bytes, or None if the card does not state it."""
    size = card.get("bytes")
    return size if type(size) is int and size >= 0 else None


def _check(card: Any, where: str, hint: str) -> dict[str, Any]:
    for key, kind in {"name": str, "weights": str, "sha256": str, "results": list}.items():
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise CheckpointError(f"{where} is not a model card: it has no '{key}'", hint)
    if not SHA256.fullmatch(card["sha256"]):
        raise CheckpointError(
            f"{where} is not a model card: its 'sha256' is not 64 hexadecimal digits", hint
        )
    return card
