"""ALGORITHM@ENCODER wherever a model is named; its file refers to the encoder's weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from commands import Capture, failure, output
from encoders import write_image_encoder
from once import once

import metazoo
from metazoo.base.encoder import Encoder
from metazoo.errors import CheckpointError, MetazooError, OptionError, UnknownNameError
from metazoo.inputs import encoder_named
from metazoo.zoo.find import find
from metazoo.zoo.weights import load_model, save_model

FEW = ["--ways", "3", "--queries", "3", "--episodes", "8"]


@pytest.fixture
def vit(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """The folder of an encoder of images, to be changed."""
    pytest.importorskip("transformers", reason='needs `pip install "metazoo[hf]"`')
    made = once(tmp_path_factory, "hf-vit", lambda folder: write_image_encoder(folder, "vit"))
    return Path(shutil.copytree(made, tmp_path / "vit"))


@pytest.fixture
def task() -> metazoo.Episode:
    x = torch.rand(1, 12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(3).repeat_interleave(2)[None]
    return metazoo.Episode(x[:, :6], y, x[:, 6:], y)


@torch.no_grad()
def answers(model: metazoo.Algorithm, task: metazoo.Episode) -> torch.Tensor:
    return model(task.support_x, task.support_y, task.query_x)


def test_it_is_a_learner_over_the_frozen_encoder(vit: Path, task: metazoo.Episode) -> None:
    model = metazoo.load(f"protonet@hf:{vit}")
    assert not model.training
    assert list(model.parameters()) == []
    support, query = (model.backbone(x[0]) for x in (task.support_x, task.query_x))
    means = support.view(3, 2, -1).mean(1)
    nearest = torch.cdist(query, means).argmin(1)
    assert torch.equal(answers(model, task)[0].argmax(1), nearest)


def test_options_can_be_overridden(vit: Path) -> None:
    assert metazoo.load(f"protonet@hf:{vit}", tta="mirrored").config.tta == "mirrored"
    with pytest.raises(OptionError, match="has no option 'shots'"):
        metazoo.load(f"protonet@hf:{vit}", shots=3)


def test_it_was_trained_on_nothing(vit: Path) -> None:
    blueprint = find(f"protonet@hf:{vit}").blueprint
    assert blueprint.dataset == ""
    with pytest.raises(OptionError, match="was not trained") as caught:
        blueprint.data()
    assert "--dataset folder" in (caught.value.hint or "")
    assert type(blueprint).from_dict(blueprint.as_dict(), "here") == blueprint


@pytest.mark.parametrize(
    ("name", "error", "message", "hint"),
    [
        ("maml@hf:x", OptionError, "'maml' changes the weights of its backbone", "protonet"),
        ("protonet@conv4", OptionError, "'conv4' is not an encoder", "--backbone conv4"),
        ("protonet@conv5", UnknownNameError, "no backbone named 'conv5'", "did you mean"),
        ("protonett@hf:x", UnknownNameError, "no algorithm named 'protonett'", "did you mean"),
        ("protonet@hf", OptionError, "needs the name of an encoder", "protonet@hf:"),
        ("protonet@a b", OptionError, "does not name an encoder", "BACKBONE:NAME"),
        ("protonet@minilm:x", OptionError, "is a single encoder", "leave out"),
    ],
)
def test_names_that_are_none(name: str, error: type[MetazooError], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        find(name)
    assert hint in (caught.value.hint or "")


def test_a_file_of_that_name_comes_first(
    protonet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(protonet_run / "best.safetensors", "protonet@conv4")
    assert find("protonet@conv4").blueprint.backbone == "conv4"


def test_a_saved_model_holds_no_weights_of_the_encoder(
    vit: Path, task: metazoo.Episode, tmp_path: Path
) -> None:
    source = find(f"protonet@hf:{vit}")
    path = tmp_path / "saved.safetensors"
    save_model(path, source.model(), source.blueprint)
    assert path.read_bytes() == source.contents
    assert safetensors.torch.load_file(path) == {}
    assert len(source.contents) < 4000 < (vit / "model.safetensors").stat().st_size
    loaded = metazoo.load(path)
    assert torch.equal(answers(loaded, task), answers(source.model(), task))
    options = load_model(path)[1].backbone_options
    assert options["name"] == str(vit)
    assert len(options["sha256"]) == len(options["settings"]) == 64


def test_a_saved_model_is_refused_where_other_weights_are_installed(
    vit: Path, task: metazoo.Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(f"protonet@hf:{vit}")
    path = tmp_path / "saved.safetensors"
    save_model(path, source.model(), source.blueprint)
    weights = safetensors.torch.load_file(vit / "model.safetensors")
    other = {name: value + 0.01 for name, value in weights.items()}
    safetensors.torch.save_file(other, vit / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not the one that the model was made with"):
        answers(metazoo.load(path), task)
    # A new name takes the weights that are there now.
    answers(metazoo.load(f"protonet@hf:{vit}"), task)
    shutil.rmtree(vit)
    with pytest.raises(CheckpointError, match="there is no folder"):
        metazoo.load(path)


def test_eval_reads_the_data_as_the_encoder_takes_them(
    capsys: Capture, vit: Path, tree: Path
) -> None:
    words = ["--dataset", "folder", "--data-root", str(tree), *FEW, "--json"]
    out, err = output(capsys, "eval", f"protonet@hf:{vit}", f"matching@hf:{vit}", *words)
    first, second = json.loads(out)["results"]
    assert err == ""
    assert first["data_options"]["size"] == second["data_options"]["size"] == 32
    assert (first["tasks"], first["transductive"]) == (8, False)
    error, hint = failure(capsys, 2, "eval", f"protonet@hf:{vit}")
    assert "has no data set of its own" in error
    assert "--dataset folder" in hint


def test_a_second_evaluation_reads_no_weights(
    capsys: Capture, vit: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", f"protonet@hf:{vit}", "--dataset", "folder", "--data-root", str(tree), *FEW]
    first = output(capsys, *words)
    encoder, _ = encoder_named(f"hf:{vit}")
    monkeypatch.setattr(encoder, "network", property(lambda self: pytest.fail("it is loaded")))
    assert output(capsys, *words) == first


def test_a_run_over_an_encoder_holds_its_pins_and_is_not_exported(
    capsys: Capture, vit: Path, tree: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe = ["--ways", "2", "--queries", "3", "--test-episodes", "4", "--device", "cpu"]
    out, _ = output(
        capsys,
        *("train", "protonet", "--backbone", "hf", "--backbone-name", str(vit)),
        *("--dataset", "folder", "--data-root", str(tree), "--out", str(run), *recipe),
    )
    assert "2-way 1-shot test accuracy" in out
    model, blueprint = load_model(run / "best.safetensors")
    pinned = find(f"protonet@hf:{vit}").blueprint
    assert blueprint.backbone_options == pinned.backbone_options
    assert blueprint.input_format == pinned.input_format
    assert model.state_dict() == {}
    error, hint = failure(
        capsys, 2, "export", str(run), "--name", "protonet.vit", "--out", str(tmp_path / "out")
    )
    assert "which no other machine has" in error
    assert "an encoder of the Hub" in hint


class Counting(Encoder):
    """Gives the means of the colours, and counts."""

    @dataclasses.dataclass(frozen=True)
    class Config(Encoder.Config):
        scale: int = 1

    config: Config
    loaded = 0
    encoded = 0

    def __init__(self, input_shape: tuple[int, ...], config: Any = None):
        super().__init__(input_shape, config)
        self.out_features = 3

    @classmethod
    def load(cls, config: Any) -> torch.nn.Module:
        cls.loaded += 1
        return torch.nn.Linear(3, 3)

    def encode(self, network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert not network.training
        assert not torch.is_autocast_enabled("cpu")
        type(self).encoded += len(x)
        return self.config.scale * x.mean((2, 3)).double()


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counting]:
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(Counting, "loaded", 0)
    monkeypatch.setattr(Counting, "encoded", 0)
    return lambda **options: Counting((3, 4, 4), Counting.Config(**options))


def test_encoders_of_the_same_options_share_a_network_and_the_cache(
    counting: Callable[..., Counting],
) -> None:
    x = torch.rand(5, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z = counting(sha256="shared")(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, x.mean((2, 3)))
    encoder = counting(sha256="shared")
    assert torch.equal(encoder(torch.cat([x, x + 1]))[:5], z)
    assert (Counting.loaded, Counting.encoded) == (1, 10)
    torch.testing.assert_close(counting(sha256="shared", scale=2)(x), 2 * z)
    assert (Counting.loaded, Counting.encoded) == (2, 15)
    assert list(encoder.parameters()) == []
    assert encoder.state_dict() == {}
    assert encoder.train().network.training is False
