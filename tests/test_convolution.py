"""Convolution as a matrix product: the same numbers as Conv2d's, to every order, under vmap with weights of each task's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import metazoo

OPTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "padding": (0, 1), "stride": (2, 1), "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 1},
]


def network(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, **options), nn.Tanh()).double()


def second_order(net: nn.Module, unfolded: bool) -> tuple[Tensor, ...]:
    """Return the gradient by weights and images of a loss after an inner step, for three tasks with weights of their own."""
    for convolution in metazoo.use_task_convolutions(net):
        convolution.unfolded = unfolded
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: p.detach() + torch.randn(3, *p.shape, dtype=p.dtype, generator=generator) for name, p in net.named_parameters()
    }
    x = torch.randn(3, 4, 2, 7, 6, dtype=torch.float64, generator=generator)

    def loss(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, own, x).square().mean()

    def after_a_step(own: dict[str, Tensor], x: Tensor) -> Tensor:
        slope = grad(loss)(own, x)
        return loss({name: p - 0.5 * slope[name] for name, p in own.items()}, x)

    by_weights, by_x = vmap(grad(after_a_step, argnums=(0, 1)))(weights, x)
    return *by_weights.values(), by_x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_a_convolution_to_the_second_order(options: dict[str, object]) -> None:
    x = torch.randn(4, 2, 7, 6, dtype=torch.float64)
    plain, net = network(**options), network(**options)
    (convolution,) = metazoo.use_task_convolutions(net)
    convolution.unfolded = True
    torch.testing.assert_close(net(x), plain(x))
    for ours, theirs in zip(second_order(network(**options), True), second_order(network(**options), False)):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(ours, theirs)


def test_what_is_no_plain_convolution_stays_as_it_is() -> None:
    class Own(nn.Conv2d):
        pass

    others = [
        Own(2, 2, 3), nn.Conv1d(2, 2, 3), nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
    ]  # fmt: skip
    net = nn.Sequential(*others, nn.Sequential(nn.Conv2d(2, 2, 3)))
    kinds = [type(module) for module in others]
    (found,) = metazoo.use_task_convolutions(net)
    assert found is net[-1][0]
    assert [type(module) for module in others] == kinds
    assert set(net.state_dict()) == {f"{i}.{name}" for i in range(5) for name in ("weight", "bias")} | {
        "5.0.weight",
        "5.0.bias",
    }
