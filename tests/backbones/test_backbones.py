"""Shapes, sizes and limits of the backbones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metazoo
from metazoo.backbones.conv4 import Conv4
from metazoo.backbones.mlp import MLP
from metazoo.backbones.resnet12 import ResNet12


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "features"),
    [
        (Conv4((1, 28, 28)), 64),
        (Conv4((3, 84, 84)), 1600),
        (Conv4((3, 84, 84), Conv4.Config(width=32)), 800),
        (Conv4((1, 28, 28), Conv4.Config(width=8, growth=1.5)), 27),
        (Conv4((1, 16, 47)), 128),
        (ResNet12((1, 28, 28), ResNet12.Config(scale=0.1)), 64),
        (ResNet12((3, 16, 40), ResNet12.Config(scale=0.02)), 13),
        (MLP((1,)), 40),
        (MLP((3, 5), MLP.Config(width=7, depth=1)), 7),
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'input_shape', '')}",
)
@torch.no_grad()
def test_features_have_the_declared_size(backbone: metazoo.Backbone, features: int) -> None:
    assert backbone.out_features == features
    assert backbone(torch.rand(3, *backbone.input_shape)).shape == (3, features)


@pytest.mark.parametrize("build", [Conv4, MLP, ResNet12])
@torch.no_grad()
def test_examples_do_not_affect_each_other_in_eval_mode(build: type[metazoo.Backbone]) -> None:
    torch.manual_seed(0)
    backbone = build((1, 16, 16))
    x = torch.rand(4, 1, 16, 16)
    backbone(x)  # moves running statistics away from their start
    backbone.eval()
    torch.testing.assert_close(backbone(x)[2:3], backbone(x[2:3]), rtol=1e-4, atol=1e-5)


def test_conv4_grows_from_block_to_block() -> None:
    def channels(**config: float) -> list[int]:
        backbone = Conv4((1, 28, 28), Conv4.Config(**config))  # type: ignore[arg-type]
        return [
            module.out_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)
        ]

    assert channels() == [64, 64, 64, 64]
    assert channels(width=8, growth=2) == [8, 16, 32, 64]
    assert channels(width=5, growth=1.3) == [5, 6, 8, 11]


def test_conv4_with_a_head_has_the_known_number_of_parameters() -> None:
    # 3x3 kernels, biases and BatchNorm: 1 -> 64, then 64 -> 64 three times; a head of 5 ways.
    known = (9 * 64 + 64 + 128) + 3 * (9 * 64 * 64 + 64 + 128) + (64 * 5 + 5)
    backbone = Conv4((1, 28, 28))
    assert (
        parameters(nn.Sequential(backbone, nn.Linear(backbone.out_features, 5))) == known == 112_261
    )


def test_resnet12_has_640_features_and_the_known_number_of_parameters() -> None:
    backbone = ResNet12((3, 84, 84))
    assert backbone.out_features == 640
    assert parameters(backbone) == 12_424_320


def test_mlp_with_a_head_is_the_sinusoid_regressor() -> None:
    assert parameters(nn.Sequential(MLP((1,)), nn.Linear(40, 1))) == (40 + 40) + (1600 + 40) + (
        40 + 1
    )


@torch.no_grad()
def test_conv4_equals_blocks_with_relu_before_pooling() -> None:
    torch.manual_seed(0)
    backbone = Conv4((2, 32, 32))
    x = torch.randn(3, 2, 32, 32)
    expected = x
    for layer in backbone.blocks:
        if isinstance(layer, nn.Conv2d):
            expected = F.conv2d(expected, layer.weight, layer.bias, padding=1)
        elif isinstance(layer, nn.BatchNorm2d):
            expected = F.batch_norm(expected, None, None, layer.weight, layer.bias, training=True)
            expected = F.max_pool2d(expected.clamp_min(0), 2)
    torch.testing.assert_close(backbone(x), expected.flatten(1))


@pytest.mark.parametrize("build", [Conv4, ResNet12])
@pytest.mark.parametrize("shape", [(1, 15, 28), (1, 28, 15), (28, 28), (6,)], ids=str)
def test_other_shapes_and_small_images_are_refused_with_a_hint(
    build: type[metazoo.Backbone], shape: tuple[int, ...]
) -> None:
    with pytest.raises(metazoo.OptionError, match=f"'{build.__name__.lower()}'.*16x16") as caught:
        build(shape)
    assert str(shape) in caught.value.message
    assert "mlp" in (caught.value.hint or "")


@pytest.mark.parametrize("build", [Conv4, MLP, ResNet12])
def test_gradients_reach_every_parameter(build: type[metazoo.Backbone]) -> None:
    torch.manual_seed(0)
    backbone = build((1, 16, 16))
    backbone(torch.randn(4, 1, 16, 16)).square().sum().backward()
    assert [
        name
        for name, p in backbone.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ] == []


@pytest.mark.parametrize(
    "backbone",
    [Conv4((1, 28, 28)), ResNet12((1, 28, 28), ResNet12.Config(scale=0.1)), MLP((1, 28, 28))],
)
def test_low_precision_features_and_gradients_are_close_to_float32(
    backbone: metazoo.Backbone,
) -> None:
    torch.manual_seed(0)
    x, direction = torch.rand(32, 1, 28, 28), torch.randn(32, backbone.out_features)
    found = []
    for dtype in (None, torch.bfloat16):
        backbone.low_precision = dtype
        backbone.zero_grad()
        z = backbone(x)
        (z * direction).mean().backward()
        found.append(
            (
                z.detach(),
                torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None]),
            )
        )
    backbone.low_precision = None
    (exact, exact_gradient), (near, near_gradient) = found
    assert near.dtype == near_gradient.dtype == torch.float32
    assert 1e-5 < (near - exact).norm() / exact.norm() < 0.03  # not the same: bf16 has 8 bits
    # Pooling and ReLU may choose otherwise, so only the direction of the gradient is compared.
    assert F.cosine_similarity(exact_gradient, near_gradient, dim=0) > 0.9
