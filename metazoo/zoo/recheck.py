"""Measure the models of the zoo again and compare with their cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.errors import MetazooError, first_line
from metazoo.evaluation.measure import measure
from metazoo.evaluation.protocol import Protocol
from metazoo.evaluation.score import half_width
from metazoo.plugins.registry import registry
from metazoo.zoo.card import check_details, read_card
from metazoo.zoo.find import find
from metazoo.zoo.source import Source


@dataclass(frozen=True)
class Recheck:
    """A result of a card, and the same measured now or the problem that prevented it.

    `card` is empty if the card is unreadable.
    """

    model: str
    card: dict[str, Any]
    now: dict[str, Any] | None = None
    problem: str | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether the two 95 % intervals overlap; None if nothing was measured.

        The new interval counts as at least as wide as the card's would be over that many tasks.
        """
        if self.now is None:
            return None
        # When most tasks have no mistake, a small sample of them often underestimates the spread.
        deviation = self.card["interval"] / half_width(1, self.card["tasks"])
        interval = max(self.now["interval"], half_width(deviation, self.now["tasks"]))
        return abs(self.card["mean"] - self.now["mean"]) <= self.card["interval"] + interval


def recheck(
    name: str,
    root: str | None = None,
    episodes: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Recheck]:
    """Measure every result of a zoo model's card again, and yield each comparison.

    What cannot be measured is yielded with its problem.

    Args:
        name: the name of the model.
        root: the folder of the data, for data sets that need one.
        episodes: measure on the first tasks only, this many.
        device: where to measure.
    """
    try:
        path = Path(registry().card(name).value)
        card = read_card(path)
        if not all(_is_complete(result) for result in card["results"]):
            raise MetazooError("a result of its card lacks mean, interval, tasks or its protocol")
        check_details(card, str(path))
    except MetazooError as error:
        yield Recheck(name, {}, problem=error.message)
        return
    try:
        source = find(name)
        data = _open_data(source, card, root)
    except MetazooError as error:
        yield from (Recheck(name, result, problem=error.message) for result in card["results"])
        return
    for result in card["results"]:
        try:
            yield Recheck(name, result, _measure(source, data, result, episodes, device))
        except MetazooError as error:
            yield Recheck(name, result, problem=error.message)
        except Exception as error:  # a plugin may raise anything, which must not end all others
            problem = f"{type(error).__name__}: {first_line(error)}"
            yield Recheck(name, result, problem=problem)


def _open_data(source: Source, card: dict[str, Any], root: str | None) -> Dataset:
    takes_root = "root" in registry().dataset(source.blueprint.dataset).value.local_options
    data = source.blueprint.data(**({"root": root} if takes_root and root is not None else {}))
    if isinstance(data, ClassDataset) and card.get("split_sha256") not in (
        None,
        data.split_sha256(),
    ):
        raise MetazooError("the classes of the data are not those the card was measured on")
    return data


def _measure(
    source: Source,
    data: Dataset,
    result: dict[str, Any],
    episodes: int | None,
    device: torch.device | str,
) -> dict[str, Any]:
    protocol = Protocol.of(result)
    if episodes is not None:
        protocol = protocol.first(episodes)
    model = source.model(**result.get("options", {})).to(device)
    return measure(model, data, protocol, device)[0]


def _is_complete(result: Any) -> bool:
    return (
        isinstance(result, dict)
        and all(type(result.get(key)) in (int, float) for key in ("mean", "interval", "tasks"))
        and ("protocol" in result or "shots" in result)
        and {"metric", "transductive"} <= set(result)
    )
