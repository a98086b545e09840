"""`metazoo data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metazoo.cli import echo_json, echo_notes
from metazoo.cli.configured import ConfiguredCommand, Section, data_section
from metazoo.errors import DataError, Interrupted

if TYPE_CHECKING:
    from metazoo.datasets.packed.format import Damage, Split


class PackCommand(ConfiguredCommand):
    def sections(self, arguments: Sequence[str]) -> list[Section]:
        if all(argument.startswith("-") for argument in arguments):
            return []
        from metazoo.plugins import registry

        known = {entry.name for entry in registry().datasets}
        first = None if arguments[0].startswith("-") else arguments[0]
        name = first or next((argument for argument in arguments if argument in known), None)
        return [] if name is None else [data_section(name)]


@click.group(invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Pack a data set that is larger than memory, or verify a packed one."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


@data.command(cls=PackCommand)
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print what was packed as JSON")
def pack(source: str, out: Path, as_json: bool, dataset_options: dict[str, Any]) -> None:
    """Write a data set into a folder that `--dataset packed` reads.

    SOURCE is the name of a data set. `metazoo data pack SOURCE --help` shows its options. OUT is a
    new folder. `metazoo train ALGORITHM --dataset packed --data-root OUT` trains on it, and reads
    each example when it is drawn.

    If the command is stopped or killed, run it again and it continues. Images of the data set
    `folder` are decoded one by one, so they need not fit into memory together.
    """
    from metazoo import options
    from metazoo.cli.progress import measurement_progress
    from metazoo.cli.tables import table
    from metazoo.datasets.packed.writer import pack as write
    from metazoo.plugins import registry

    dataset = registry().dataset(source).value
    made = dataset(options.build(dataset.Config, dataset_options, f"data set '{source}'"))
    echo_notes(made)
    try:
        with measurement_progress(f"packing {source}") as watch:
            packed = write(made, source, out, watch)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", "run the same command again: it continues after the last complete shard"
        ) from None
    splits = {name: _describe(split) for name, split in packed.index.splits.items()}
    total = sum(split["examples"] for split in splits.values())
    if packed.found == total:
        click.echo(f"{out} is already packed", err=True)
    elif packed.found:
        click.echo(f"{packed.found} of {total} examples were already there", err=True)
    if as_json:
        echo_json({"folder": str(out), "splits": splits})
    else:
        rows = [(name, *map(str, facts.values())) for name, facts in splits.items()]
        click.echo(table(("split", "classes", "examples", "bytes", "shards"), rows))


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print the damaged shards as JSON")
def verify(folder: Path, as_json: bool) -> None:
    """Read every byte of packed data and list the damaged shards."""
    from metazoo.cli.progress import measurement_progress
    from metazoo.datasets.packed import format

    index = format.read_index(folder)
    with measurement_progress(f"reading {folder}") as watch:
        found = list(format.damaged(folder, index, watch))
    total = sum(len(split.sha256) for split in index.splits.values())
    if as_json:
        listed = [_damage(one) for one in found]
        echo_json({"folder": str(folder), "shards": total, "damaged": listed})
    else:
        for one in found:
            click.echo(
                f"{one.file}: shard {one.shard} (bytes {one.bytes.start} to {one.bytes.stop - 1}, "
                f"examples {one.rows.start} to {one.rows.stop - 1}) is damaged"
            )
        click.echo(f"{total - len(found)} of {total} shards are intact")
    if found:
        raise DataError(f"{len(found)} of {total} shards in {folder} are damaged", format.AGAIN)


def _describe(split: Split) -> dict[str, int]:
    return {
        "classes": len(split.names),
        "examples": split.examples,
        "bytes": split.bytes,
        "shards": len(split.sha256),
    }


def _damage(one: Damage) -> dict[str, Any]:
    return {
        "file": one.file,
        "shard": one.shard,
        "examples": [one.rows.start, one.rows.stop],
        "bytes": [one.bytes.start, one.bytes.stop],
    }
