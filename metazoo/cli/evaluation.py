"""`metazoo eval`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from metazoo import distributed, options
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.cli import echo_json
from metazoo.cli.configured import (
    ConfiguredCommand,
    Section,
    algorithm_values,
    data_section,
    find_value,
)
from metazoo.cli.memory import keep_freed_memory
from metazoo.cli.precision import float32_is_float32
from metazoo.cli.progress import counted
from metazoo.cli.rechecking import Data, recheck_all
from metazoo.cli.tables import print_results, table, task_text, value_text
from metazoo.device import find_device
from metazoo.errors import MetazooError, OptionError
from metazoo.evaluation.measure import measure
from metazoo.evaluation.protocol import Protocol
from metazoo.evaluation.score import Score
from metazoo.plugins.registry import registry
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.find import Source, find

EPISODES = 1000


@dataclass(frozen=True)
class Measured:
    """One model's results: for each kind of task its row and the score of every task."""

    source: Source
    data: Dataset
    cells: list[tuple[dict[str, Any], torch.Tensor]]


class EvalCommand(ConfiguredCommand):
    def sections(self, arguments: Sequence[str]) -> list[Section]:
        if "--all" in arguments:
            return [Section("dataset_options", "Options of the data", "data-", Data, {})]
        name = find_value(arguments, "--dataset")
        model = _first_model(arguments)
        if model is not None and name in (None, model.dataset):
            return [data_section(model.dataset, model.dataset_options)]
        return [data_section(name)] if name else []


def _first_model(arguments: Sequence[str]) -> Blueprint | None:
    """Return the blueprint of the first argument that is a model; what is none is reported when the command runs."""
    for argument in arguments:
        if not argument.startswith("-"):
            try:
                return _find(argument).blueprint
            except (MetazooError, OSError):
                continue
    return None


def _find(name: str) -> Source:
    """Return the model of that name, found once in a command: what its options came from is what is evaluated."""
    found: dict[str, Source] = click.get_current_context().meta.setdefault("models", {})
    if name not in found:
        found[name] = find(name)
    return found[name]


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers of at least `low`, separated by commas."""

    name = "n,n,..."

    def __init__(self, low: int):
        self.low = low

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        option = options.Option("number", int, self.low, range=options.Range(self.low))
        try:
            return tuple(option.parse(part.strip()) for part in str(value).split(","))
        except OptionError:
            flag = param.opts[0] if param else "this option"
            takes = (
                f"it takes whole numbers of at least {self.low}, separated by commas: {self.low},5"
            )
            raise OptionError(f"{flag} cannot be '{value}'", takes) from None


@click.command("eval", cls=EvalCommand)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="every model of the zoo instead: what its card says, and what it gives now",
)
@click.option(
    "--ways",
    type=Numbers(2),
    help="classes in a task; several give a table  [default: as trained for]",
)
@click.option(
    "--shots",
    type=Numbers(1),
    help="support examples a class; several give a table  [default: as trained for]",
)
@click.option(
    "--queries", type=click.IntRange(1), help="query examples a class  [default: as trained for]"
)
@click.option("--episodes", type=click.IntRange(2), help=f"tasks to draw  [default: {EPISODES}]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    help="seed of the tasks  [default: as the first model's run]",
)
@click.option("--split", help="part of the data set to draw from  [default: test]")
@click.option(
    "--protocol",
    help="an official protocol of the data set instead (omniglot has one-shot-challenge)",
)
@click.option("--dataset", help="data set to draw from  [default: the model's own]")
@click.option(
    "-o",
    "--option",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="set an option of the algorithm otherwise",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
@distributed.joined()
def eval_(
    models: tuple[str, ...], every: bool, ways: tuple[int, ...] | None, shots: tuple[int, ...] | None, queries: int | None,
    episodes: int | None, seed: int | None, split: str | None, protocol: str | None, dataset: str | None,
    changes: tuple[str, ...], device: str, as_json: bool, dataset_options: dict[str, Any] | None = None,
) -> int | None:  # fmt: skip
    """Evaluate models: run folders, .safetensors files, names of the zoo or addresses (https://.../NAME.json, hf://user/repo).

    Models of the same data are given the same tasks, and the difference of each to the first is reported with its
    interval. The --data-... options are those of the first model's data set, shown by `metazoo eval MODEL --help`: --data-root
    says where the data lie.

    With --all the zoo is measured again on the tasks of its cards, or on the first --episodes of them: the exit status is 0
    if every interval overlaps the card's. That of fewer tasks is taken to be as wide as the card's spread makes it.
    """
    if every:
        others = (ways, shots, queries, seed, split, protocol, dataset)
        if models or changes or any(given is not None for given in others):
            raise OptionError(
                "--all takes every model as its card has it",
                "only --data-root, --episodes, --device and --json go with it",
            )
        keep_freed_memory()
        float32_is_float32()
        return recheck_all(
            (dataset_options or {}).get("root"), episodes, find_device(device), as_json
        )
    if not models:
        raise click.UsageError("Missing argument 'MODEL...'", click.get_current_context())
    if protocol and any(
        given is not None for given in (ways, shots, queries, episodes, seed, split)
    ):
        raise OptionError(
            "--protocol brings tasks of its own",
            "leave out --ways, --shots, --queries, --episodes, --seed and --split",
        )
    keep_freed_memory()
    float32_is_float32()
    sources = [_find(name) for name in models]
    place = find_device(device)
    measured: list[Measured] = []
    of_their_own: list[tuple[Source, Dataset, Protocol]] = []
    for source in sources:
        # Models of the same data are given the first one's tasks; one of other data has tasks of its own.
        same = dataset is not None or source.blueprint.dataset == sources[0].blueprint.dataset
        recipe = (sources[0] if same else source).blueprint.recipe
        given = dataset_options or {}
        if given and not same:
            # They were offered as options of the first model's data set; another's may have the same names for other things.
            click.echo(
                f"note: the options of {sources[0].blueprint.dataset} are not used for '{source.name}'",
                err=True,
            )
            given = {}
        data = _data(source, dataset, given, measured[-1].data if measured else None)
        if data.regression and ways:
            raise OptionError(
                "--ways means nothing here: tasks of regression have no classes", "leave it out"
            )
        _check_input(source, data)
        changed = algorithm_values(source.blueprint.algorithm, changes)
        model = source.model(**changed).to(place)
        told = {"options": changed} if changed else {}
        title = dataset or source.blueprint.dataset
        cells = []
        grid = itertools.product(
            (0,) if data.regression else ways or (recipe.ways,), shots or (recipe.shots,)
        )
        for way, shot in [(0, 0)] if protocol else grid:
            key = recipe.seed if seed is None else seed
            drawn = Protocol(
                split or "test",
                way,
                shot,
                queries or recipe.queries,
                key,
                episodes or EPISODES,
                protocol,
            )
            with counted(
                f"{source.name}, {protocol or f'{shot}-shot' if not way else f'{way}-way {shot}-shot'}"
            ) as watch:
                result, scores = measure(model, data, drawn, place, watch)
            row = {
                "model": source.name,
                "data": title,
                "data_options": _fixed(data),
                **result,
                **told,
            }
            cells.append((row, scores))
        if title == source.blueprint.dataset:
            of_their_own.append((source, data, drawn))
        measured.append(Measured(source, data, cells))
    rows = [row for one in measured for row, _ in one.cells]
    differences = _differences(measured)
    if as_json:
        echo_json({"results": rows, "differences": differences})
    else:
        print_results([{**row, "data": _data_text(row)} for row in rows])
        if differences:
            lines = [
                (f"{d['model']} - {d['minus']}", task_text(d), value_text(d), str(d["tasks"]))
                for d in differences
            ]
            click.echo("\n" + table(("paired difference", "task", "mean ± 95 %", "tasks"), lines))
    # Last: whatever goes wrong with a remark, the results are there.
    for source, data, drawn in of_their_own:
        _tell_of_training(source, data, drawn)
    return None


def _data(
    source: Source, name: str | None, given: dict[str, Any], before: Dataset | None
) -> Dataset:
    """Return the data set to draw from, the one before if it is the same."""
    blueprint = source.blueprint
    if name is not None and name != blueprint.dataset:
        blueprint = dataclasses.replace(blueprint, dataset=name, dataset_options={})
        size = source.blueprint.input_format.get("size")
        fields = {option.name for option in options.read(registry().dataset(name).value.Config)}
        if size is not None and "size" in fields and "size" not in given:
            given = {**given, "size": size}
    data = blueprint.data(**given)
    return (
        before
        if before is not None and type(before) is type(data) and before.config == data.config
        else data
    )


def _tell_of_training(source: Source, data: Dataset, drawn: Protocol) -> None:
    """Say on stderr that a model was trained on classes with the names of those that it is measured on."""
    classes = drawn.classes(data)
    if known := len(source.trained_on(data).intersection(classes)):
        click.echo(
            f"note: these tasks are of {len(classes)} classes, and '{source.name}' was trained on {known} of the same names: "
            "this is no result for new classes", err=True,
        )  # fmt: skip


def _check_input(source: Source, data: Dataset) -> None:
    """Raise OptionError where a model cannot take a data set's examples."""
    spec = source.blueprint.spec
    if data.regression != spec.regression:
        kinds = ("classification", "regression")
        raise OptionError(
            f"'{source.name}' is a {kinds[spec.regression]} model, the data are for {kinds[data.regression]}",
            "choose another --dataset, or another model",
        )
    if isinstance(data, ClassDataset):
        shape = tuple(next(iter(data.splits.values())).x.shape[1:])
        if shape != spec.input_shape:
            raise OptionError(
                f"'{source.name}' takes examples of shape {spec.input_shape}, those of {type(data).__name__} have {shape}",
                "choose the data set's image size and channels (--data-...) to fit, or another model",
            )


def _differences(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return the mean of each model's score less the first one's on the same task, with its interval."""
    first, *others = measured
    result: list[dict[str, Any]] = []
    for one in others:
        if not _same_tasks(one.data, first.data, first.cells[0][0].get("split")):
            names = f"'{first.source.name}' and '{one.source.name}'"
            split = first.cells[0][0].get("split")
            differ = _other_options(first.data, one.data, split) or first.data.local_options
            flags = (
                [f"--data-{name.replace('_', '-')}" for name in differ]
                if type(one.data) is type(first.data)
                else []
            )
            hint = f"{' and '.join(flags or ['--dataset'])} can give both the same"
            click.echo(
                f"note: {names} have different data, so there is no paired difference; {hint}",
                err=True,
            )
            continue
        for (_, ours), (row, base) in zip(one.cells, first.cells):
            task: dict[str, Any] = {
                key: row[key]
                for key in ("protocol", "split", "ways", "shots", "queries", "seed")
                if key in row
            }
            paired = Score.of(ours - base).as_dict()
            result.append(
                {
                    "model": one.source.name,
                    "minus": first.source.name,
                    "metric": row["metric"],
                    **paired,
                    **task,
                }
            )
    return result


def _same_tasks(a: Dataset, b: Dataset, split: str | None) -> bool:
    """Return whether two data sets give the same tasks of a split, though perhaps from another place or in another size."""
    if type(a) is not type(b) or _other_options(a, b, split):
        return False
    if isinstance(a, ClassDataset) and isinstance(b, ClassDataset):
        parts = [split] if split in a.splits else [part for part in a.splits if part != "train"]
        return all(_classes(a, part) == _classes(b, part) for part in parts)
    return True


def _other_options(a: Dataset, b: Dataset, split: str | None) -> list[str]:
    """Return the names of the options that make the tasks of a split differ between two configurations of a data set."""
    free = {*a.input_format, *(a.training_options if split != "train" else ())}
    ours, theirs = _fixed(a), _fixed(b)
    return [name for name in ours if name not in free and ours[name] != theirs.get(name)]


def _fixed(data: Dataset) -> dict[str, Any]:
    """Return the options of a data set, but those that say where the data lie."""
    return {
        name: value
        for name, value in options.as_dict(data.config).items()
        if name not in data.local_options
    }


def _data_text(row: dict[str, Any]) -> str:
    """Return the data set of a row with those of its options that are not as usual."""
    usual = {
        option.name: option.default
        for option in options.read(registry().dataset(row["data"]).value.Config)
    }
    return " ".join(
        [
            row["data"],
            *(
                f"{name}={value}"
                for name, value in row["data_options"].items()
                if value != usual[name]
            ),
        ]
    )


def _classes(data: ClassDataset, split: str) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    examples = data.splits.get(split)
    return (examples.names, examples.counts) if examples is not None else None
