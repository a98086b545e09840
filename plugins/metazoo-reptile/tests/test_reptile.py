"""Reptile keeps to the contract of metazoo, and its outer step is the paper's."""

from __future__ import annotations

import pytest
import torch
from metazoo_reptile import Reptile

import metazoo
from metazoo.testing.check import check_algorithm


class Linear(metazoo.Backbone):
    """The identity."""

    def __init__(self, input_shape, config=None):
        super().__init__(input_shape, config)
        self.out_features = input_shape[0]

    def forward(self, x):
        return x


def episode(tasks: int, ways: int = 3, shots: int = 4) -> metazoo.Episode:
    noise = torch.Generator().manual_seed(2)
    y = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)
    x = torch.randn(tasks, ways, 5, generator=noise).repeat_interleave(shots, 1)
    support, query = (x + 0.3 * torch.randn(x.shape, generator=noise) for _ in range(2))
    return metazoo.Episode(support, y, query, y)


def model(**options) -> Reptile:
    torch.manual_seed(0)
    return Reptile(Linear((5,)), metazoo.TaskSpec((5,), outputs=3), Reptile.Config(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transduction": True},
        {"inner_optimizer": "sgd", "inner_lr": 0.1},
        {"inner_batch": 3, "inner_steps": 1},
    ],
)
def test_it_conforms(options: dict[str, object]) -> None:
    # Fewer steps than the default of 50, to save time.
    check_algorithm(Reptile, {"eval_inner_steps": 7, **options})


def test_it_is_registered() -> None:
    check_algorithm("reptile", {"eval_inner_steps": 5})


def test_the_outer_step_moves_by_lr_towards_the_mean_of_the_adapted_parameters() -> None:
    reptile, tasks = (
        model(inner_optimizer="sgd", inner_lr=0.5, inner_steps=4, inner_batch=100),
        episode(2),
    )
    weight, bias = (p.detach().clone() for p in reptile.head.parameters())
    ends = []
    for i in range(2):
        layer = torch.nn.Linear(5, 3)
        layer.load_state_dict({"weight": weight, "bias": bias})
        inner = torch.optim.SGD(layer.parameters(), lr=0.5)
        x, y = (
            torch.cat([tasks.support_x[i], tasks.query_x[i]]),
            torch.cat([tasks.support_y[i], tasks.query_y[i]]),
        )
        for _ in range(4):
            inner.zero_grad()
            torch.nn.functional.cross_entropy(layer(x), y).backward()
            inner.step()
        ends.append(layer.weight.detach())
    outer = torch.optim.SGD(reptile.parameters(), lr=0.25)
    reptile.train().loss(tasks).backward()
    outer.step()
    torch.testing.assert_close(
        reptile.head.weight.detach(), weight + 0.25 * (torch.stack(ends).mean(0) - weight)
    )


def test_the_inner_adam_is_adam_without_a_first_moment() -> None:
    reptile, task = model(inner_lr=0.01, eval_inner_steps=6, inner_batch=100).eval(), episode(1)
    layer = torch.nn.Linear(5, 3)
    layer.load_state_dict(reptile.head.state_dict())
    inner = torch.optim.Adam(layer.parameters(), lr=0.01, betas=(0.0, 0.999))
    for _ in range(6):
        inner.zero_grad()
        torch.nn.functional.cross_entropy(layer(task.support_x[0]), task.support_y[0]).backward()
        inner.step()
    torch.testing.assert_close(
        reptile(task.support_x, task.support_y, task.query_x)[0], layer(task.query_x[0])
    )


def test_minibatches_visit_every_example_once_per_epoch() -> None:
    batches = model(inner_batch=4)._minibatches(6)
    drawn = [next(batches).tolist() for _ in range(3)]
    assert [len(batch) for batch in drawn] == [4, 4, 4]
    flat = [row for batch in drawn for row in batch]
    assert sorted(flat[:6]) == sorted(flat[6:]) == list(range(6))


def test_more_ways_than_the_head_has_are_refused() -> None:
    task = episode(1, ways=4)
    with pytest.raises(metazoo.OptionError, match="3 outputs, but the task has 4 classes"):
        model()(task.support_x, task.support_y, task.query_x)
