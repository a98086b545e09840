"""Encoders of timm: their features are timm's own. Tests that need timm say so where it cannot be imported."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from metazoo_timm import Timm
from safetensors.torch import load_file, save_file

import metazoo

CFG = {
    "input_size": [3, 64, 64],
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "first_conv": "conv1.0",
    "classifier": "fc",
    "num_classes": 10,
}


@functools.cache
def why_not() -> str:
    try:
        import timm  # noqa: F401
    except Exception as error:  # torchvision raises RuntimeError if it is built for another torch
        return f"timm cannot be imported: {error}"
    return ""


needs_timm = pytest.mark.skipif(bool(why_not()), reason=why_not())


def write(folder: Path, **changes: Any) -> Path:
    """Write the configuration of an encoder, and weights that are not of any network."""
    folder.mkdir(exist_ok=True)
    values = {"architecture": "resnet10t", "num_classes": 10, "pretrained_cfg": {**CFG, **changes}}
    (folder / "config.json").write_text(json.dumps(values))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """A network of timm with random weights, in a folder."""
    import timm

    folder = write(tmp_path / "resnet")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10)
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")


def taken(folder: Path) -> dict[str, Any]:
    return Timm.input_format_of(Timm.Config(name=str(folder)))


@pytest.mark.parametrize(
    ("changes", "crop"),
    [
        ({}, 0.875),
        ({"crop_pct": 1.0}, 1.0),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, None),
        ({"crop_mode": None}, 0.875),
    ],
)
def test_the_preprocessing_is_read(
    changes: dict[str, Any], crop: float | None, tmp_path: Path
) -> None:
    found = taken(write(tmp_path, **changes))
    assert metazoo.inputs.check_input_format(found) == found
    assert (found["size"], found["channels"], found.get("crop")) == (64, 3, crop)


@pytest.mark.parametrize(
    "changes", [{"input_size": [3, 64, 32]}, {"input_size": [2, 64, 64]}, {"crop_mode": "border"}]
)
def test_preprocessing_that_cannot_be_applied_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(metazoo.CheckpointError, match="metazoo gives square ones"):
        taken(write(tmp_path, **changes))


def test_names_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Timm.named("resnet50.a1_in1k@main") == {"name": "resnet50.a1_in1k", "revision": "main"}
    (tmp_path / "a@b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Timm.named("a@b") == {"name": "a@b"}
    for name, message in (("", "needs the name"), ("a@b", "has no config.json")):
        with pytest.raises(metazoo.OptionError, match=message):
            taken(Path(name)) if name else Timm.input_format_of(Timm.Config())
    folder = write(tmp_path / "pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(metazoo.OptionError, match=r"has no model\.safetensors") as caught:
        taken(folder)
    assert "pickle" in (caught.value.hint or "")
    write(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(metazoo.CheckpointError, match=r"config\.json cannot be read"):
        taken(folder)


def test_without_timm_its_install_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(metazoo.OptionError, match="need timm") as caught:
        Timm.pinned(Timm.Config(name=str(write(tmp_path))))
    assert "pip install timm" in (caught.value.hint or "")


@needs_timm
@torch.no_grad()
def test_features_are_those_of_timm(resnet: Path) -> None:
    import timm

    theirs = timm.create_model("resnet10t", num_classes=10).eval()
    theirs.load_state_dict(load_file(resnet / "model.safetensors"))
    x = torch.rand(3, 3, 64, 64)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=CFG))
    normalised = torch.stack([transform.transforms[-1](image) for image in x])
    expected = theirs.forward_head(theirs.forward_features(normalised), pre_logits=True)
    pinned = Timm.pinned(Timm.Config(name=str(resnet)))
    encoder = Timm((3, 64, 64), pinned)
    assert encoder.out_features == expected.shape[1] == pinned.features
    torch.testing.assert_close(encoder(x), expected, atol=1e-4, rtol=1e-4)


@needs_timm
def test_it_is_named_and_other_weights_are_refused(resnet: Path) -> None:
    model: Any = metazoo.load(f"protonet@timm:{resnet}")
    x = torch.rand(1, 3, 64, 64)
    model.backbone(x)
    weights = load_file(resnet / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, resnet / "model.safetensors")
    again = Timm((3, 64, 64), Timm.Config(**{**vars(model.backbone.config), "revision": "x"}))
    with pytest.raises(
        metazoo.CheckpointError, match="is not the one that the model was made with"
    ):
        again(x)


@needs_timm
def test_damaged_files_are_refused(resnet: Path) -> None:
    config = Timm.Config(name=str(resnet))
    path = resnet / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(metazoo.CheckpointError, match="cannot be built"):
        Timm.load(config)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(metazoo.CheckpointError, match="cannot be built"):
        Timm.load(config)
    values = json.loads((resnet / "config.json").read_text())
    (resnet / "config.json").write_text(json.dumps({**values, "architecture": "hf-hub:us/evil"}))
    with pytest.raises(metazoo.CheckpointError, match="has no architecture 'hf-hub:us/evil'"):
        Timm.pinned(config)
