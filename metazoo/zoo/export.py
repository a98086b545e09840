"""A run's best model as a zoo model: weights and a card of measured results."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metazoo.base.dataset import ClassDataset
from metazoo.base.recipe import Recipe, unread
from metazoo.errors import CheckpointError, OptionError
from metazoo.evaluation.measure import measure
from metazoo.evaluation.protocol import Protocol
from metazoo.io.files import read_verified, write_atomically, write_json
from metazoo.options import read
from metazoo.plugins.registry import registry
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.card import read_card
from metazoo.zoo.find import find


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
    blueprint = run_folder.read_blueprint(run)
    if not (run / run_folder.RESULT).exists():
        raise CheckpointError(
            f"the run in {run} is not finished", f"`metazoo train --resume {run}` goes on with it"
        )
    source = find(run)
    result = run_folder.read_result(run)
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
        other = (
            "another model of that name"
            if there["name"] == name
            else f"the model '{there['name']}'"
        )
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
