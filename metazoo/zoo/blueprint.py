"""What a model is made from: names and options, stored with its weights."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metazoo import options
from metazoo.base.algorithm import Algorithm
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.recipe import Recipe
from metazoo.errors import CheckpointError, OptionError
from metazoo.inputs import check_input_format, kind_of, shape_of
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import TaskSpec
from metazoo.version import VERSION

FORMAT = 2
# How many numbers an example may have: a small file can ask for one that takes gigabytes.
LARGEST_EXAMPLE = 3 * 512 * 512
LIFT = "METAZOO_LIMITS=off lifts this limit"


def limited() -> bool:
    """Return whether limits hold on what a file may ask for; METAZOO_LIMITS=off lifts them.

    Raises OptionError for any other value.
    """
    value = os.environ.get("METAZOO_LIMITS", "")
    if value not in ("", "off"):
        raise OptionError(f"METAZOO_LIMITS cannot be '{value}'", "it may be off; or leave it unset")
    return not value


def check_size(shape: tuple[int, ...]) -> None:
    """Raise OptionError if examples of a shape are larger than a model's file may ask for."""
    if limited() and not 0 < math.prod(shape) <= LARGEST_EXAMPLE:
        raise OptionError(
            f"examples of shape {shape} are too large: "
            f"a model takes examples of at most {LARGEST_EXAMPLE} numbers",
            f"make them smaller; {LIFT}",
        )


@dataclass(frozen=True)
class Blueprint:
    """The names and options of a model, its data and its training, with every default filled in.

    `metazoo` is the version that wrote it. `split_sha256` and `data_sha256` are those of the classes
    and of the examples it was trained on; they are None in older files and for data without classes.
    `dataset` is "" for a model that was not trained.
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
    split_sha256: str | None = None
    data_sha256: str | None = None

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
        """Return the data set; `changes` override its options.

        Raises OptionError if the model was not trained on one.
        """
        if not self.dataset:
            raise OptionError(
                "this model was not trained, so it has no data set of its own",
                "name one: --dataset folder --data-root DIR, or `metazoo list datasets`",
            )
        dataset = registry().dataset(self.dataset).value
        values = {**self.dataset_options, **changes}
        return dataset(options.build(dataset.Config, values, f"data set '{self.dataset}'"))

    def changed(self, data: Dataset) -> str | None:
        """Return how data differ from those of the training, in words.

        None if they do not, if the data set has no classes, or if the training did not record it.
        """
        if not isinstance(data, ClassDataset) or self.split_sha256 is None:
            return None
        if data.split_sha256() != self.split_sha256:
            return "its classes, their numbers of examples, or their division into splits changed"
        if data.data_sha256() == self.data_sha256:
            return None
        return "its examples changed, or another version of a library decodes them otherwise"

    def portable(self) -> Blueprint:
        """Return a copy without what holds only on this machine: the device, and where data are."""
        local = registry().dataset(self.dataset).value.local_options if self.dataset else ()
        kept = {
            name: value
            for name, value in self.dataset_options.items()
            if name not in local and not is_local_path(value)
        }
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
            cause, hint = repr(error), ""
            if isinstance(error, OptionError):
                cause, hint = error.message, f"{error.hint}; or " if error.hint else ""
            raise CheckpointError(
                f"{where} does not describe a metazoo model: {cause}",
                f"{hint}it is damaged, was edited, or comes from a newer metazoo: get or train it again, "
                "or `pip install -U metazoo`",
            ) from error

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> Blueprint:
        known = {"split_sha256": None, "data_sha256": None, **values}
        known = {f.name: known[f.name] for f in dataclasses.fields(cls)}
        for name in ("algorithm", "backbone", "dataset", "metazoo"):
            if not isinstance(known[name], str):
                raise TypeError(f"'{name}' is not text")
            if not isinstance(known.get(f"{name}_options", {}), dict):
                raise TypeError(f"'{name}_options' is not a dictionary")
        for name in ("split_sha256", "data_sha256"):
            if not isinstance(known[name], str | None):
                raise TypeError(f"'{name}' is not text")
        if kind_of(check_input_format(known["input_format"])) != "numbers":
            check_size(shape_of(known["input_format"]))
        shape = tuple(int(n) for n in known["spec"]["input_shape"])
        check_size(shape)
        spec = TaskSpec(**{**known["spec"], "input_shape": shape})
        recipe = options.build(Recipe, known["recipe"], "the recipe")
        return cls(**{**known, "recipe": recipe, "spec": spec})


def is_local_path(value: Any) -> bool:
    """Return whether the value of an option is the path of something on this machine."""
    return isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))


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
