"""Test-time augmentation: shifted images and the mean of their embeddings."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.conv4 import Conv4
from metazoo.backbones.mlp import MLP
from metazoo.nn.augmentation import shifted


def test_an_image_moves_by_a_pixel_each_way_and_repeats_its_border() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    itself, up, down, left, right = shifted(x)
    assert torch.equal(itself, x)
    assert torch.equal(up, x[:, :, [1, 2, 2]])
    assert torch.equal(down, x[:, :, [0, 0, 1]])
    assert torch.equal(left, x[:, :, :, [1, 2, 3, 3]])
    assert torch.equal(right, x[:, :, :, [0, 0, 1, 2]])


def protonet(tta: Literal["none", "shifted", "mirrored"]) -> ProtoNet:
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), Conv4.Config(width=8))
    model = ProtoNet(backbone, metazoo.TaskSpec((1, 16, 16), 3), ProtoNet.Config(tta=tta))
    model(
        torch.rand(1, 6, 1, 16, 16), torch.arange(6)[None] % 3, torch.rand(1, 6, 1, 16, 16)
    )  # moves running statistics
    return model


def test_an_embedding_is_the_mean_over_the_shifts_except_in_training() -> None:
    one, several = protonet("none"), protonet("shifted")
    x = torch.rand(7, 1, 16, 16)
    torch.testing.assert_close(several.features(x), one.features(x))
    one.eval()
    several.eval()
    torch.testing.assert_close(one.features(x), one.backbone(x))
    expected = sum(one.features(image) for image in shifted(x)) / 5
    torch.testing.assert_close(several.features(x), expected)
    assert (several.features(x) - one.features(x)).abs().max() > 1e-3
    torch.testing.assert_close(several.features(x)[3:4], several.features(x[3:4]))


def test_mirrored_is_the_mean_over_an_image_and_its_mirror_image() -> None:
    one, both = protonet("none").eval(), protonet("mirrored").eval()
    x = torch.rand(4, 1, 16, 16)
    expected = (one.features(x) + one.features(x.flip(3))) / 2
    torch.testing.assert_close(both.features(x), expected)
    torch.testing.assert_close(both.features(x.flip(3)), expected)
    assert (both.features(x) - one.features(x)).abs().max() > 1e-3


class Doubled(metazoo.FeatureLearner):
    """A plugin's algorithm with an embedding of its own, and none of our options declared."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.backbone(x)

    def classify(
        self, support_z: torch.Tensor, support_y: torch.Tensor, query_z: torch.Tensor
    ) -> torch.Tensor:
        return -metazoo.ops.pairwise_sqdist(query_z, metazoo.class_means(support_z, support_y))


def test_an_embedding_of_a_plugin_is_averaged_too() -> None:
    several = protonet("shifted").eval()
    plugin = Doubled(several.backbone, several.spec, Doubled.Config(tta="shifted")).eval()
    x = torch.rand(4, 1, 16, 16)
    torch.testing.assert_close(plugin.features(x), 2 * several.features(x))
    support_y = torch.tensor([[0, 1, 2]])
    answer = plugin(x[None, :3], support_y, x[None, 3:])
    torch.testing.assert_close(
        answer,
        plugin.classify(plugin.features(x)[None, :3], support_y, plugin.features(x)[None, 3:]),
    )


def test_a_shipped_model_changes_less_with_a_shift_of_a_pixel() -> None:
    models: list[Any] = [metazoo.load("protonet.omniglot", tta=tta) for tta in ("none", "shifted")]
    x = torch.zeros(1, 1, 28, 28)
    x[:, :, 8:20, 10:12] = 1
    x[:, :, 8:10, 10:20] = 1
    with torch.no_grad():
        moved = [
            (model.features(x) - model.features(x.roll(1, 3))).norm() / model.features(x).norm()
            for model in models
        ]
    assert moved[1] < 0.75 * moved[0]


def test_vectors_cannot_be_shifted() -> None:
    with pytest.raises(
        metazoo.OptionError, match=r"needs images; these examples have shape \(5,\)"
    ):
        ProtoNet(MLP((5,)), metazoo.TaskSpec((5,), 3), ProtoNet.Config(tta="shifted"))
