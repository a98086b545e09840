"""The zoo measured again: every result of a model's card beside what the model gives now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metazoo.base.dataset import ClassDataset
from metazoo.errors import MetazooError
from metazoo.evaluation.measure import measure
from metazoo.evaluation.protocol import Protocol
from metazoo.plugins.registry import registry
from metazoo.zoo.card import read_card
from metazoo.zoo.find import find


@dataclass(frozen=True)
class Recheck:
    """A result of a card (empty where the card cannot be read) and, unless there is a `problem`, the same measured now."""

    model: str
    card: dict[str, Any]
    now: dict[str, Any] | None = None
    problem: str | None = None

    @property
    def agrees(self) -> bool | None:
        """Whether the two 95 % intervals overlap; None where nothing was measured.

        Of an interval over fewer tasks than the card's, the card says how wide it is at the least.
        """
        if self.now is None:
            return None
        # Where most tasks are answered without a mistake, the spread of a few of them is often too small.
        least = self.card["interval"] * math.sqrt(self.card["tasks"] / self.now["tasks"])
        return abs(self.card["mean"] - self.now["mean"]) <= self.card["interval"] + max(
            self.now["interval"], least
        )


def recheck(
    name: str, root: str | None = None, episodes: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[Recheck]:  # fmt: skip
    """Yield every result of a zoo model's card, measured again on the same tasks, or on the first `episodes` of them.

    `root` is the folder of the data, where the data set takes one. What cannot be measured is yielded with its problem.
    """
    try:
        card = read_card(Path(registry().card(name).value))
    except MetazooError as error:
        yield Recheck(name, {}, problem=error.message)
        return
    if not all(_is_whole(result) for result in card["results"]):
        yield Recheck(
            name,
            {},
            problem="a result of its card lacks mean, interval, tasks or what they were measured on",
        )
        return
    try:
        source = find(name)
        takes_root = "root" in registry().dataset(source.blueprint.dataset).value.local_options
        data = source.blueprint.data(**({"root": root} if takes_root and root is not None else {}))
        if isinstance(data, ClassDataset) and card.get("split_sha256") not in (
            None,
            data.split_sha256(),
        ):
            raise MetazooError("its classes are not those that the card was measured on")
    except MetazooError as error:
        yield from (Recheck(name, result, problem=error.message) for result in card["results"])
        return
    for result in card["results"]:
        protocol = Protocol.of(result)
        if episodes is not None:
            protocol = protocol.first(episodes)
        try:
            model = source.model(**result.get("options", {})).to(device)
            now = measure(model, data, protocol, device)[0]
        except MetazooError as error:
            yield Recheck(name, result, problem=error.message)
        else:
            yield Recheck(name, result, now)


def _is_whole(result: Any) -> bool:
    numbers = (
        [result.get(key) for key in ("mean", "interval", "tasks")]
        if isinstance(result, dict)
        else [None]
    )
    return (
        all(type(number) in (int, float) for number in numbers)
        and ("protocol" in result or "shots" in result)
        and {"metric", "transductive"} <= set(result)
    )
