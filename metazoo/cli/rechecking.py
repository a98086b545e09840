"""`metazoo eval --all`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from metazoo.cli import echo_json
from metazoo.cli.tables import mode_text, table, task_text, value_text
from metazoo.plugins import registry
from metazoo.zoo.recheck import Recheck, recheck

if TYPE_CHECKING:
    import torch

VERDICTS = {True: "agrees", False: "DIFFERS", None: "not measured: "}


def recheck_all(root: str | None, episodes: int | None, device: torch.device, as_json: bool) -> int:
    """Measure every pretrained model again, compare with the cards, return the exit status."""
    found: list[Recheck] = []
    for entry in registry().pretrained:
        click.echo(f"{entry.name} ...", err=True)
        for one in recheck(entry.name, root, episodes, device):
            found.append(one)
            click.echo(f"  {_line(one)}", err=True)
    if as_json:
        echo_json([{**dataclasses.asdict(one), "agrees": one.agrees} for one in found])
    else:
        header = ("model", "task", "mode", "card", "now", "")
        click.echo(table(header, [_row(one) for one in found]))
    agree, differ, unknown = (
        sum(one.agrees is verdict for one in found) for verdict in (True, False, None)
    )
    click.echo(f"{agree} agree, {differ} differ, {unknown} were not measured", err=True)
    return 0 if agree == len(found) else 1


def _line(one: Recheck) -> str:
    what = f"{task_text(one.card)}, {mode_text(one.card)}: " if one.card else ""
    now = f"{value_text(one.now)}, " if one.now else ""
    return f"{what}{now}{_verdict(one)}"


def _row(one: Recheck) -> tuple[str, ...]:
    texts = (task_text, mode_text, value_text)
    card = [text(one.card) for text in texts] if one.card else ["-"] * len(texts)
    return (one.model, *card, value_text(one.now) if one.now else "-", _verdict(one))


def _verdict(one: Recheck) -> str:
    return VERDICTS[one.agrees] + (one.problem or "")
