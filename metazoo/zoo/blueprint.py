"""What a model is made from: names and options, stored with its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metazoo import options
from metazoo.base.algorithm import Algorithm
from metazoo.base.dataset import Dataset
from metazoo.base.recipe import Recipe
from metazoo.errors import CheckpointError, OptionError
from metazoo.images import check_input_format
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import TaskSpec
from metazoo.version import VERSION

FORMAT = 2


@dataclass(frozen=True)
class Blueprint:
    """The names and options of a model, its data and its training, with every default filled in.

    `metazoo` is the version that wrote it.
    """

    algorithm: str
    algorithm_options: dict[str, Any]
    backbone: str
    backbone_options: dict[str, Any]
    dataset: str
    dataset_options: dict[str, Any]
    recipe: Recipe
    spec: TaskSpec
    input_format: dict[str, Any] = field(default_factory=dict)
    metazoo: str = VERSION

    def model(self, **changes: Any) -> Algorithm:
        """Return a new model, initialised from torch's generator.

        `changes` override options of the algorithm.
        """
        backbone = registry().backbone(self.backbone).value
        backbone_config = options.build(
            backbone.Config, self.backbone_options, f"backbone '{self.backbone}'"
        )
        algorithm = registry().algorithm(self.algorithm).value
        config = options.build(
            algorithm.Config, {**self.algorithm_options, **changes}, f"algorithm '{self.algorithm}'"
        )
        return algorithm(backbone(self.spec.input_shape, backbone_config), self.spec, config)

    def data(self, **changes: Any) -> Dataset:
        """Return the data set; `changes` override its options."""
        dataset = registry().dataset(self.dataset).value
        values = {**self.dataset_options, **changes}
        return dataset(options.build(dataset.Config, values, f"data set '{self.dataset}'"))

    def portable(self) -> Blueprint:
        """Return a copy without what holds only on this machine: data folders and the device."""
        local = registry().dataset(self.dataset).value.local_options
        kept = {name: value for name, value in self.dataset_options.items() if name not in local}
        init = self.recipe.init
        if init and not init.startswith(("https://", "http://", "hf://")):
            init = Path(init).name
        recipe = dataclasses.replace(self.recipe, init=init, device=Recipe.device)
        return dataclasses.replace(self, dataset_options=kept, recipe=recipe)

    def as_dict(self) -> dict[str, Any]:
        """Return the blueprint as JSON values, with the format and torch's version."""
        return {"format": FORMAT, "torch": torch.__version__, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Blueprint:
        """Return the blueprint that `as_dict` wrote.

        Raises CheckpointError naming `where` if it is damaged.
        """
        try:
            return cls._parse(_upgraded(values, where))
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            OptionError,
        ) as error:
            raise CheckpointError(
                f"{where} does not describe a metazoo model: {error!r}",
                "it is damaged, was edited, or comes from a newer metazoo: get or train it again, "
                "or `pip install -U metazoo`",
            ) from error

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> Blueprint:
        known = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        for name in ("algorithm", "backbone", "dataset", "metazoo"):
            if not isinstance(known[name], str):
                raise TypeError(f"'{name}' is not text")
            if not isinstance(known.get(f"{name}_options", {}), dict):
                raise TypeError(f"'{name}_options' is not a dictionary")
        check_input_format(known["input_format"])
        shape = tuple(int(n) for n in known["spec"]["input_shape"])
        spec = TaskSpec(**{**known["spec"], "input_shape": shape})
        recipe = options.build(Recipe, known["recipe"], "the recipe")
        return cls(**{**known, "recipe": recipe, "spec": spec})


def _upgraded(values: Any, where: str) -> Mapping[str, Any]:
    """Return the values in today's format; format 1 (before 0.1.0) had other option names."""
    if values["format"] == FORMAT:
        return values
    if values["format"] != 1:
        raise CheckpointError(
            f"{where} has format {values['format']}; this metazoo reads formats 1 and {FORMAT}",
            "`pip install -U metazoo`",
        )
    chosen = dict(values["algorithm_options"])
    if "views" in chosen:
        views = chosen.pop("views")
        chosen["tta"] = "none" if views == "one" else views
    recipe = {name: value for name, value in values["recipe"].items() if name != "halve_every"}
    return {**values, "algorithm_options": chosen, "recipe": recipe}
