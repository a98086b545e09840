"""Every option that is overridden in a trained model changes its answers, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metazoo import options, zoo
from metazoo.base.recipe import Recipe
from metazoo.classifier import FewShotClassifier
from metazoo.datasets.glyphs import Glyphs
from metazoo.errors import CheckpointError, OptionError
from metazoo.options import Affects, Option
from metazoo.plugins.registry import registry
from metazoo.tasks.episode import Episode, TaskSpec
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.overrides import check_effect
from metazoo.zoo.weights import save_model

# The options that change answers, for each algorithm and the options that it was trained with.
# `tasks` changes only the speed.
TAKEN: list[tuple[str, dict[str, Any], set[str]]] = [
    ("maml", {}, {"eval_inner_steps", "adapt", "batch_norm", "center", "tta", "tasks"}),
    (
        "maml",
        {"eval_inner_steps": 2, "learned_rates": "per-step", "head_lr": 0.1, "zero_head": True},
        {"eval_inner_steps", "batch_norm", "center", "tta", "tasks"},
    ),
    ("protonet", {}, {"tta"}),
    ("protonet", {"distance": "cosine"}, {"tta"}),
    ("matching", {}, {"tta"}),
    ("matching", {"fce": True}, {"tta", "fce_steps"}),
    ("matching", {"learn_temperature": False}, {"tta", "temperature", "similarity"}),
    ("matching", {"similarity": "euclidean", "learn_temperature": False}, {"tta", "similarity"}),
    ("baseline", {}, {"tta", "finetune_steps", "finetune_lr", "finetune_decay"}),
    ("baseline", {"head": "cosine"}, {"tta", "finetune_steps", "finetune_lr"}),
    ("baseline++", {}, {"tta", "finetune_steps", "finetune_lr"}),
    ("ridge", {}, {"tta", "penalty", "power"}),
    ("simpleshot", {}, {"tta"}),
    ("logistic", {}, {"tta", "penalty"}),
]


def saved(folder: Path, algorithm: str, chosen: dict[str, Any]) -> Path:
    """Save a model with random weights."""
    config = registry().algorithm(algorithm).value.Config
    filled = options.as_dict(options.build(config, chosen, algorithm))
    data = Glyphs(Glyphs.Config())
    blueprint = Blueprint(
        algorithm,
        filled,
        "conv4",
        {"width": 4},
        "glyphs",
        options.as_dict(data.config),
        Recipe(ways=3),
        TaskSpec((1, 28, 28), 3, 7),
        data.input_format,
    )
    torch.manual_seed(1)
    save_model(folder / "model.safetensors", blueprint.model(), blueprint)
    return folder / "model.safetensors"


class Noise:
    """Tasks of random images: three ways, two shots."""

    def draw(self, first: int, count: int) -> Episode:
        generator = torch.Generator().manual_seed(first)
        x = torch.rand(count, 12, 1, 28, 28, generator=generator)
        y = torch.arange(6).div(2, rounding_mode="floor").expand(count, -1)
        return Episode(x[:, :6], y, x[:, 6:], y)


def other_values(option: Option, value: Any) -> list[Any]:
    """Return values that an option does not have."""
    if option.type is bool:
        return [not value]
    if option.choices:
        return [choice for choice in option.choices if choice != value]
    return [3 if option.type is int else 0.7]


def is_taken(source: zoo.find.Source, name: str, value: Any) -> bool:
    try:
        check_effect(source.model, source.blueprint, {name: value}, Noise())
    except (OptionError, CheckpointError):
        return False
    return True


@pytest.mark.parametrize(("algorithm", "chosen", "taken"), TAKEN)
def test_an_override_changes_the_answers_or_is_refused(
    algorithm: str, chosen: dict[str, Any], taken: set[str], tmp_path: Path
) -> None:
    source = zoo.find(saved(tmp_path, algorithm, chosen))
    known = options.read(registry().algorithm(algorithm).value.Config)
    found = {
        option.name: [
            is_taken(source, option.name, value)
            for value in other_values(option, source.blueprint.algorithm_options[option.name])
        ]
        for option in known
    }
    assert {name for name, each in found.items() if any(each)} == taken
    assert {name for name, each in found.items() if all(each)} == taken
    for option in known:
        if option.affects is Affects.TRAINING:
            assert option.name not in taken
        else:
            assert (option.affects is Affects.SPEED) == (option.name == "tasks")


def test_every_algorithm_is_covered() -> None:
    built_in = {e.name for e in registry().algorithms if e.plugin.distribution == "metazoo"}
    assert {algorithm for algorithm, _, _ in TAKEN} == built_in


@pytest.mark.parametrize(
    ("algorithm", "changes", "words", "hint"),
    [
        ("maml", {"inner_lr": 0.5}, "'inner_lr' of 'maml' has no effect", "eval_inner_steps"),
        ("maml", {"tta": "shifted", "inner_steps": 2}, "'inner_steps' of 'maml' has no", "tta"),
        ("matching", {"temperature": 1.0}, r"'temperature' .* weights \('log_scale'\)", "train"),
        ("matching", {"tta": "shifted", "temperature": 1.0}, "'temperature' .* held", "train"),
    ],
)
def test_what_the_weights_hold_is_refused_wherever_a_model_is_loaded(
    algorithm: str, changes: dict[str, Any], words: str, hint: str, tmp_path: Path
) -> None:
    path = saved(tmp_path, algorithm, {})
    images = torch.rand(3, 1, 28, 28)
    for load in (
        lambda: zoo.load(path, **changes),
        lambda: FewShotClassifier(path, options=changes, device="cpu").fit(images, [0, 1, 2]),
    ):
        with pytest.raises(OptionError, match=words) as caught:
            load()
        assert hint in str(caught.value.hint)


def test_loading_with_overrides_leaves_the_generator_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, "matching", {})
    state = torch.get_rng_state()
    zoo.load(path, tta="shifted")
    assert torch.equal(torch.get_rng_state(), state)
