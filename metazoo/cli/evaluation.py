"""`metazoo eval`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import click

from metazoo import options
from metazoo.cli import echo_json, echo_notes
from metazoo.cli.configured import (
    ConfiguredCommand,
    Section,
    algorithm_values,
    data_section,
    find_value,
)
from metazoo.cli.numbers import Number, Numbers
from metazoo.cli.process import keep_freed_memory, use_float32
from metazoo.errors import MetazooError, OptionError
from metazoo.io.files import is_same_place

if TYPE_CHECKING:
    import torch

    from metazoo.base.dataset import Dataset
    from metazoo.cli.comparison import Measured
    from metazoo.evaluation.protocol import Protocol
    from metazoo.zoo.blueprint import Blueprint
    from metazoo.zoo.source import Source

EPISODES = 1000


@dataclass(frozen=True)
class AllData(options.Config):
    """The option of every data set that is read from files."""

    root: Annotated[
        str | None, "folder of the data  [default: $METAZOO_DATA, else download to the cache]"
    ] = None


@dataclass(frozen=True)
class Request:
    """What to evaluate on. None stands for the model's own value."""

    ways: tuple[int, ...] | None
    shots: tuple[int, ...] | None
    queries: int | None
    episodes: int | None
    seed: int | None
    split: str | None
    protocol: str | None
    dataset: str | None

    @property
    def sets_tasks(self) -> bool:
        """Whether any property of drawn tasks was given, other than their number."""
        return any(
            x is not None for x in (self.ways, self.shots, self.queries, self.seed, self.split)
        )

    def protocols(self, blueprint: Blueprint, data: Dataset) -> Iterator[Protocol]:
        """Yield the protocols to measure. The recipe of `blueprint` supplies what was not given."""
        from metazoo.evaluation.protocol import Protocol

        recipe = blueprint.recipe
        if self.protocol is not None:
            yield Protocol(name=self.protocol)
            return
        ways = (0,) if data.regression else self.ways or (recipe.ways,)
        for way, shot in itertools.product(ways, self.shots or (recipe.shots,)):
            yield Protocol(
                self.split or "test",
                way,
                shot,
                self.queries or recipe.queries,
                recipe.seed if self.seed is None else self.seed,
                self.episodes or EPISODES,
            )


class EvalCommand(ConfiguredCommand):
    def sections(self, arguments: Sequence[str]) -> list[Section]:
        if "--all" in arguments:
            return [Section("dataset_options", "Options of the data", "data-", AllData, {})]
        name = find_value(arguments, "--dataset")
        model = _first_model(arguments)
        if model is not None and model.dataset and name in (None, model.dataset):
            return [data_section(model.dataset, model.dataset_options)]
        return [data_section(name)] if name else []


@click.command("eval", cls=EvalCommand)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="evaluate every pretrained model and compare it with its card",
)
@click.option(
    "--ways", type=Numbers(2), help="classes per task; several give a table  [default: as trained]"
)
@click.option(
    "--shots",
    type=Numbers(1),
    help="support examples per class; several give a table  [default: as trained]",
)
@click.option("--queries", type=Number(1), help="query examples per class  [default: as trained]")
@click.option("--episodes", type=Number(2), help=f"tasks to draw  [default: {EPISODES}]")
@click.option(
    "--seed",
    type=Number(0, 2**63 - 1),
    help="seed of the tasks  [default: the first model's]",
)
@click.option("--split", help="split of the data set to draw from  [default: test]")
@click.option(
    "--protocol", help="official protocol of the data set (omniglot has one-shot-challenge)"
)
@click.option("--dataset", help="data set to draw from  [default: the model's own]")
@click.option(
    "-o",
    "--option",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="override an option of the algorithm",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "as_json", is_flag=True, help="print the results as JSON")
def eval_(
    models: tuple[str, ...],
    every: bool,
    changes: tuple[str, ...],
    device: str,
    as_json: bool,
    dataset_options: dict[str, Any] | None = None,
    **request: Any,
) -> int | None:
    """Evaluate models: zoo names, run folders, .safetensors files or addresses.

    An address is https://.../NAME.json or hf://user/repo. Models of the same data set are measured
    on the same tasks, and the difference of each to the first is printed with its interval.
    `metazoo eval MODEL --help` shows the options of the model's data set (--data-...).

    With --all, every pretrained model is measured on the tasks of its card, or on the first
    --episodes of them. The exit status is 0 if every interval overlaps the card's.
    """
    wanted, given = Request(**request), dataset_options or {}
    _check_request(models, every, changes, wanted)
    from metazoo import distributed
    from metazoo.device import find_device

    keep_freed_memory()
    use_float32()
    with distributed.joined():
        if every:
            from metazoo.cli.rechecking import recheck_all

            return recheck_all(given.get("root"), wanted.episodes, find_device(device), as_json)
        sources = [_find(name) for name in models]
        measured = _measure(sources, wanted, given, changes, find_device(device))
        _print(measured, as_json)
        # This comes last, so that a failure here costs no results.
        for one in measured:
            if one.rows[0]["data"] == one.source.blueprint.dataset:
                _warn_of_known_classes(one)
    return None


def _check_request(
    models: tuple[str, ...], every: bool, changes: tuple[str, ...], wanted: Request
) -> None:
    if every and (models or changes or wanted.sets_tasks or wanted.protocol or wanted.dataset):
        raise OptionError(
            "--all evaluates every model as its card says",
            "only --data-root, --episodes, --device and --json go with it",
        )
    if not every and not models:
        raise click.UsageError("Missing argument 'MODEL...'", click.get_current_context())
    if wanted.protocol and (wanted.sets_tasks or wanted.episodes is not None):
        raise OptionError(
            "--protocol has its own tasks",
            "leave out --ways, --shots, --queries, --episodes, --seed and --split",
        )


def _first_model(arguments: Sequence[str]) -> Blueprint | None:
    """Return the blueprint of the first argument that is a model. Errors are reported later."""
    for argument in arguments:
        if not argument.startswith("-"):
            try:
                return _find(argument).blueprint
            except (MetazooError, OSError):
                continue
    return None


def _find(name: str) -> Source:
    """Return a model. A command finds it once, so its options and weights are from one file."""
    from metazoo.zoo.find import find

    found: dict[str, Source] = click.get_current_context().meta.setdefault("models", {})
    if name not in found:
        found[name] = find(name)
    return found[name]


def _measure(
    sources: Sequence[Source],
    wanted: Request,
    given: dict[str, Any],
    changes: tuple[str, ...],
    device: torch.device,
) -> list[Measured]:
    measured: list[Measured] = []
    first = sources[0].blueprint
    for source in sources:
        # Models of the same data share the first one's tasks; others have tasks of their own.
        same = wanted.dataset is not None or source.blueprint.dataset == first.dataset
        if given and not same:
            # The flags were those of the first model's data set, and may mean other things here.
            click.echo(
                f"note: the options of {first.dataset} are not used for '{source.name}'", err=True
            )
        before = measured[-1].data if measured else None
        data = _open_data(source, wanted.dataset, given if same else {}, before)
        if data is not before:
            echo_notes(data)
        _check_input(source, data, wanted)
        protocols = list(wanted.protocols(first if same else source.blueprint, data))
        measured.append(_measure_one(source, data, protocols, wanted.dataset, changes, device))
    return measured


def _measure_one(
    source: Source,
    data: Dataset,
    protocols: list[Protocol],
    dataset: str | None,
    changes: tuple[str, ...],
    device: torch.device,
) -> Measured:
    from metazoo.cli.comparison import Measured
    from metazoo.cli.progress import measurement_progress
    from metazoo.cli.tables import task_text
    from metazoo.evaluation.measure import measure
    from metazoo.zoo.overrides import check_effect

    changed = algorithm_values(source.blueprint.algorithm, changes)
    model = source.model(**changed).to(device)
    check_effect(source.model, source.blueprint, changed, protocols[0].tasks(data)[0])
    about = {
        "model": source.name,
        "data": dataset or source.blueprint.dataset,
        "data_options": _fixed_options(data),
    }
    rows, scores = [], []
    for protocol in protocols:
        with measurement_progress(f"{source.name}, {task_text(protocol.as_dict(data))}") as watch:
            result, values = measure(model, data, protocol, device, watch)
        rows.append({**about, **result, **({"options": changed} if changed else {})})
        scores.append(values)
    return Measured(source, data, protocols, rows, scores)


def _open_data(
    source: Source, name: str | None, given: dict[str, Any], before: Dataset | None
) -> Dataset:
    """Return the data set to draw from. If it equals the one before, return that: it is loaded."""
    from metazoo.plugins import registry

    blueprint = source.blueprint
    if name is not None:
        kind = registry().dataset(name).value
        recorded = blueprint.dataset_options if name == blueprint.dataset else {}
        elsewhere = any(
            not is_same_place(given[option], recorded.get(option))
            for option in kind.local_options
            if option in given
        )
        if elsewhere or name != blueprint.dataset:
            given = {**kind.options_for(blueprint.input_format), **given}
            blueprint = dataclasses.replace(blueprint, dataset=name, dataset_options=recorded)
    data = blueprint.data(**given)
    if before is not None and type(before) is type(data) and before.config == data.config:
        return before
    return data


def _check_input(source: Source, data: Dataset, wanted: Request) -> None:
    """Raise OptionError if a model cannot take the examples of a data set."""
    import torch

    from metazoo.base.dataset import ClassDataset

    spec = source.blueprint.spec
    if data.regression and wanted.ways:
        raise OptionError("--ways cannot be set: regression tasks have no classes", "leave it out")
    if data.regression != spec.regression:
        kinds = ("classification", "regression")
        raise OptionError(
            f"'{source.name}' is a {kinds[spec.regression]} model, "
            f"and the data are for {kinds[data.regression]}",
            "choose another --dataset, or another model",
        )
    if isinstance(data, ClassDataset):
        x = next(iter(data.splits.values())).x
        shape = tuple(x.shape[1:])
        # Images are stored as uint8, but drawn as floats.
        if (x.dtype.is_floating_point or x.dtype == torch.uint8) == spec.integers:
            kinds = ("images or numbers", "texts")
            raise OptionError(
                f"'{source.name}' takes {kinds[spec.integers]}, "
                f"and the examples of {type(data).__name__} are {kinds[not spec.integers]}",
                "choose another --dataset, or another model",
            )
        if shape != spec.input_shape:
            raise OptionError(
                f"'{source.name}' takes examples of shape {spec.input_shape}; "
                f"those of {type(data).__name__} have shape {shape}",
                "set the image size and channels of the data set (--data-...), "
                "or choose another model",
            )


def _print(measured: list[Measured], as_json: bool) -> None:
    from metazoo.cli.comparison import paired_differences
    from metazoo.cli.tables import print_results, table, task_text, value_text

    rows = [row for one in measured for row in one.rows]
    differences = paired_differences(measured)
    if as_json:
        echo_json({"results": rows, "differences": differences})
        return
    print_results([{**row, "data": _data_text(row)} for row in rows])
    if differences:
        lines = [
            (f"{d['model']} - {d['minus']}", task_text(d), value_text(d), str(d["tasks"]))
            for d in differences
        ]
        header = ("paired difference", "task", "mean ± 95 %", "tasks")
        click.echo("\n" + table(header, lines))


def _data_text(row: dict[str, Any]) -> str:
    """Return the data set of a row with the options that differ from the defaults."""
    from metazoo.plugins import registry

    config = registry().dataset(row["data"]).value.Config
    usual = {option.name: option.default for option in options.read(config)}
    changed = {name: value for name, value in row["data_options"].items() if value != usual[name]}
    return " ".join([row["data"], *(f"{name}={value}" for name, value in changed.items())])


def _fixed_options(data: Dataset) -> dict[str, Any]:
    """Return the options of a data set, except those that say where it is stored."""
    values = options.as_dict(data.config)
    return {name: value for name, value in values.items() if name not in data.local_options}


def _warn_of_known_classes(one: Measured) -> None:
    """Print a note if a model was, or may have been, trained on classes it was measured on."""
    if change := one.source.changed(one.data):
        click.echo(
            f"warning: these are not the data that '{one.source.name}' was trained on: {change}; "
            "it may have been trained on classes that it is tested on",
            err=True,
        )
    classes = one.protocols[-1].classes(one.data)
    if known := len(one.source.trained_on(one.data).intersection(classes)):
        click.echo(
            f"note: {known} of the {len(classes)} classes have names of classes that "
            f"'{one.source.name}' was trained on, so the result does not hold for new classes",
            err=True,
        )
