"""Pretrained models: found by name, run folder or file; verified before anything is read; loaded ready for use."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metazoo.base.algorithm import Algorithm
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.errors import CheckpointError, MetazooError, OptionError, UnknownNameError
from metazoo.io.files import read_verified
from metazoo.plugins.registry import registry
from metazoo.zoo import remote, run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.card import REINSTALL, read_card
from metazoo.zoo.weights import parse_model, parse_tensors, read_weights


@dataclass(frozen=True)
class Source:
    """A model that was found: the name to show, where its weights are, what was read there, and its blueprint.

    The weights are read once: a file, or an address, may have others later. The blueprint of a run has what only the run knows.
    """

    name: str
    weights: Path
    contents: bytes = field(repr=False)
    blueprint: Blueprint

    @property
    def sha256(self) -> str:
        """The checksum of the weights."""
        return hashlib.sha256(self.contents).hexdigest()

    def model(self, **changes: Any) -> Algorithm:
        """Return the model in eval mode; `changes` are options of the algorithm to set otherwise."""
        return parse_model(self.contents, str(self.weights), **changes)[0]

    def trained_on(self, data: Dataset) -> frozenset[str]:
        """Return the names of the classes of the model's own training, or none where they cannot be found.

        `data` are of the data set that it was trained on, perhaps with other options. A card does not say where its data lie,
        and those of a run may have gone: they are sought where these are. The classes of a model that training began with are
        not among them.
        """
        here = {
            name: getattr(data.config, name)
            for name in data.local_options
            if hasattr(data.config, name)
        }
        unsaid = {
            name: value
            for name, value in here.items()
            if self.blueprint.dataset_options.get(name) is None
        }
        for place in (unsaid, here):  # what a run says of its place may be so no more
            with contextlib.suppress(MetazooError):
                theirs = self.blueprint.data(**place)
                known = data if theirs.config == data.config else theirs
                if not isinstance(known, ClassDataset):
                    break
                # Where streams are not all read, as `folder`'s, they name the classes without the images.
                with known.streams() as streams:
                    return frozenset(streams["train"].names) if "train" in streams else frozenset()
        return frozenset()


def find(name: str | os.PathLike[str]) -> Source:
    """Return the model of that name: a run folder, a .safetensors file, a card beside it, a name of the zoo, or an address.

    An address is what `remote.find` takes: https://host/NAME.json, file:///folder/NAME.json, hf://user/repo/NAME. Raises
    UnknownNameError where there is none, CheckpointError where it is damaged or not the one its card describes.
    """
    if remote.is_address(str(name)):
        return _source(str(name), *remote.find(str(name)))
    path = Path(name)
    if path.is_dir():
        blueprint = run_folder.read_blueprint(path)
        if not (path / run_folder.BEST).exists():
            if (path / run_folder.RESULT).exists():
                raise CheckpointError(
                    f"the model of the run in {path} is gone: there is no {path / run_folder.BEST}",
                    run_folder.DAMAGED,
                )
            raise CheckpointError(
                f"the run in {path} has no model yet: it stopped before its first validation",
                f"`metazoo train --resume {path}` goes on with it",
            )
        return Source(
            str(name), path / run_folder.BEST, read_weights(path / run_folder.BEST), blueprint
        )
    is_card = path.is_file() and path.suffix == ".json"
    if path.is_file() and not is_card:
        return _source(str(name), path, read_weights(path))
    if not is_card and (path.suffix == ".safetensors" or len(path.parts) > 1):
        raise UnknownNameError(
            f"there is no run folder or model file {path}",
            "`metazoo list pretrained` shows every pretrained model",
        )
    place = path if is_card else Path(registry().card(str(name)).value)
    return _source(str(name), *weights_of(read_card(place), place.parent))


def weights_of(card: dict[str, Any], folder: Path) -> tuple[Path, bytes]:
    """Return the weights of a card: where they are, beside it or fetched from the address that it names, and what was read.

    Raises CheckpointError where they are missing or have another sha256 than the card's.
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
            f"the weights of '{card['name']}' are not those that its card describes: {weights} has another sha256",
            REINSTALL,
        )
    return weights, contents


def _source(name: str, weights: Path, contents: bytes) -> Source:
    blueprint = Blueprint.from_dict(parse_tensors(contents, str(weights))[1], str(weights))
    return Source(name, weights, contents, blueprint)


def load(name: str | os.PathLike[str], **changes: Any) -> Algorithm:
    """Return a ready model, in eval mode: of the zoo by name, of a run folder, of a .safetensors file, or of an address.

    An address is https://host/NAME.json, file:///folder/NAME.json or hf://user/repo/NAME; `#sha256=HEX` after it pins the
    weights. Weights are fetched into the cache, and none are read whose sha256 is not the one of their card.

    `changes` are options of the algorithm to set otherwise, as far as the weights still fit. The model maps
    `(support_x, support_y, query_x)`, of shapes (B, S, *), (B, S), (B, Q, *), to logits (B, Q, ways).
    Raises UnknownNameError or CheckpointError.
    """
    return find(name).model(**changes)


def start_from(source: Source, model: Algorithm) -> None:
    """Give a new model the backbone of another one, or raise OptionError where that has not all that the new one needs."""
    theirs, ours = source.model().backbone.state_dict(), model.backbone.state_dict()
    for key, value in ours.items():
        if key not in theirs or theirs[key].shape != value.shape:
            has = f"it has {tuple(theirs[key].shape)}" if key in theirs else "which it has not"
            raise OptionError(
                f"the backbone of '{source.name}' does not fit: '{key}' must be {tuple(value.shape)}, {has}",
                "choose the same --backbone with the same options (--backbone-...) and image size, or another --init",
            )
    model.backbone.load_state_dict({key: theirs[key] for key in ours})
