"""BatchNorm by the statistics of the batch alone, and its derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo.nn.batch_norm import batch_norm


def numbers(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (2 * values + 1).requires_grad_()


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2)], ids=str)
def test_batch_norm_is_that_of_torch_with_its_derivatives(shape: tuple[int, ...]) -> None:
    inputs = numbers(*shape), numbers(3, seed=1), numbers(3, seed=2)
    torch.testing.assert_close(
        batch_norm(*inputs, 1e-2), F.batch_norm(inputs[0], None, None, *inputs[1:], True, eps=1e-2)
    )
    assert torch.autograd.gradcheck(lambda *tensors: batch_norm(*tensors, 1e-2), inputs)
    assert torch.autograd.gradgradcheck(lambda *tensors: batch_norm(*tensors, 1e-2), inputs)
    x = inputs[0]
    torch.testing.assert_close(
        batch_norm(x, None, None, 1e-5), F.batch_norm(x, None, None, training=True)
    )


def test_both_orders_of_memory_give_the_same_second_derivatives() -> None:
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        x = numbers(4, 3, 5, 2).detach().contiguous(memory_format=order).requires_grad_()
        (slope,) = torch.autograd.grad(
            batch_norm(x, numbers(3), numbers(3), 1e-5).sin().sum(), x, create_graph=True
        )
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_there_is_no_third_derivative_rather_than_a_wrong_one() -> None:
    x = numbers(6, 3)
    slope = batch_norm(x, numbers(3), numbers(3), 1e-5).sin().sum()
    for _ in range(2):
        (slope,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


def test_every_batch_norm_of_a_network_is_replaced_and_keeps_its_parameters() -> None:
    net = nn.Sequential(
        nn.Linear(4, 3),
        nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()),
        nn.Unflatten(1, (3, 1, 1)),
        nn.BatchNorm2d(3),
    )
    weights = [net[1][0].weight, net[3].weight]
    replaced = metazoo.use_batch_statistics(net)
    assert {id(norm.weight) for norm in replaced} == set(map(id, weights))
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in net.modules())
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.train()(x), net.eval()(x))  # nothing is kept from one batch to the next
