"""`metazoo eval --all`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import click
import torch

from metazoo import options
from metazoo.cli import echo_json
from metazoo.cli.tables import mode_text, table, task_text, value_text
from metazoo.plugins.registry import registry
from metazoo.zoo.recheck import Recheck, recheck

VERDICTS = {True: "agrees", False: "DIFFERS", None: "not measured: "}


@dataclass(frozen=True)
class Data(options.Config):
    """The one option that all data sets with files have."""

    root: Annotated[
        str | None, "folder of the data  [default: $METAZOO_DATA, else download to the cache]"
    ] = None


def recheck_all(root: str | None, episodes: int | None, device: torch.device, as_json: bool) -> int:
    """Measure every pretrained model again, print card and present side by side, and return the exit status."""
    found: list[Recheck] = []
    for entry in registry().pretrained:
        click.echo(f"{entry.name} ...", err=True)
        for one in recheck(entry.name, root, episodes, device):
            found.append(one)
            what = f"{task_text(one.card)}, {mode_text(one.card)}: " if one.card else ""
            now = f"{value_text(one.now)}, " if one.now else ""
            click.echo(f"  {what}{now}{VERDICTS[one.agrees]}{one.problem or ''}", err=True)
    if as_json:
        echo_json([{**dataclasses.asdict(one), "agrees": one.agrees} for one in found])
    else:
        rows = [
            (
                one.model,
                *(
                    [text(one.card) for text in (task_text, mode_text, value_text)]
                    if one.card
                    else "---"
                ),
                value_text(one.now) if one.now else "-",
                VERDICTS[one.agrees] + (one.problem or ""),
            )
            for one in found
        ]
        click.echo(table(("model", "task", "mode", "card", "now", ""), rows))
    counts = {
        verdict: sum(one.agrees is verdict for one in found) for verdict in (True, False, None)
    }
    click.echo(
        f"{counts[True]} agree, {counts[False]} differ, {counts[None]} were not measured", err=True
    )
    return 0 if counts[True] == len(found) else 1
