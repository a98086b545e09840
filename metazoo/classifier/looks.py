"""What to say of pictures that do not look like those that a model was trained on, or fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from metazoo.appearance import Look, blank, opposite, shares, unlike_drawings
from metazoo.classifier.models import PHOTOS, Model
from metazoo.errors import MetazooError
from metazoo.plugins.registry import registry


@dataclass
class Pictures:
    """What pictures that are read part by part look like: how many there are of each look."""

    count: int = 0
    blank: int = 0
    looks: dict[Look, float] = field(default_factory=lambda: dict.fromkeys(Look, 0.0))

    def add(self, part: Tensor) -> None:
        """Count more pictures (N, C, H, W) in [0, 1]."""
        self.count += len(part)
        self.blank += blank(part)
        for look, share in shares(part).items():
            self.looks[look] += share * len(part)

    def plus(self, other: Pictures) -> Pictures:
        """Return the counts of both."""
        looks = {look: count + other.looks[look] for look, count in self.looks.items()}
        return Pictures(self.count + other.count, self.blank + other.blank, looks)

    @property
    def shares(self) -> dict[Look, float]:
        """The share of each look."""
        return {look: count / max(1, self.count) for look, count in self.looks.items()}


def opinion(
    model: Model, pictures: Pictures, what: str, support: Pictures | None = None
) -> list[str]:
    """Return what to warn of in pictures; `what` names them in the plural.

    If they are queries, `support` are the labelled examples, and what was said of those is not
    repeated.
    """
    if not pictures.count:
        return []
    said = []
    if pictures.blank:
        said.append(
            f"{pictures.blank} of {pictures.count} {what} are blank, as a picture of one colour is, "
            "or one divided by 255 twice: their answers mean nothing"
        )
    if not _learned_drawings(model.blueprint.dataset):
        if support is not None and opposite(support.shares, pictures.shares):
            said.append(f"dark and light seem swapped between the labelled examples and the {what}")
        return said
    look = unlike_drawings(pictures.shares)
    told = unlike_drawings(support.shares) if support is not None else None
    if look in (None, told):
        return said
    seen, hint = look.value, f"use a model of such pictures, as '{PHOTOS}'"
    if look is Look.LIGHT_GROUND:
        inverts = model.input_format["invert"]
        seen += " once inverted" if inverts else ""
        hint = f"for image files, set invert={not inverts} (--{'no-' * inverts}invert)"
    said.append(
        f"many {what} are {seen}, and '{model.name}' learned drawings, light on dark: "
        f"the answers may be no better than guessing; {hint}"
    )
    return said


def _learned_drawings(dataset: str) -> bool:
    try:
        return registry().dataset(dataset).value.drawings
    except MetazooError:  # a model can be used without the plugin of its data
        return False
