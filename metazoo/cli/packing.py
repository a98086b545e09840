"""`metazoo data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from metazoo import options
from metazoo.cli import echo_json
from metazoo.cli.configured import ConfiguredCommand, Section, data_section
from metazoo.cli.progress import counted
from metazoo.cli.tables import table
from metazoo.datasets.packed import format
from metazoo.datasets.packed.writer import pack as pack_data
from metazoo.errors import DataError
from metazoo.plugins.registry import registry
from metazoo.training.loop import Interrupted


class PackCommand(ConfiguredCommand):
    def sections(self, arguments: Sequence[str]) -> list[Section]:
        known = {entry.name for entry in registry().datasets}
        first = arguments[0] if arguments and not arguments[0].startswith("-") else None
        name = first or next((argument for argument in arguments if argument in known), None)
        return [] if name is None else [data_section(name)]


@click.group(invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Keep data on disk, for those that are larger than memory."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


@data.command(cls=PackCommand)
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print what was packed as JSON")
def pack(source: str, out: Path, as_json: bool, dataset_options: dict[str, Any]) -> None:
    """Write a data set into a folder that it is read from as tasks are drawn.

    SOURCE is the name of a data set; its options are those of `metazoo train`. OUT is a new folder, for `--dataset packed
    --data-root OUT`. When stopped, or killed, the same command goes on. Images of the data set `folder` are decoded one
    by one, and never all in memory.
    """
    cls = registry().dataset(source).value
    made = cls(options.build(cls.Config, dataset_options, f"data set '{source}'"))
    try:
        with counted(f"packing {source}") as watch:
            packed = pack_data(made, source, out, watch)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted", "the same command goes on from the last whole shard"
        ) from None
    splits = packed.index.splits
    total = sum(split.examples for split in splits.values())
    if packed.found == total:
        click.echo(f"{out} is packed already", err=True)
    elif packed.found:
        click.echo(f"{packed.found} of {total} examples were there already", err=True)
    if as_json:
        echo_json(
            {
                "folder": str(out),
                "splits": {name: _describe(split) for name, split in splits.items()},
            }
        )
    else:
        rows = [(name, *map(str, _describe(split).values())) for name, split in splits.items()]
        click.echo(table(("split", "classes", "examples", "bytes", "shards"), rows))


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print the damaged shards as JSON")
def verify(folder: Path, as_json: bool) -> None:
    """Read every byte of packed data, and name the shards that are not what was packed."""
    index = format.read_index(folder)
    with counted(f"reading {folder}") as watch:
        found = list(format.damaged(folder, index, watch))
    total = sum(len(split.sha256) for split in index.splits.values())
    if as_json:
        listed = [
            {
                "file": one.file,
                "shard": one.shard,
                "examples": [one.rows.start, one.rows.stop],
                "bytes": [one.bytes.start, one.bytes.stop],
            }
            for one in found
        ]
        echo_json({"folder": str(folder), "shards": total, "damaged": listed})
    else:
        for one in found:
            where = f"bytes {one.bytes.start} to {one.bytes.stop - 1}, examples {one.rows.start} to {one.rows.stop - 1}"
            click.echo(f"{one.file}: shard {one.shard} ({where}) is damaged")
        click.echo(f"{total - len(found)} of {total} shards are whole")
    if found:
        raise DataError(f"{len(found)} of {total} shards in {folder} are damaged", format.AGAIN)


def _describe(split: format.Split) -> dict[str, int]:
    return {
        "classes": len(split.names),
        "examples": split.examples,
        "bytes": split.bytes,
        "shards": len(split.sha256),
    }
