"""Views of an image: what moves where, and what an embedding is made of."""

from __future__ import annotations

import pytest
import torch

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones import MLP, Conv4
from metazoo.views import shifted


def test_an_image_moves_by_a_pixel_each_way_and_repeats_its_border() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    itself, up, down, left, right = shifted(x)
    assert torch.equal(itself, x)
    assert torch.equal(up, x[:, :, [1, 2, 2]])
    assert torch.equal(down, x[:, :, [0, 0, 1]])
    assert torch.equal(left, x[:, :, :, [1, 2, 3, 3]])
    assert torch.equal(right, x[:, :, :, [0, 0, 1, 2]])


def protonet(views: str) -> ProtoNet:
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), Conv4.Config(width=8))
    model = ProtoNet(backbone, metazoo.TaskSpec((1, 16, 16), 3), ProtoNet.Config(views=views))
    model(torch.rand(1, 6, 1, 16, 16), torch.arange(6)[None] % 3, torch.rand(1, 6, 1, 16, 16))  # moves running statistics
    return model


def test_an_embedding_is_the_mean_of_those_of_the_views_but_in_training() -> None:
    one, several = protonet("one"), protonet("shifted")
    x = torch.rand(7, 1, 16, 16)
    assert torch.equal(several.embed(x), one.embed(x))
    one.eval()
    several.eval()
    assert torch.equal(one.embed(x), one.backbone(x))
    expected = sum(one.embed(view) for view in shifted(x)) / 5
    torch.testing.assert_close(several.embed(x), expected)
    assert (several.embed(x) - one.embed(x)).abs().max() > 1e-3
    torch.testing.assert_close(several.embed(x)[3:4], several.embed(x[3:4]))


def test_a_shipped_model_bears_a_pixel_better_with_views() -> None:
    models = [metazoo.load("protonet.omniglot", views=views) for views in ("one", "shifted")]
    x = torch.zeros(1, 1, 28, 28)
    x[:, :, 8:20, 10:12] = 1
    x[:, :, 8:10, 10:20] = 1
    with torch.no_grad():
        moved = [(model.embed(x) - model.embed(x.roll(1, 3))).norm() / model.embed(x).norm() for model in models]
    assert moved[1] < 0.75 * moved[0]


def test_there_are_no_views_of_vectors() -> None:
    with pytest.raises(metazoo.OptionError, match=r"examples of shape \(5,\) are no images"):
        ProtoNet(MLP((5,)), metazoo.TaskSpec((5,), 3), ProtoNet.Config(views="shifted"))
