"""What a model is made from: names and options, kept with its weights."""

from __future__ import annotations

import dataclasses
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

FORMAT = 1


@dataclass(frozen=True)
class Blueprint:
    """Everything that a model, its data and its training are made from, by name; the options are whole, defaults included."""

    algorithm: str
    algorithm_options: dict[str, Any]
    backbone: str
    backbone_options: dict[str, Any]
    dataset: str
    dataset_options: dict[str, Any]
    recipe: dict[str, Any]
    spec: TaskSpec
    input_format: dict[str, Any] = field(default_factory=dict)

    def model(self, **changes: Any) -> Algorithm:
        """Return a new model, initialised from torch's generator; `changes` are options of the algorithm to set otherwise."""
        backbone_class = registry().backbone(self.backbone).value
        backbone_config = options.build(
            backbone_class.Config, self.backbone_options, f"backbone '{self.backbone}'"
        )
        algorithm_class = registry().algorithm(self.algorithm).value
        values = {**self.algorithm_options, **changes}
        config = options.build(algorithm_class.Config, values, f"algorithm '{self.algorithm}'")
        return algorithm_class(
            backbone_class(self.spec.input_shape, backbone_config), self.spec, config
        )

    def data(self, **changes: Any) -> Dataset:
        """Return the data set; `changes` are options of it to set otherwise."""
        dataset_class = registry().dataset(self.dataset).value
        values = {**self.dataset_options, **changes}
        return dataset_class(
            options.build(dataset_class.Config, values, f"data set '{self.dataset}'")
        )

    def training(self) -> Recipe:
        """Return the training options."""
        return options.build(Recipe, self.recipe, "the recipe")

    def portable(self) -> Blueprint:
        """Return the same without what holds for one machine alone: where the data lie, and the device."""
        local = (*registry().dataset(self.dataset).value.local_options,)
        kept = {name: value for name, value in self.dataset_options.items() if name not in local}
        recipe = {name: value for name, value in self.recipe.items() if name != "device"}
        if recipe.get("init") and not recipe["init"].startswith(("https://", "http://", "hf://")):
            recipe["init"] = Path(recipe["init"]).name
        return dataclasses.replace(self, dataset_options=kept, recipe=recipe)

    def as_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, with the versions that made it."""
        return {
            "format": FORMAT,
            "metazoo": VERSION,
            "torch": torch.__version__,
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Blueprint:
        """Return the Blueprint that `as_dict` gave, or raise CheckpointError naming `where` it came from."""
        try:
            if values["format"] != FORMAT:
                raise CheckpointError(
                    f"{where} has format {values['format']}, this metazoo reads {FORMAT}",
                    "`pip install -U metazoo`",
                )
            known = {f.name: values[f.name] for f in dataclasses.fields(cls)}
            if not all(
                isinstance(known[name], str) for name in ("algorithm", "backbone", "dataset")
            ):
                raise TypeError("a name is not text")
            if not all(
                isinstance(known[name], dict) for name in known if name.endswith("_options")
            ):
                raise TypeError("options are not a dictionary")
            check_input_format(known["input_format"])
            recipe = options.as_dict(options.build(Recipe, known["recipe"], "the recipe"))
            spec = TaskSpec(
                **{
                    **known["spec"],
                    "input_shape": tuple(int(n) for n in known["spec"]["input_shape"]),
                }
            )
            return cls(**{**known, "recipe": recipe, "spec": spec})
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
                "it was changed or damaged, or a newer metazoo wrote it: get or train it again, or `pip install -U metazoo`",
            ) from error
