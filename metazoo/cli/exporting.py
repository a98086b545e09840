"""`metazoo export`."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from metazoo import zoo
from metazoo.cli import echo_json
from metazoo.cli.configured import algorithm_values
from metazoo.cli.evaluation import Numbers
from metazoo.cli.precision import float32_is_float32
from metazoo.cli.progress import counted
from metazoo.cli.tables import print_results
from metazoo.device import find_device
from metazoo.errors import OptionError
from metazoo.evaluation.protocol import Protocol
from metazoo.zoo import run_folder


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="name of the model: ALGORITHM.TAG")
@click.option("--summary", default="", help="a sentence for the card")
@click.option("--licence", default="not stated", show_default=True, help="licence of the weights")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="folder for NAME.safetensors and NAME.json",
)
@click.option("--ways", type=Numbers(2), help="ways to measure  [default: as trained for]")
@click.option("--shots", type=Numbers(1), help="shots to measure  [default: as trained for]")
@click.option(
    "--queries",
    type=click.IntRange(1),
    help="query examples a class to measure  [default: as trained for]",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="measure also with options of the algorithm set so",
)
@click.option(
    "--episodes", type=click.IntRange(2), default=1000, show_default=True, help="tasks to draw"
)
@click.option(
    "--protocol",
    "official",
    multiple=True,
    help="an official protocol of the data set to measure, too",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "as_json", is_flag=True, help="print the card as JSON")
def export(
    run: Path, name: str, summary: str, licence: str, out: Path, ways: tuple[int, ...] | None,
    shots: tuple[int, ...] | None, queries: int | None, variants: tuple[str, ...],
    episodes: int, official: tuple[str, ...], device: str, as_json: bool,
) -> None:  # fmt: skip
    """Make a zoo model of a run: weights and a card with its measured results."""
    blueprint = run_folder.read_blueprint(run)
    algorithm, dot, tag = name.partition(".")
    if (
        algorithm != blueprint.algorithm
        or not dot
        or not tag.replace("_", "").replace("-", "").isalnum()
    ):
        raise OptionError(
            f"'{name}' is no name for this model",
            f"call it {blueprint.algorithm}.TAG, with letters, digits, _ and -",
        )
    recipe = blueprint.recipe
    protocols = [
        Protocol("test", way, shot, queries or recipe.queries, recipe.seed, episodes)
        for way, shot in itertools.product(ways or (recipe.ways,), shots or (recipe.shots,))
    ]
    protocols += [Protocol(name=protocol) for protocol in official]
    changes = [
        {},
        *(algorithm_values(blueprint.algorithm, variant.split(",")) for variant in variants),
    ]
    float32_is_float32()
    with counted(f"measuring {name}") as watch:
        card = zoo.export(
            run, name, summary, licence, out, protocols, find_device(device), changes, watch
        )
    if as_json:
        echo_json(card)
    else:
        print_results(
            [{"model": name, "data": blueprint.dataset, **result} for result in card["results"]]
        )
        click.echo(
            f"{name}.json and {name}.safetensors are in {out}  (`metazoo eval {out / f'{name}.json'}` reads them)",
            err=True,
        )
