"""Pretrained models: found by name, run folder or file; verified before anything is read; loaded ready for use."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import remote, runs
from .algorithm import Algorithm, Recipe
from .cards import REINSTALL, read_card
from .checkpoint import Blueprint, parse_model, parse_tensors, read_weights, write_json
from .episodes import ClassDataset, Dataset
from .errors import CheckpointError, MetazooError, OptionError, UnknownNameError
from .evaluate import Protocol, measure
from .files import read_verified, write_atomically
from .options import read
from .plan import unread
from .plugins import registry


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
        here = {name: getattr(data.config, name) for name in data.local_options if hasattr(data.config, name)}
        unsaid = {name: value for name, value in here.items() if self.blueprint.dataset_options.get(name) is None}
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
        blueprint = runs.read_blueprint(path)
        if not (path / runs.BEST).exists():
            if (path / runs.RESULT).exists():
                raise CheckpointError(f"the model of the run in {path} is gone: there is no {path / runs.BEST}", runs.DAMAGED)
            raise CheckpointError(
                f"the run in {path} has no model yet: it stopped before its first validation",
                f"`metazoo train --resume {path}` goes on with it",
            )
        return Source(str(name), path / runs.BEST, read_weights(path / runs.BEST), blueprint)
    is_card = path.is_file() and path.suffix == ".json"
    if path.is_file() and not is_card:
        return _source(str(name), path, read_weights(path))
    if not is_card and (path.suffix == ".safetensors" or len(path.parts) > 1):
        raise UnknownNameError(
            f"there is no run folder or model file {path}", "`metazoo list pretrained` shows every pretrained model"
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
        raise CheckpointError(f"the weights of '{card['name']}' are missing: there is no {weights}", REINSTALL)
    if (contents := read_verified(weights, card["sha256"])) is None:
        raise CheckpointError(
            f"the weights of '{card['name']}' are not those that its card describes: {weights} has another sha256", REINSTALL
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


def export(
    run: Path, name: str, summary: str, licence: str, out: Path, protocols: Sequence[Protocol], device: Any,
    variants: Sequence[Mapping[str, Any]] = ({},), watch: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:  # fmt: skip
    """Write a run's best model and its card into a folder, and return the card.

    It is measured under each of these protocols in each of the variants: options of the algorithm to set otherwise. `watch` is
    told how many tasks are done, and of how many, where all protocols have as many.
    The layout is that of `metazoo.pretrained`: a package that holds such pairs offers them by the hook
    `register_pretrained`. Raises CheckpointError where `run` is not the folder of a finished run, and OptionError where another
    model of that name is in the folder.
    """
    blueprint = runs.read_blueprint(run)
    if not (run / runs.RESULT).exists():
        raise CheckpointError(f"the run in {run} is not finished", f"`metazoo train --resume {run}` goes on with it")
    source = find(run)
    result = runs.read_result(run)
    file = f"{name}.safetensors"
    check_free(out, name, source.sha256, "choose another --name or --out")
    data = blueprint.data()
    results: list[dict[str, Any]] = []
    parts = len(protocols) * len(variants)
    for changes in variants:
        model = source.model(**changes).to(device)
        told = {"options": dict(changes)} if changes else {}
        for protocol in protocols:

            def count(done: int, tasks: int, before: int = len(results)) -> None:
                watch(before * tasks + done, parts * tasks)

            results.append({**measure(model, data, protocol, device, count)[0], **told})
    card = {
        "name": name,
        "summary": summary,
        "weights": file,
        "sha256": source.sha256,
        "bytes": len(source.contents),
        "algorithm": blueprint.algorithm,
        "backbone": blueprint.backbone,
        "dataset": blueprint.dataset,
        "dataset_options": blueprint.portable().dataset_options,
        "licence": licence,
        "data_licence": data.licence,
        "split_sha256": data.split_sha256() if isinstance(data, ClassDataset) else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": {
            "command": command(blueprint),
            "seed": blueprint.recipe["seed"],
            "best_step": result["best_step"],
            "steps": result["steps"],
            "seconds": result["seconds"],
            "machine": result["machine"],
            "metazoo": result["metazoo"],
            "commit": result.get("commit"),
            "init_sha256": result.get("init_sha256"),
        },
        "results": results,
    }
    write_atomically(out / file, source.contents)
    write_json(out / f"{name}.json", card)
    return card


def check_free(folder: Path, name: str, sha256: str, elsewhere: str) -> None:
    """Raise OptionError where a folder has another model of that name, or a file that is no card in its card's place.

    Where there is a card, it alone decides: damaged weights are mended by writing them again.
    """
    card, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    hint = f"{elsewhere}, or move it away"
    if not card.exists():
        if weights.exists() and read_verified(weights, sha256) is None:
            raise OptionError(f"{weights} exists and is another model's", hint)
        return
    try:
        there = read_card(card)
    except CheckpointError as error:
        raise OptionError(f"{card} exists and is no model card", hint) from error
    if there["name"] != name or there["sha256"] != sha256:
        other = "another model of that name" if there["name"] == name else f"the model '{there['name']}'"
        raise OptionError(f"{card} exists and is {other}", hint)


def command(blueprint: Blueprint) -> str:
    """Return the command that trains what a blueprint describes, without what holds for one machine alone."""
    blueprint = blueprint.portable()
    algorithm = registry().algorithm(blueprint.algorithm).value
    dataset = registry().dataset(blueprint.dataset).value
    backbone = registry().backbone(blueprint.backbone).value
    recipe = {**algorithm.recipe, **dataset.recipe}
    nothing = unread(algorithm.draws, blueprint.recipe.get("schedule", Recipe.schedule))
    words = ["metazoo", "train", blueprint.algorithm, "--dataset", blueprint.dataset]
    for prefix, config, given in (
        ("", algorithm.Config, blueprint.algorithm_options),
        ("data-", dataset.Config, blueprint.dataset_options),
        ("backbone-", backbone.Config, blueprint.backbone_options),
        ("", Recipe, blueprint.recipe),
    ):
        for option in read(config):
            usual = recipe.get(option.name, option.default) if config is Recipe else option.default
            if config is Recipe and option.name.startswith("train_") and usual is None:
                usual = blueprint.recipe[option.name.removeprefix("train_")]
            value = given.get(option.name, usual)
            if value == usual or (config is Recipe and option.name in nothing):
                continue
            flag = prefix + option.name.replace("_", "-")
            if option.type is bool:
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", "none" if value is None else str(value)]
    return shlex.join(words)
