"""`metazoo eval`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import click
import torch

from metazoo import options
from metazoo.cli import echo_json
from metazoo.cli.configured import ConfiguredCommand, Section, data_section, find_value
from metazoo.cli.tables import print_results, table, task_text, value_text
from metazoo.episodes import ClassDataset, Dataset
from metazoo.errors import MetazooError, OptionError
from metazoo.evaluate import Protocol, Score, measure
from metazoo.plugins import registry
from metazoo.train import find_device
from metazoo.zoo import Source, find


class EvalCommand(ConfiguredCommand):
    def sections(self, arguments: Sequence[str]) -> list[Section]:
        name = find_value(arguments, "--dataset") or _first_dataset(arguments)
        return [data_section(name)] if name else []


def _first_dataset(arguments: Sequence[str]) -> str | None:
    """Return the data set of the first argument that is a model; what is none is reported when the command runs."""
    for argument in arguments:
        if not argument.startswith("-"):
            try:
                return find(argument).blueprint.dataset
            except (MetazooError, OSError):
                continue
    return None


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers of at least 1, separated by commas."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        option = options.Option("number", int, 1, range=options.Range(1))
        try:
            return tuple(option.parse(part.strip()) for part in str(value).split(","))
        except OptionError:
            flag = param.opts[0] if param else "this option"
            raise OptionError(f"{flag} cannot be '{value}'", "it takes whole numbers, separated by commas: 1,5") from None


@click.command("eval", cls=EvalCommand)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--ways", type=Numbers(), help="classes in a task; several give a table  [default: as trained for]")
@click.option("--shots", type=Numbers(), help="support examples a class; several give a table  [default: as trained for]")
@click.option("--queries", type=click.IntRange(1), help="query examples a class  [default: as trained for]")
@click.option("--episodes", type=click.IntRange(2), help="tasks to draw  [default: 1000]")
@click.option("--seed", type=click.IntRange(0), help="seed of the tasks; one seed gives every model the same  [default: 0]")
@click.option("--split", default="test", show_default=True, help="part of the data set to draw from")
@click.option("--protocol", help="an official protocol of the data set instead (omniglot has one-shot-challenge)")
@click.option("--dataset", help="data set to draw from  [default: the model's own]")
@click.option("-o", "--option", "changes", multiple=True, metavar="NAME=VALUE", help="set an option of the algorithm otherwise")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
def eval_(
    models: tuple[str, ...], ways: tuple[int, ...] | None, shots: tuple[int, ...] | None, queries: int | None,
    episodes: int | None, seed: int | None, split: str, protocol: str | None, dataset: str | None,
    changes: tuple[str, ...], device: str, as_json: bool, dataset_options: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Evaluate models: run folders, .safetensors files or names of the zoo.

    Two models or more are given the same tasks, and the difference of each to the first is reported with its interval.
    """
    sources = [find(name) for name in models]
    place = find_device(device)
    first = sources[0].blueprint
    rows: list[dict[str, Any]] = []
    values: list[list[torch.Tensor]] = []
    data: Dataset | None = None
    for source in sources:
        if data is None or dataset is None:
            data = _data(source, dataset, dataset_options or {}, data if source.blueprint.dataset == first.dataset else None)
        _check_input(source, data)
        model = _model(source, changes).to(place)
        recipe = first.recipe
        grid = itertools.product(ways or (recipe["ways"],), shots or (recipe["shots"],))
        if data.regression or protocol:
            grid = itertools.product((0,), (shots or (recipe["shots"],))[: 1 if protocol else None])
        values.append([])
        for way, shot in grid:
            key = recipe["seed"] if seed is None else seed
            drawn = Protocol(split, way, shot, queries or recipe["queries"], key, episodes or 1000, protocol)
            result, scores = measure(model, data, drawn, place)
            rows.append({"model": source.name, "data": dataset or source.blueprint.dataset, **result})
            values[-1].append(scores)
    differences = _differences(sources, rows, values)
    if as_json:
        echo_json({"results": rows, "differences": differences})
        return
    print_results(rows)
    if differences:
        cells = [(f"{d['model']} - {d['minus']}", task_text(d), value_text(d), str(d["tasks"])) for d in differences]
        click.echo("\n" + table(("paired difference", "task", "mean ± 95 %", "tasks"), cells))


def _data(source: Source, name: str | None, given: dict[str, Any], before: Dataset | None) -> Dataset:
    """Return the data set to draw from, the one before if it is the same."""
    blueprint = source.blueprint
    if name is not None and name != blueprint.dataset:
        blueprint = dataclasses.replace(blueprint, dataset=name, dataset_options={})
        size = source.blueprint.input_format.get("size")
        fields = {option.name for option in options.read(registry().dataset(name).value.Config)}
        if size is not None and "size" in fields and "size" not in given:
            given = {**given, "size": size}
    data = blueprint.data(**given)
    return before if before is not None and before.config == data.config else data


def _check_input(source: Source, data: Dataset) -> None:
    """Raise OptionError where a model cannot take a data set's examples."""
    spec = source.blueprint.spec
    if data.regression != spec.regression:
        kinds = ("classification", "regression")
        raise OptionError(f"'{source.name}' is a {kinds[spec.regression]} model, the data are for {kinds[data.regression]}")
    if isinstance(data, ClassDataset):
        shape = tuple(next(iter(data.splits.values())).x.shape[1:])
        if shape != spec.input_shape:
            raise OptionError(
                f"'{source.name}' takes examples of shape {spec.input_shape}, those of {type(data).__name__} have {shape}",
                "choose the data set's image size and channels (--data-...) to fit, or another model",
            )


def _model(source: Source, changes: Sequence[str]) -> Any:
    config = registry().algorithm(source.blueprint.algorithm).value.Config
    owner = f"algorithm '{source.blueprint.algorithm}'"
    return source.model(**options.parse_assignments(config, changes, owner))


def _differences(
    sources: Sequence[Source], rows: Sequence[dict[str, Any]], values: Sequence[Sequence[torch.Tensor]]
) -> list[dict[str, Any]]:
    """Return the mean of each model's score less the first one's on the same task, with its interval."""
    cells = len(values[0])
    result = []
    for i, source in enumerate(sources[1:], start=1):
        for j in range(cells):
            ours, base = rows[i * cells + j], rows[j]
            if ours["data"] != base["data"] or len(values[i][j]) != len(values[0][j]):
                continue
            paired = Score.of(values[i][j] - values[0][j])
            task: dict[str, Any] = {
                key: base[key] for key in ("protocol", "split", "ways", "shots", "queries", "seed") if key in base
            }
            result.append(
                {"model": source.name, "minus": sources[0].name, "metric": base["metric"], **paired.as_dict(), **task}
            )
    return result
