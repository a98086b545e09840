"""The backbone `bag`: padding, ids, derivatives, and every algorithm that trains over it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metazoo import OptionError, TaskSpec
from metazoo.backbones.bag import Bag
from metazoo.base.backbone import check_second_derivative
from metazoo.plugins.registry import registry
from metazoo.texts import ngrams
from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan
from metazoo.zoo import run_folder

SMALL: dict[str, Any] = {"width": 8, "buckets": 64}


def bag(length: int = 12, **config: Any) -> Bag:
    torch.manual_seed(0)
    return Bag((length,), Bag.Config(**{**SMALL, **config})).eval()


def texts(*raw: str, length: int = 12) -> Tensor:
    return ngrams(list(raw), length)


@torch.no_grad()
def test_features_have_one_length_and_are_not_those_of_other_texts() -> None:
    z = bag()(texts("where is my card", "turn on the light", "what is the time"))
    assert z.shape == (3, 8)
    torch.testing.assert_close(z.norm(dim=1), torch.full((3,), 3.0), rtol=1e-3, atol=0)
    assert torch.cdist(z, z).add(torch.eye(3)).min() > 0.1


@torch.no_grad()
def test_padding_does_not_matter() -> None:
    backbone = bag()
    x = texts("my card", length=40)
    count = int((x != 0).sum())
    torch.testing.assert_close(backbone(x), backbone(x[:, :count]))
    empty = backbone(torch.zeros(2, 12, dtype=torch.long))
    assert empty.isfinite().all()
    torch.testing.assert_close(backbone(torch.cat([x[:, :12], x[:, :12] * 0]))[1], empty[0])


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter() -> None:
    x = texts("my new card is lost", length=5)
    torch.testing.assert_close(*bag()(torch.cat([x, x.flip(1)])).split(1))


@torch.no_grad()
def test_any_id_has_an_embedding() -> None:
    backbone = bag()
    x = torch.tensor([[1, 64, 65, 2**40] + [0] * 8])
    assert backbone(x).isfinite().all()
    torch.testing.assert_close(backbone(x[:, [0]]), backbone(x[:, [2]]))  # 65 is 1 modulo 64
    assert backbone(x[:, [1]]).norm() > 2  # 64 is not the padding


def test_it_is_differentiable_twice() -> None:
    x = texts("my card", "a lost card", "", length=6)
    backbone = bag(length=6, width=3, buckets=8).double()
    check_second_derivative(backbone, x)
    parameters = {name: p.detach() for name, p in backbone.named_parameters()}

    def loss(*values: Tensor) -> Tensor:
        named = dict(zip(parameters, values))
        rows = named["table.weight"]
        named["table.weight"] = torch.cat([rows[:1] * 0, rows[1:]])  # the padding's stays zero
        z = torch.func.functional_call(backbone, named, x)
        return (z * torch.arange(9.0).view(3, 3)).sin().sum()

    values = [value.clone().requires_grad_() for value in parameters.values()]
    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)
    gradients = torch.autograd.grad(loss(*values), values)
    assert not gradients[list(parameters).index("table.weight")][0].any()  # the padding's


@pytest.mark.parametrize("shape", [(1, 28, 28), ()])
def test_images_are_not_texts(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="backbone 'bag' needs texts"):
        Bag(shape)
    with pytest.raises(OptionError, match="these examples are numbers"):
        bag()(torch.rand(2, 12))


@pytest.mark.parametrize("length", [1, 12])
def test_maml_adapts_it_one_task_at_a_time_or_all_at_once(length: int) -> None:
    maml = registry().algorithm("maml").value
    x = texts("my card", "a lost card", "the weather", "rain today", length=length)
    support_x, query_x = x[[0, 2]].expand(2, 2, -1), x[[1, 3]].expand(2, 2, -1)
    support_y = torch.tensor([[0, 1], [1, 0]])
    answers = []
    for tasks in ("loop", "vmap", "auto"):
        model = maml(
            bag(length), TaskSpec((length,), 2, 2, integers=True), maml.Config(tasks=tasks)
        )
        torch.manual_seed(1)
        torch.nn.init.normal_(model.head.weight)
        answers.append(model(support_x, support_y, query_x))
        assert model._uses_vmap(support_x) == (tasks == "vmap")
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[0], answers[2], rtol=0, atol=0)


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of texts whose classes have words of their own among common ones."""
    path = tmp_path_factory.mktemp("topics") / "topics.csv"
    common = ("please", "tell", "me", "about", "the", "now")
    rows = torch.Generator().manual_seed(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for topic in range(12):
            for _ in range(12):
                draw = torch.randint(6, (6,), generator=rows).tolist()
                own = [f"word{topic}x{i % 3}" for i in draw[:2]]
                writer.writerow((" ".join([*own, *(common[i] for i in draw)]), f"topic{topic}"))
    return path


@pytest.mark.parametrize("algorithm", ["protonet", "matching", "baseline", "maml"])
def test_every_algorithm_trains_on_texts(algorithm: str, topics: Path, tmp_path: Path) -> None:
    recipe = {
        **{"ways": 3, "shots": 2, "queries": 4, "steps": 6, "validate_every": 3, "device": "cpu"},
        **{"validation_episodes": 8, "test_episodes": 20},
    }
    blueprint, data = plan(
        algorithm,
        "csv",
        {},
        {"root": str(topics), "length": 64, "val_fraction": 0.3, "test_fraction": 0.3},
        {"width": 32, "buckets": 2**12},
        recipe,
    )
    assert blueprint.backbone == "bag"
    assert blueprint.spec.integers
    run_folder.create(tmp_path / "run", blueprint)
    assert train(blueprint, data, tmp_path / "run", Watcher())["mean"] > 0.5  # chance is 0.33


@pytest.mark.parametrize(
    ("options", "recipe", "message"),
    [
        ({"tta": "mirrored"}, {}, "test-time augmentation needs images"),
        ({}, {"augment": "photo"}, "--augment needs images"),
        ({}, {"backbone": "conv4"}, "backbone 'conv4' needs images"),
    ],
)
def test_what_is_for_images_is_refused(
    options: dict[str, Any], recipe: dict[str, Any], message: str, topics: Path
) -> None:
    sizes = {"ways": 2, "queries": 2, "train_ways": 2, "device": "cpu"}
    with pytest.raises(OptionError, match=message):
        plan("protonet", "csv", options, {"root": str(topics)}, {}, {**sizes, **recipe})
