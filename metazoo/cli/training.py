"""`metazoo train`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from metazoo import distributed
from metazoo.base.recipe import Recipe
from metazoo.cli import echo_json
from metazoo.cli.configured import ConfiguredCommand, Section, data_section, find_value
from metazoo.cli.memory import keep_freed_memory
from metazoo.cli.precision import float32_is_float32
from metazoo.cli.progress import shown
from metazoo.cli.tables import result_line
from metazoo.device import find_device
from metazoo.errors import MetazooError, OptionError
from metazoo.plugins.registry import registry
from metazoo.training import curve
from metazoo.training.loop import Interrupted
from metazoo.training.loop import train as run_training
from metazoo.training.plan import plan
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.find import find, start_from

DEFAULT_DATASET = "glyphs"


class TrainCommand(ConfiguredCommand):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        resumed = find_value(args, "--resume")
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if resumed is None:
                raise
            raise _resumes_alone(resumed, error.option_name) from None

    def sections(self, arguments: Sequence[str]) -> list[Section]:
        if find_value(arguments, "--resume") is not None:
            return []
        dataset = find_value(arguments, "--dataset") or DEFAULT_DATASET
        usual: dict[str, Any] = {}
        sections = []
        name = _find_algorithm(arguments)
        if name is not None:
            algorithm = registry().algorithm(name).value
            usual |= algorithm.recipe
            sections.append(
                Section("algorithm_options", f"Options of {name}", "", algorithm.Config, {})
            )
        usual |= registry().dataset(dataset).value.recipe
        sections.append(Section("recipe", "Training", "", Recipe, usual))
        sections.append(data_section(dataset))
        backbone = find_value(arguments, "--backbone") or usual.get("backbone", "conv4")
        config = registry().backbone(backbone).value.Config
        sections.append(
            Section("backbone_options", f"Options of backbone {backbone}", "backbone-", config, {})
        )
        return sections


def _resumes_alone(run: str, given: str) -> OptionError:
    return OptionError(
        f"--resume goes on with the options that the run began with; {given} cannot be given",
        f"`metazoo train --resume {run}`",
    )


def _find_algorithm(arguments: Sequence[str]) -> str | None:
    """Return the algorithm among unparsed arguments: the first of them or, behind options, the first known name."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    known = {entry.name for entry in registry().algorithms}
    taken = {
        find_value(arguments, flag) for flag in ("--dataset", "--backbone", "--out", "--progress")
    }
    return next(
        (argument for argument in arguments if argument in known and argument not in taken), None
    )


def _make(out: Path | None, name: str, blueprint: Blueprint) -> Path:
    """Make a run folder and return it; where torchrun starts again, it is the one that the same job made."""
    if out is None:
        return run_folder.create_numbered(Path("runs"), name, blueprint)
    if not (
        distributed.restarted()
        and (out / run_folder.CONFIG).exists()
        and run_folder.read_blueprint(out) == blueprint
    ):
        run_folder.create(out, blueprint)
    return out


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
    help="go on with the run in this folder",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    help="auto: a bar on a terminal, else none",
)
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
@distributed.joined()
def train(
    algorithm: str | None, dataset: str | None, out: Path | None, resume: Path | None, progress: str, as_json: bool,
    algorithm_options: dict[str, Any] | None = None, recipe: dict[str, Any] | None = None,
    dataset_options: dict[str, Any] | None = None, backbone_options: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Train ALGORITHM on a data set, in a run folder, and test it on classes it never trained on.

    `metazoo train ALGORITHM --dataset NAME --help` shows the options of both.
    `torchrun --nproc-per-node N -m metazoo train ...` shares out the tasks of each step among N processes.
    """
    keep_freed_memory()
    float32_is_float32()
    if resume is not None and (algorithm or dataset or out):
        raise _resumes_alone(
            str(resume), "algorithm" if algorithm else "--dataset" if dataset else "--out"
        )
    init = None
    if resume is not None:
        folder = resume
        blueprint = run_folder.read_blueprint(folder)
        data = blueprint.data()
    else:
        if algorithm is None:
            raise click.UsageError("Missing argument 'ALGORITHM'", click.get_current_context())
        dataset = dataset or DEFAULT_DATASET
        blueprint, data = plan(
            algorithm,
            dataset,
            algorithm_options or {},
            dataset_options or {},
            backbone_options or {},
            recipe or {},
        )
        training = blueprint.recipe
        find_device(training.device)  # before there is a folder to clear away
        if training.init is not None:
            init = distributed.by_first(partial(find, training.init))
            start_from(init, blueprint.model())
        if out is None and distributed.may_restart():
            raise OptionError(
                "processes that may be started again must find their run",
                "name its folder with --out",
            )
        folder = distributed.by_first(partial(_make, out, f"{algorithm}-{dataset}", blueprint))
        resume = folder if distributed.restarted() else None
    chance = None if blueprint.spec.regression else 1 / blueprint.recipe.ways
    title = f"{blueprint.algorithm} on {blueprint.dataset}"
    if resume is not None and (folder / run_folder.RESULT).exists():
        click.echo(f"the run in {folder} is finished already", err=True)
        result = run_folder.read_result(folder)
    else:
        try:
            with shown(progress if distributed.first() else "none", title, chance) as watcher:
                result = run_training(blueprint, data, folder, watcher, init)
        except (MetazooError, KeyboardInterrupt) as stop:
            # A picture that cannot be drawn must not hide what happened; nor one that takes so long that torchrun, whose other
            # processes end meanwhile, kills this one before it has said why.
            with contextlib.suppress(OSError, MetazooError, KeyboardInterrupt):
                if distributed.size() == 1:
                    curve.save_png(
                        folder / run_folder.CURVE, title, run_folder.read_metrics(folder), chance
                    )
            if isinstance(stop, MetazooError):
                raise
            raise Interrupted(
                "interrupted", f"`metazoo train --resume {folder}` goes on from the last checkpoint"
            ) from None
        if not distributed.first():
            return
        curve.save_png(folder / run_folder.CURVE, title, run_folder.read_metrics(folder), chance)
    if progress != "none" and (progress != "auto" or sys.stderr.isatty()):
        name, points = curve.validations(run_folder.read_metrics(folder))
        click.echo(
            f"\nvalidation {name}{'' if chance is None else f' (chance {chance:.1%})'}:", err=True
        )
        click.echo(curve.text(points, bottom=chance), err=True)
    if as_json:
        echo_json({"run": str(folder), **result})
    else:
        click.echo(result_line(str(folder), result, chance))
        # Means are rounded to float32.
        if chance is not None and result["mean"] - result["interval"] <= chance + 1e-6:
            click.echo(
                "note: that cannot be told from guessing. `metazoo eval` with more --episodes may; else look at the losses in "
                "metrics.jsonl: another --lr, or more --steps, may help", err=True,
            )  # fmt: skip
        click.echo(f"run folder: {folder}  (`metazoo eval {folder}` evaluates it again)", err=True)
