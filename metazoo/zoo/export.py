"""Make a zoo model of a run: its weights, and a card with measured results."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metazoo.base.algorithm import BatchLearner
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.recipe import Recipe, unread_options
from metazoo.errors import CheckpointError, DataError, OptionError
from metazoo.evaluation.measure import measure
from metazoo.evaluation.protocol import Protocol
from metazoo.io.files import locked, read_verified, write_atomically
from metazoo.options import Option, as_dict, read
from metazoo.plugins.registry import registry
from metazoo.quoting import shell_word
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint, is_local_path
from metazoo.zoo.card import card_text, read_card
from metazoo.zoo.find import find
from metazoo.zoo.overrides import check_effect
from metazoo.zoo.source import Source


def export(
    run: Path,
    name: str,
    summary: str,
    licence: str,
    out: Path,
    protocols: Sequence[Protocol],
    device: torch.device | str,
    variants: Sequence[Mapping[str, Any]] = ({},),
    watch: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Write a run's best model and its card into a folder, and return the card.

    A package that holds such pairs offers them by the hook `register_pretrained`.

    Args:
        run: the folder of a finished run.
        name: ALGORITHM.TAG.
        summary: a sentence for the card.
        licence: the licence of the weights.
        out: the folder to write to.
        protocols: what to measure.
        device: where to measure.
        variants: options of the algorithm to override; each protocol is measured with each variant.
        watch: called with the number of tasks done and of all tasks.

    Raises:
        CheckpointError: if the run is not finished.
        OptionError: if `out` has another model of that name, or the model needs a file of this
            machine.
    """
    blueprint = run_folder.read_blueprint(run)
    if not (run / run_folder.RESULT).exists():
        raise CheckpointError(
            f"the run in {run} is not finished",
            f"`metazoo train --resume {shell_word(run)}` goes on with it",
        )
    _check_portable(blueprint)
    source, result = find(run), run_folder.read_result(run)
    elsewhere = "choose another --name or --out"
    check_free(out, name, source.sha256, elsewhere)  # now, and again after the measurements
    data = blueprint.data()
    if change := blueprint.changed(data):
        raise DataError(
            f"the data are not those that the run in {run} was trained on: {change}",
            "restore them: on other data, a test class may be one that the model was trained on",
        )
    measured = list(_measure_all(source, data, protocols, variants, device, watch))
    card = {
        **_describe(name, summary, licence, source, data),
        "training": _training(blueprint, result),
        "results": measured,
    }
    write_model(out, card, source.contents, elsewhere)
    return card


def write_model(folder: Path, card: Mapping[str, Any], weights: bytes, elsewhere: str) -> None:
    """Write a model's weights and its card into a folder, where several processes may do so.

    Raises OptionError if the folder has another model of that name; `elsewhere` is for the hint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):
        check_free(folder, card["name"], card["sha256"], elsewhere)
        # Weights first: a reader in between finds a card that does not match, not an unmeasured
        # model.
        write_atomically(folder / card["weights"], weights)
        write_atomically(folder / f"{card['name']}.json", card_text(card))


def check_free(folder: Path, name: str, sha256: str, elsewhere: str) -> None:
    """Raise OptionError if a folder has another model of that name, or a file in the card's place.

    If there is a card, only the card counts: writing the weights again repairs damaged ones.
    """
    card, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    hint = f"{elsewhere}, or move it away"
    if not card.exists():
        if weights.exists() and read_verified(weights, sha256) is None:
            raise OptionError(f"{weights} exists and belongs to another model", hint)
        return
    try:
        found = read_card(card)
    except CheckpointError as error:
        raise OptionError(f"{card} exists and is not a model card", hint) from error
    if found["name"] != name or found["sha256"] != sha256:
        other = (
            "another model of that name" if found["name"] == name else f"model '{found['name']}'"
        )
        raise OptionError(f"{card} exists and describes {other}", hint)


def _check_portable(blueprint: Blueprint) -> None:
    for owner, values in (
        (f"algorithm '{blueprint.algorithm}'", blueprint.algorithm_options),
        (f"backbone '{blueprint.backbone}'", blueprint.backbone_options),
    ):
        for name, value in values.items():
            if is_local_path(value):
                raise OptionError(
                    f"option '{name}' of {owner} is {value}, which no other machine has",
                    "an exported model must load anywhere: use an encoder of the Hub, train it with "
                    "a relative path, or ask the author of the plugin to keep what it needs in the "
                    "weights",
                )


def command(blueprint: Blueprint) -> str:
    """Return the command that trains a blueprint, without the options for this machine only.

    DATA_ROOT, or DATA_ and the name of another option, stands for a path of this machine.
    """
    given, blueprint = blueprint.dataset_options, blueprint.portable()
    algorithm = registry().algorithm(blueprint.algorithm).value
    dataset = registry().dataset(blueprint.dataset).value
    backbone = registry().backbone(blueprint.backbone).value
    words = ["metazoo", "train", blueprint.algorithm, "--dataset", blueprint.dataset]
    for prefix, config, values in (
        ("", algorithm.Config, blueprint.algorithm_options),
        ("data-", dataset.Config, blueprint.dataset_options),
        ("backbone-", backbone.Config, blueprint.backbone_options),
    ):
        for option in read(config):
            words += _flag(prefix, option, values.get(option.name, option.default), option.default)
    for name in sorted(set(given) - set(blueprint.dataset_options)):
        if is_local_path(given[name]):
            words += [f"--data-{name.replace('_', '-')}", f"DATA_{name.upper()}"]
    ignored = unread_options(issubclass(algorithm, BatchLearner))
    recipe = as_dict(blueprint.recipe)
    usual = {**as_dict(Recipe()), **algorithm.recipe, **dataset.recipe}
    for name in ("train_ways", "train_shots", "train_queries"):
        usual[name] = usual[name] or recipe[name.removeprefix("train_")]
    for option in read(Recipe):
        if option.name not in ignored:
            words += _flag("", option, recipe[option.name], usual[option.name])
    return shlex.join(words)


def _flag(prefix: str, option: Option, value: Any, usual: Any) -> list[str]:
    if value == usual:
        return []
    flag = prefix + option.name.replace("_", "-")
    if option.type is bool:
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", "none" if value is None else str(value)]


def _measure_all(
    source: Source,
    data: Dataset,
    protocols: Sequence[Protocol],
    variants: Sequence[Mapping[str, Any]],
    device: torch.device | str,
    watch: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    parts, finished = len(protocols) * len(variants), 0
    for changes in variants:
        model = source.model(**changes).to(device)
        check_effect(source.model, source.blueprint, changes, protocols[0].tasks(data)[0])
        changed = {"options": dict(changes)} if changes else {}
        for protocol in protocols:

            def count(done: int, tasks: int, before: int = finished) -> None:
                watch(before * tasks + done, parts * tasks)

            yield {**measure(model, data, protocol, device, count)[0], **changed}
            finished += 1


def _describe(
    name: str, summary: str, licence: str, source: Source, data: Dataset
) -> dict[str, Any]:
    blueprint = source.blueprint
    return {
        "name": name,
        "summary": summary,
        "weights": f"{name}.safetensors",
        "sha256": source.sha256,
        "bytes": len(source.contents),
        "algorithm": blueprint.algorithm,
        "backbone": blueprint.backbone,
        "dataset": blueprint.dataset,
        "dataset_options": blueprint.portable().dataset_options,
        "licence": licence,
        "data_licence": data.licence,
        "split_sha256": data.split_sha256() if isinstance(data, ClassDataset) else None,
        "parameters": sum(p.numel() for p in source.model().parameters()),
    }


def _training(blueprint: Blueprint, result: Mapping[str, Any]) -> dict[str, Any]:
    from_result = ("best_step", "steps", "seconds", "machine", "metazoo")
    return {
        "command": command(blueprint),
        "seed": blueprint.recipe.seed,
        **{key: result[key] for key in from_result},
        "commit": result.get("commit"),
        "init_sha256": result.get("init_sha256"),
    }
