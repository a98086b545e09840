"""`metazoo export`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from metazoo.cli import echo_json
from metazoo.cli.configured import algorithm_values
from metazoo.cli.numbers import Number, Numbers
from metazoo.cli.process import use_float32
from metazoo.errors import OptionError
from metazoo.quoting import shell_word

if TYPE_CHECKING:
    from metazoo.base.recipe import Recipe
    from metazoo.evaluation.protocol import Protocol


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
@click.option("--ways", type=Numbers(2), help="ways to measure  [default: as trained]")
@click.option("--shots", type=Numbers(1), help="shots to measure  [default: as trained]")
@click.option(
    "--queries", type=Number(1), help="queries per class to measure  [default: as trained]"
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME=VALUE,...",
    help="also measure with these options of the algorithm",
)
@click.option("--episodes", type=Number(2), default=1000, show_default=True, help="tasks to draw")
@click.option(
    "--protocol",
    "official",
    multiple=True,
    help="also measure an official protocol of the data set",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--json", "as_json", is_flag=True, help="print the card as JSON")
def export(
    run: Path,
    name: str,
    summary: str,
    licence: str,
    out: Path,
    ways: tuple[int, ...] | None,
    shots: tuple[int, ...] | None,
    queries: int | None,
    variants: tuple[str, ...],
    episodes: int,
    official: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Turn a run into a zoo model: its weights, and a card with measured results."""
    from metazoo import zoo
    from metazoo.cli.progress import measurement_progress
    from metazoo.cli.tables import print_results
    from metazoo.device import find_device
    from metazoo.evaluation.protocol import Protocol
    from metazoo.zoo import run_folder

    blueprint = run_folder.read_blueprint(run)
    _check_name(name, blueprint.algorithm)
    protocols = _drawn(blueprint.recipe, ways, shots, queries, episodes)
    protocols += [Protocol(name=protocol) for protocol in official]
    changes = [{}, *(algorithm_values(blueprint.algorithm, text.split(",")) for text in variants)]
    use_float32()
    with measurement_progress(f"measuring {name}") as watch:
        place = find_device(device)
        card = zoo.export(run, name, summary, licence, out, protocols, place, changes, watch)
    if as_json:
        echo_json(card)
        return
    print_results([{"model": name, "data": blueprint.dataset, **each} for each in card["results"]])
    path = out / f"{name}.json"
    click.echo(
        f"wrote {name}.json and {name}.safetensors to {out}  (try `metazoo eval {shell_word(path)}`)",
        err=True,
    )


def _drawn(
    recipe: Recipe,
    ways: tuple[int, ...] | None,
    shots: tuple[int, ...] | None,
    queries: int | None,
    episodes: int,
) -> list[Protocol]:
    """Return a protocol for each number of ways and shots; the recipe supplies what is None."""
    from metazoo.evaluation.protocol import Protocol

    return [
        Protocol("test", way, shot, queries or recipe.queries, recipe.seed, episodes)
        for way, shot in itertools.product(ways or (recipe.ways,), shots or (recipe.shots,))
    ]


def _check_name(name: str, algorithm: str) -> None:
    prefix, dot, tag = name.partition(".")
    if prefix != algorithm or not dot or not tag.replace("_", "").replace("-", "").isalnum():
        raise OptionError(
            f"this model cannot be called '{name}'",
            f"call it {algorithm}.TAG, where TAG has letters, digits, _ and -",
        )
