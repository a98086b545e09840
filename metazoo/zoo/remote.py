"""Models outside the wheel: from the address of a card to weights in the cache that are those the card describes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

from metazoo.errors import CheckpointError, UnknownNameError
from metazoo.io import download
from metazoo.io.download import DownloadMessages
from metazoo.io.files import cache_directory, read_verified, write_atomically
from metazoo.zoo import hub
from metazoo.zoo.card import SHA256, WEIGHTS, parse_card, size_of

CARD_SIZE = 2**20
SCHEMES = "https://HOST/NAME.json, file:///FOLDER/NAME.json and hf://user/repo/NAME"
MEND = "do not use it: ask whoever offers it which one is right"


def is_address(name: str) -> bool:
    """Whether a name is the address of something elsewhere."""
    return "://" in name


def find(address: str) -> tuple[Path, bytes]:
    """Return the weights of the model whose card is at an address: their place in the cache, and what was read and checked.

    The address is `https://.../NAME.json`, `file:///.../NAME.json` or `hf://user/repo/NAME`. A fragment `#sha256=HEX` pins
    the weights: the card must state that one, and what is in the cache needs no network; `http://` needs it.

    Raises UnknownNameError where the address is none, CheckpointError where the model is not to be had or is another one.
    """
    url, pin = _split(address)
    if pin and (kept := _kept(pin)):
        return kept
    if _scheme(url) == "hf":
        data, place = hub.read_card(hub.parse(url), CARD_SIZE)
        at = str(place)
    else:
        by_hand = "look at the address in a browser; a model on this machine is loaded by its path"
        data, at = (
            download.read(url, CARD_SIZE, DownloadMessages(CheckpointError, by_hand, MEND)),
            url,
        )
    card = parse_card(data, at)
    if pin and card["sha256"] != pin:
        raise CheckpointError(
            f"{at} describes other weights: its sha256 is {card['sha256']}, the address asks for {pin}; nothing was read",
            MEND,
        )
    weights, contents = fetch(f"{at.partition('?')[0].rpartition('/')[0]}/{card['weights']}", card)
    # Beside the weights, as `metazoo export` has it: what is in the cache can be found by its pin, and pushed again. The model
    # is there and right, whether that can be written or not.
    with contextlib.suppress(OSError):
        write_atomically(weights.with_name(f"{card['name']}.json"), data)
    return weights, contents


def fetch(url: str, card: dict[str, Any]) -> tuple[Path, bytes]:
    """Return the weights of a card that lie at an address: their place in the cache, and what was read and checked.

    Raises UnknownNameError where the address is none, CheckpointError where they are not to be had or are others.
    """
    scheme, sha256 = _scheme(url), card["sha256"]
    name = urlsplit(url).path.rpartition("/")[2]
    if not WEIGHTS.fullmatch(name):
        raise CheckpointError(
            f"the card of '{card['name']}' has weights at {url}, which is no .safetensors file",
            "ask its author to mend it",
        )
    path = _folder(sha256) / name
    if (data := _read(path, sha256)) is not None:
        return path, data
    words = DownloadMessages(
        CheckpointError, f"put {name} (SHA-256 {sha256}) into {path.parent} by hand", MEND
    )
    if scheme == "hf":
        hub.fetch(hub.parse(url), path, sha256, size_of(card), words)
    else:
        download.fetch(url, path, "sha256", sha256, words, size_of(card))
    if (data := _read(path, sha256)) is None:
        raise CheckpointError(
            f"{path} is not what was downloaded: it was changed since", "try again"
        )
    return path, data


def _split(address: str) -> tuple[str, str | None]:
    """Return an address without its pin, and the pin."""
    url, fragment = urldefrag(address)
    pin = fragment.removeprefix("sha256=").lower()
    if fragment and not (fragment.startswith("sha256=") and SHA256.fullmatch(pin)):
        raise UnknownNameError(
            f"'{address}' has a pin that is none", "a pin is #sha256= and 64 digits from 0 to f"
        )
    scheme = _scheme(url)
    if scheme != "hf" and not urlsplit(url).path.endswith(".json"):
        raise UnknownNameError(
            f"'{address}' is not the address of a model card", f"models are loaded from {SCHEMES}"
        )
    if scheme == "http" and not pin:
        raise UnknownNameError(
            f"'{address}' could be changed on its way: http is not encrypted",
            "give https://, or pin the weights with #sha256= and their sha256",
        )
    return url, pin or None


def _scheme(url: str) -> str:
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise UnknownNameError(
            f"'{url}' is no address: {error}", f"models are loaded from {SCHEMES}"
        ) from error
    if scheme not in ("https", "http", "file", "hf"):
        raise UnknownNameError(
            f"'{url}' cannot be loaded from", f"models are loaded from {SCHEMES}"
        )
    return scheme


def _folder(sha256: str) -> Path:
    return cache_directory() / "models" / sha256


def _kept(sha256: str) -> tuple[Path, bytes] | None:
    """Return weights in the cache whose card is there as well, and what they are."""
    for path in sorted(_folder(sha256).glob("*.json")):
        try:
            weights = path.with_name(parse_card(path.read_bytes(), str(path))["weights"])
            if (data := _read(weights, sha256)) is not None:
                return weights, data
        except (CheckpointError, OSError):  # damaged: it is fetched again
            continue
    return None


def _read(path: Path, sha256: str) -> bytes | None:
    try:
        return read_verified(path, sha256) if path.is_file() else None
    except OSError:  # what cannot be read is fetched again, and what is in its way is named then
        return None
