"""Models at an address: download a card and its weights into the cache, and verify them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from metazoo.errors import CheckpointError, UnknownNameError
from metazoo.io import download
from metazoo.io.download import DownloadMessages
from metazoo.io.files import cache_directory, read_verified, write_atomically
from metazoo.quoting import shown_address
from metazoo.zoo import hub
from metazoo.zoo.card import SHA256, WEIGHTS, parse_card, size_of

CARD_SIZE = 2**20
SCHEMES = "https://HOST/NAME.json, file:///FOLDER/NAME.json and hf://user/repo/NAME"
DISTRUST = "do not use it: ask its author which one is right"


def is_address(name: str) -> bool:
    """Return whether a name is an address."""
    return "://" in name


def find(address: str) -> tuple[Path, bytes]:
    """Return the path in the cache and the bytes of the weights of the card at an address.

    The address is `https://.../NAME.json`, `file:///.../NAME.json` or `hf://user/repo/NAME`. A
    fragment `#sha256=HEX` pins the weights: the card must state that sha256, and weights in the
    cache then need no network. `http://` requires a pin.

    Raises UnknownNameError if the address is malformed, CheckpointError if the model cannot be
    downloaded or is not the expected one.
    """
    url, pin = _split(address)
    if pin and (kept := _read_kept(pin)):
        return kept
    data, at = _download_card(url)
    card = parse_card(data, shown_address(at))
    if pin and card["sha256"] != pin:
        raise CheckpointError(
            f"{shown_address(at)} describes other weights: its sha256 is {card['sha256']}, "
            f"the address asks for {pin}; nothing was read",
            DISTRUST,
        )
    folder = at.partition("?")[0].rpartition("/")[0]
    weights, contents = fetch(f"{folder}/{card['weights']}", card)
    # With the card beside them, weights in the cache can be found by their pin and pushed again.
    with contextlib.suppress(OSError):
        write_atomically(weights.with_name(f"{card['name']}.json"), data)
    return weights, contents


def fetch(url: str, card: dict[str, Any]) -> tuple[Path, bytes]:
    """Return the path in the cache and the bytes of a card's weights, which are at an address.

    Raises UnknownNameError if the address is malformed, CheckpointError if they cannot be
    downloaded or are not the expected ones.
    """
    scheme, sha256 = _scheme(url), card["sha256"]
    name = urlsplit(url).path.rpartition("/")[2]
    if not WEIGHTS.fullmatch(name):
        raise CheckpointError(
            f"the card of '{card['name']}' has weights at {shown_address(url)}, which is not a .safetensors file",
            "ask its author to fix it",
        )
    path = _folder(sha256) / name
    if (data := _read(path, sha256)) is not None:
        return path, data
    by_hand = f"put {name} (SHA-256 {sha256}) into {path.parent} by hand"
    messages = DownloadMessages(CheckpointError, by_hand, DISTRUST)
    if scheme == "hf":
        hub.fetch(hub.parse(url), path, sha256, size_of(card), messages)
    else:
        download.fetch(url, path, "sha256", sha256, messages, size_of(card))
    if (data := _read(path, sha256)) is None:
        raise CheckpointError(f"{path} was changed right after the download", "try again")
    return path, data


def _download_card(url: str) -> tuple[bytes, str]:
    """Return a card and its address."""
    if _scheme(url) == "hf":
        data, place = hub.read_card(hub.parse(url), CARD_SIZE)
        return data, str(place)
    by_hand = "open the address in a browser; to load a model on this machine, give its path"
    return download.read(url, CARD_SIZE, DownloadMessages(CheckpointError, by_hand, DISTRUST)), url


def _split(address: str) -> tuple[str, str | None]:
    """Return an address without its pin, and the pin."""
    scheme, shown = _scheme(address), shown_address(address)
    url, fragment = urldefrag(address)
    pin = fragment.removeprefix("sha256=").lower()
    if fragment and not (fragment.startswith("sha256=") and SHA256.fullmatch(pin)):
        raise UnknownNameError(
            f"'{shown}' has an invalid pin", "a pin is #sha256= and 64 hexadecimal digits"
        )
    if scheme != "hf" and not urlsplit(url).path.endswith(".json"):
        raise UnknownNameError(
            f"'{shown}' is not the address of a model card", f"models are loaded from {SCHEMES}"
        )
    if scheme == "http" and not pin:
        raise UnknownNameError(
            f"'{shown}' is not encrypted: anyone on the way could replace the model",
            "give https://, or pin the weights with #sha256= and their sha256",
        )
    return url, pin or None


def _scheme(url: str) -> str:
    hint, shown = f"models are loaded from {SCHEMES}", shown_address(url)
    try:
        scheme = urlsplit(url).scheme
        if "\0" in unquote(url):
            raise ValueError("it has a null byte")
    except ValueError as error:
        raise UnknownNameError(f"'{shown}' is not a valid address: {error}", hint) from error
    if scheme not in ("https", "http", "file", "hf"):
        raise UnknownNameError(f"models cannot be loaded from '{shown}'", hint)
    return scheme


def _folder(sha256: str) -> Path:
    return cache_directory() / "models" / sha256


def _read_kept(sha256: str) -> tuple[Path, bytes] | None:
    """Return the path and the bytes of weights in the cache that have their card beside them."""
    for path in sorted(_folder(sha256).glob("*.json")):
        try:
            weights = path.with_name(parse_card(path.read_bytes(), str(path))["weights"])
            if (data := _read(weights, sha256)) is not None:
                return weights, data
        except (CheckpointError, OSError):  # damaged: it is downloaded again
            continue
    return None


def _read(path: Path, sha256: str) -> bytes | None:
    try:
        return read_verified(path, sha256) if path.is_file() else None
    except OSError:  # the download that follows reports what is wrong with the path
        return None
