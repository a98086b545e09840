"""`metazoo train`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metazoo.base.recipe import Recipe
from metazoo.cli import echo_json, echo_notes
from metazoo.cli.configured import ConfiguredCommand, Section, data_section, find_value
from metazoo.cli.process import keep_freed_memory, use_float32
from metazoo.errors import Interrupted, MetazooError, OptionError, PluginError
from metazoo.quoting import printable, shell_word

if TYPE_CHECKING:
    from metazoo.base.dataset import Dataset
    from metazoo.plugins import Entry
    from metazoo.zoo.blueprint import Blueprint
    from metazoo.zoo.source import Source

DEFAULT_DATASET = "glyphs"
FLAGS = ("dataset", "help", "json", "out", "progress", "resume")
PREFIXES = ("data_", "backbone_")


class TrainCommand(ConfiguredCommand):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        resumed = find_value(args, "--resume")
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if resumed is None:
                raise
            raise _not_with_resume(resumed, error.option_name) from None

    def sections(self, arguments: Sequence[str]) -> list[Section]:
        if find_value(arguments, "--resume") is not None:
            return []
        if not _names_anything(arguments):
            return [Section("recipe", "Training", "", Recipe, {})]
        from metazoo.plugins import registry

        dataset = find_value(arguments, "--dataset") or DEFAULT_DATASET
        usual: dict[str, Any] = {}
        sections = []
        name = _find_algorithm(arguments)
        if name is not None:
            algorithm = registry().algorithm(name)
            _check_flags(algorithm)
            usual |= algorithm.value.recipe
            sections.append(_section("algorithm_options", f"Options of {name}", "", algorithm))
        usual |= _training_defaults(registry().dataset(dataset).value, arguments)
        sections.append(Section("recipe", "Training", "", Recipe, usual))
        sections.append(data_section(dataset))
        backbone = find_value(arguments, "--backbone") or usual.get("backbone", Recipe.backbone)
        title = f"Options of backbone {backbone}"
        entry = registry().backbone(backbone)
        sections.append(_section("backbone_options", title, "backbone-", entry))
        return sections


@click.command(cls=TrainCommand)
@click.argument("algorithm", required=False)
@click.option("--dataset", help=f"data set to train on  [default: {DEFAULT_DATASET}]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="run folder  [default: runs/ALGORITHM-DATASET-NUMBER]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="continue the run in this folder",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    help="bar; lines: one for each validation; none; auto: a bar on a terminal, otherwise none",
)
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def train(
    algorithm: str | None,
    dataset: str | None,
    out: Path | None,
    resume: Path | None,
    progress: str,
    as_json: bool,
    **given: dict[str, Any],
) -> None:
    """Train ALGORITHM on a data set, and test it on classes that it has not seen.

    The results go into a run folder. Algorithms, data sets and backbones have options of their own:
    `metazoo train ALGORITHM --dataset NAME --backbone NAME --help` shows them, with the defaults
    that they change.

    `torchrun --nproc-per-node N -m metazoo train ...` divides the tasks of each step among N
    processes.
    """
    if resume is not None and (algorithm or dataset or out):
        flag = "algorithm" if algorithm else "--dataset" if dataset else "--out"
        raise _not_with_resume(str(resume), flag)
    if resume is None and algorithm is None:
        raise click.UsageError("Missing argument 'ALGORITHM'", click.get_current_context())
    from metazoo import distributed

    keep_freed_memory()
    use_float32()
    with distributed.joined():
        if resume is not None:
            _resume(resume, progress, as_json)
        else:
            assert algorithm is not None
            _begin(algorithm, dataset or DEFAULT_DATASET, out, given, progress, as_json)


def _names_anything(arguments: Sequence[str]) -> bool:
    """Return whether the arguments may name a plugin, or set an option of one.

    If not, no plugin is imported, so the answer is instant.
    """
    return any(
        not argument.startswith("-") or argument.startswith(("--data", "--backbone"))
        for argument in arguments
    )


def _section(key: str, title: str, prefix: str, entry: Entry[Any]) -> Section:
    return Section(key, title, prefix, entry.value.Config, {})


def _training_defaults(kind: type[Dataset], arguments: Sequence[str]) -> Mapping[str, Any]:
    """Return the training options that suit the data which unparsed arguments name."""
    from metazoo import options
    from metazoo.base.dataset import Dataset

    if kind.training_defaults is Dataset.training_defaults:
        return kind.recipe
    found = {
        option.name: find_value(arguments, f"--data-{option.name.replace('_', '-')}")
        for option in options.read(kind.Config)
    }
    texts = [f"{name}={value}" for name, value in found.items() if value is not None]
    try:
        values = options.parse_assignments(kind.Config, texts, "the data set")
        return kind(options.build(kind.Config, values, "the data set")).training_defaults()
    except MetazooError:  # reported when the data are opened
        return kind.recipe


def _check_flags(algorithm: Entry[Any]) -> None:
    """Raise PluginError if an algorithm's option has the name of another flag of this command."""
    from metazoo import options

    for option in options.read(algorithm.value.Config):
        if option.name in FLAGS or option.name.startswith(PREFIXES):
            raise PluginError(
                f"option '{option.name}' of algorithm '{algorithm.name}' "
                f"({algorithm.plugin.owner}) has the name of a flag of `metazoo train`, "
                "or begins like one",
                "its author must rename it",
            )


def _find_algorithm(arguments: Sequence[str]) -> str | None:
    """Return the algorithm among unparsed arguments.

    That is the first argument or, if options come first, the first known name.
    """
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    from metazoo.plugins import registry

    known = {entry.name for entry in registry().algorithms}
    flags = ("--dataset", "--backbone", "--out", "--progress")
    taken = {find_value(arguments, flag) for flag in flags}
    return next((word for word in arguments if word in known and word not in taken), None)


def _not_with_resume(run: str, given: str) -> OptionError:
    return OptionError(
        f"--resume continues with the options the run began with; {given} cannot be given",
        f"`metazoo train --resume {shell_word(run)}`",
    )


def _resume(folder: Path, progress: str, as_json: bool) -> None:
    from metazoo import distributed
    from metazoo.base.dataset import ClassDataset
    from metazoo.zoo import run_folder

    blueprint = run_folder.read_blueprint(folder)
    if damaged := run_folder.damaged_metrics(folder):
        click.echo(
            f"warning: {damaged} damaged lines of {folder / run_folder.METRICS} are left out of the "
            "learning curve; nothing else needs them",
            err=True,
        )
    if (folder / run_folder.RESULT).exists():
        result = run_folder.read_result(folder)
        click.echo(f"the run in {folder} is already finished", err=True)
        _report(blueprint, folder, result, progress, as_json)
    else:
        data = blueprint.data()
        recorded = blueprint.split_sha256 is not None or not isinstance(data, ClassDataset)
        if not recorded and distributed.first():
            click.echo(
                f"warning: the run in {folder} has no record of its data (an older metazoo began "
                "it), so nobody would notice if they changed",
                err=True,
            )
        _run(blueprint, data, folder, None, progress, as_json)


def _begin(
    algorithm: str,
    dataset: str,
    out: Path | None,
    given: dict[str, dict[str, Any]],
    progress: str,
    as_json: bool,
) -> None:
    from metazoo import distributed
    from metazoo.device import find_device
    from metazoo.training.plan import plan
    from metazoo.zoo.find import find, start_from

    blueprint, data = plan(algorithm, dataset, **given)
    if distributed.first():
        echo_notes(data)
    # Mistakes show before there is a run folder to delete.
    find_device(blueprint.recipe.device)
    init = None
    if blueprint.recipe.init is not None:
        init = distributed.on_first(partial(find, blueprint.recipe.init))
        start_from(init, blueprint.model())
    if out is None and distributed.may_restart():
        raise OptionError(
            "processes that torchrun may restart must find their run again",
            "give its folder by --out",
        )
    name = f"{algorithm}-{dataset}"
    folder = distributed.on_first(partial(_make_folder, out, name, blueprint))
    if distributed.restarted():
        _resume(folder, progress, as_json)
    else:
        _run(blueprint, data, folder, init, progress, as_json)


def _make_folder(out: Path | None, name: str, blueprint: Blueprint) -> Path:
    """Make a run folder and return it, or after a restart by torchrun the one of the same job."""
    from metazoo import distributed
    from metazoo.zoo import run_folder

    if out is None:
        return run_folder.create_numbered(Path("runs"), name, blueprint)
    exists = distributed.restarted() and (out / run_folder.CONFIG).exists()
    if not (exists and run_folder.read_blueprint(out) == blueprint):
        run_folder.create(out, blueprint)
    return out


def _run(
    blueprint: Blueprint,
    data: Dataset,
    folder: Path,
    init: Source | None,
    progress: str,
    as_json: bool,
) -> None:
    from metazoo import distributed
    from metazoo.cli.progress import training_progress
    from metazoo.training.loop import train as run_training

    first = distributed.first()
    title = f"{blueprint.algorithm} on {blueprint.dataset}"
    try:
        with training_progress(progress if first else "none", title, _chance(blueprint)) as watcher:
            result = run_training(blueprint, data, folder, watcher, init)
    except (MetazooError, KeyboardInterrupt) as stop:
        # A curve that cannot be drawn must not hide the reason. With several processes there is no
        # time for one: torchrun kills this process when the others end.
        if distributed.size() == 1:
            with contextlib.suppress(OSError, MetazooError, KeyboardInterrupt):
                _save_curve(blueprint, folder)
        if isinstance(stop, MetazooError):
            raise
        hint = f"`metazoo train --resume {shell_word(folder)}` continues from the last checkpoint"
        raise Interrupted("interrupted", hint) from None
    if first:
        try:
            _save_curve(blueprint, folder)
        except OSError as error:
            click.echo(f"warning: the learning curve cannot be saved: {error}", err=True)
        _report(blueprint, folder, result, progress, as_json)


def _chance(blueprint: Blueprint) -> float | None:
    return None if blueprint.spec.regression else 1 / blueprint.recipe.ways


def _save_curve(blueprint: Blueprint, folder: Path) -> None:
    from metazoo.training import curve
    from metazoo.zoo import run_folder

    title = f"{blueprint.algorithm} on {blueprint.dataset}"
    metrics = run_folder.read_metrics(folder)
    curve.save_png(folder / run_folder.CURVE, title, metrics, _chance(blueprint))


def _report(
    blueprint: Blueprint, folder: Path, result: dict[str, Any], progress: str, as_json: bool
) -> None:
    from metazoo.cli.tables import result_line

    chance = _chance(blueprint)
    if progress == "bar" or (progress == "auto" and sys.stderr.isatty()):
        _plot(folder, chance)
    if as_json:
        echo_json({"run": str(folder), **result})
        return
    click.echo(result_line(str(folder), result, chance))
    if result["steps"] == 0:
        click.echo(
            f"note: '{blueprint.algorithm}' has no weights to train; it was saved and tested as it is",
            err=True,
        )
    # Means are rounded to float32.
    if chance is not None and result["mean"] - result["interval"] <= chance + 1e-6:
        click.echo(
            "note: this is no better than guessing. `metazoo eval` with more --episodes narrows "
            "the interval; otherwise look at the losses in metrics.jsonl and try another --lr or "
            "more --steps",
            err=True,
        )
    click.echo(
        f"run folder: {printable(str(folder))}  (`metazoo eval {shell_word(folder)}` evaluates it again)",
        err=True,
    )


def _plot(folder: Path, chance: float | None) -> None:
    from metazoo.training import curve
    from metazoo.zoo import run_folder

    name, points = curve.validations(run_folder.read_metrics(folder))
    against = "" if chance is None else f" (chance {chance:.1%})"
    click.echo(f"\nvalidation {name}{against}:", err=True)
    click.echo(curve.text(points, bottom=chance), err=True)
