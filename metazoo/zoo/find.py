"""Find a model by name, run folder, file or address, and load it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metazoo.base.algorithm import Algorithm
from metazoo.errors import CheckpointError, OptionError, UnknownNameError
from metazoo.io.files import read_verified
from metazoo.plugins.registry import registry
from metazoo.quoting import shell_word, shown_address
from metazoo.zoo import remote, run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.card import REINSTALL, read_card
from metazoo.zoo.source import Source
from metazoo.zoo.untrained import NAME, over_encoder
from metazoo.zoo.weights import metadata_of, read_weights


def load(name: str | os.PathLike[str], **changes: Any) -> Algorithm:
    """Return a ready model, in eval mode.

    The model maps (support_x, support_y, query_x), of shapes (B, S, *), (B, S) and (B, Q, *), to
    logits (B, Q, ways).

    Args:
        name: a zoo name, run folder, .safetensors file, card (.json) or address. Addresses are
            https://host/NAME.json, file:///folder/NAME.json and hf://user/repo/NAME; `#sha256=HEX`
            after an address pins the weights. Weights whose sha256 differs from their card's are
            never read. ALGORITHM@ENCODER is a learner over a frozen encoder, without training.
        changes: options of the algorithm to override, as far as the weights still fit.

    Raises:
        UnknownNameError: if there is no such model.
        CheckpointError: if it is damaged, or not the one that its card describes.
    """
    return find(name).model(**changes)


def find(name: str | os.PathLike[str]) -> Source:
    """Return the model of that name; `load` says what a name can be.

    Raises UnknownNameError if there is no such model, CheckpointError if it is damaged or not the
    one that its card describes.
    """
    if not isinstance(name, str | os.PathLike):
        raise UnknownNameError(f"a model cannot be named by {name!r}", "give a name or a path")
    if remote.is_address(str(name)):
        return _from_file(shown_address(str(name)), *remote.find(str(name)))
    path = Path(name)
    if path.is_dir():
        return _from_run(str(name), path)
    is_card = path.is_file() and path.suffix == ".json"
    if path.name == run_folder.LAST and (path.parent / run_folder.CONFIG).is_file():
        raise CheckpointError(
            f"{path} is the training state of a run, not its model",
            f"give the run folder, {path.parent}, or its {run_folder.BEST}",
        )
    if path.is_file() and not is_card:
        return _from_file(str(name), path, read_weights(path))
    if not is_card and (over := NAME.fullmatch(str(name))):
        return over_encoder(str(name), over[1], over[2])
    if not is_card and (path.suffix == ".safetensors" or len(path.parts) > 1):
        raise UnknownNameError(
            f"there is no run folder or model file {path}",
            "`metazoo list pretrained` shows every pretrained model",
        )
    path = path if is_card else Path(registry().card(str(name)).value)
    card = read_card(path)
    source = _from_file(str(name), *weights_of(card, path.parent))
    _check_describes(card, source)
    return source


def _check_describes(card: Mapping[str, Any], source: Source) -> None:
    """Raise CheckpointError if a card says that its weights are of another model."""
    about = {key: getattr(source.blueprint, key) for key in ("algorithm", "backbone", "dataset")}
    named = card["name"].partition(".")[0]
    for key, value in [("algorithm", named), *((key, card.get(key)) for key in about)]:
        if value not in (None, about[key]):
            raise CheckpointError(
                f"the card of '{card['name']}' does not describe its weights: "
                f"their {key} is '{about[key]}', not '{value}'",
                REINSTALL,
            )


def weights_of(card: dict[str, Any], folder: Path) -> tuple[Path, bytes]:
    """Return the path and the bytes of a card's weights: beside it, or at the address in it.

    Raises CheckpointError if they are missing or have another sha256 than the card's.
    """
    if remote.is_address(card["weights"]):
        return remote.fetch(card["weights"], card)
    weights = folder / Path(card["weights"]).name
    if not weights.is_file():
        raise CheckpointError(
            f"the weights of '{card['name']}' are missing: there is no {weights}", REINSTALL
        )
    if (contents := read_verified(weights, card["sha256"])) is None:
        raise CheckpointError(
            f"the weights of '{card['name']}' are not those of its card: "
            f"{weights} has another sha256",
            REINSTALL,
        )
    return weights, contents


def start_from(source: Source, model: Algorithm) -> None:
    """Copy another model's backbone into a new model; raise OptionError if it does not fit."""
    theirs, ours = source.model().backbone.state_dict(), model.backbone.state_dict()
    for key, value in ours.items():
        if key not in theirs or theirs[key].shape != value.shape:
            found = f"has shape {tuple(theirs[key].shape)}" if key in theirs else "is missing"
            raise OptionError(
                f"the backbone of '{source.name}' does not fit: "
                f"'{key}' must have shape {tuple(value.shape)}, but {found}",
                "choose the same --backbone, --backbone-... options and image size, or another --init",
            )
    model.backbone.load_state_dict({key: theirs[key] for key in ours})


def _from_file(name: str, weights: Path, contents: bytes) -> Source:
    blueprint = Blueprint.from_dict(metadata_of(contents, str(weights)), str(weights))
    return Source(name, weights, contents, blueprint)


def _from_run(name: str, folder: Path) -> Source:
    blueprint = run_folder.read_blueprint(folder)
    best = folder / run_folder.BEST
    if best.exists():
        return Source(name, best, read_weights(best), blueprint)
    if (folder / run_folder.RESULT).exists():
        raise CheckpointError(
            f"the model of the run in {folder} is gone: there is no {best}", run_folder.DAMAGED
        )
    raise CheckpointError(
        f"the run in {folder} has no model yet: it stopped before its first validation",
        f"`metazoo train --resume {shell_word(folder)}` goes on with it",
    )
