"""Tasks in threads: the same numbers as one after another, whatever a network does."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import metazoo

TASKS = 7


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(4 * 36, 3)
    ).double()


def data() -> Tensor:
    return torch.randn(
        TASKS, 5, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def adapted_loss(own: nn.Module, i: int) -> Tensor:
    """What MAML does: the network runs with other parameters in the places of its own."""
    x = data()[i]
    weights = dict(own.named_parameters())
    slopes = torch.autograd.grad(
        own(x).square().mean(), list(weights.values()), create_graph=torch.is_grad_enabled()
    )
    fast = {name: p - 0.1 * slope for (name, p), slope in zip(weights.items(), slopes)}
    return functional_call(own, fast, (x,)).sin().mean()


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor | None]:
    net.zero_grad()
    loss.backward()
    return [p.grad for p in net.parameters()]


def test_loss_and_gradient_are_those_of_one_graph_of_all() -> None:
    net = network()
    plain = torch.stack([adapted_loss(net, i) for i in range(TASKS)]).mean()
    wanted = gradients(net, plain)
    seen = []
    for _ in range(3):
        loss = metazoo.mean_over_tasks(net, adapted_loss, TASKS)
        seen.append((loss.detach(), gradients(net, 3 * loss)))
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close([g / 3 for g in seen[-1][1]], wanted)
    for loss, grads in seen:
        assert torch.equal(loss, seen[0][0])
        assert all(torch.equal(g, h) for g, h in zip(grads, seen[0][1]))


def test_each_thread_has_a_copy_that_shares_the_parameters(threads: int) -> None:
    net = network()
    users: dict[int, set[int]] = {}
    barrier = threading.Barrier(threads, timeout=60)

    def use(own: nn.Module, i: int) -> Tensor:
        if i < threads:
            barrier.wait()  # as many are at work at once
        users.setdefault(threading.get_ident(), set()).add(id(own))
        assert all(p is q for p, q in zip(own.parameters(), net.parameters()))
        assert torch.get_num_threads() == 1
        return own(data()[i]).sum()

    first = metazoo.for_each_task(net, lambda own, i: own(data()[i]).sum(), TASKS)
    second = metazoo.for_each_task(net, use, TASKS)
    assert torch.equal(first, second)
    assert len(users) == threads
    assert all(len(copies) == 1 for copies in users.values())
    assert len(set.union(*users.values())) == threads


def test_random_numbers_are_drawn_in_one_order() -> None:
    net = network(dropout=0.5)
    drawn = []
    for _ in range(4):
        torch.manual_seed(5)
        drawn.append(metazoo.for_each_task(net, lambda own, i: own(data()[i]).sum(), TASKS))
    assert all(torch.equal(d, drawn[0]) for d in drawn)
    assert len(drawn[0].unique()) == TASKS


def test_a_parameter_that_is_not_used_gets_no_gradient_and_a_frozen_one_stays() -> None:
    net = nn.ModuleDict(
        {
            "used": network(),
            "spare": nn.Linear(2, 2),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    loss = metazoo.mean_over_tasks(net, lambda own, i: own["used"](data()[i]).mean(), TASKS)
    loss.backward()
    assert all(p.grad is not None for p in net["used"].parameters())
    assert all(p.grad is None for name in ("spare", "frozen") for p in net[name].parameters())


def test_a_mistake_in_a_thread_is_raised() -> None:
    net = network()

    def loss(own: nn.Module, i: int) -> Tensor:
        if i == 1:
            raise metazoo.OptionError("task 1 is odd")
        return own(data()[i]).mean()

    metazoo.for_each_task(net, lambda own, i: own(data()[i]).sum(), TASKS)
    with pytest.raises(metazoo.OptionError, match="task 1 is odd"):
        metazoo.mean_over_tasks(net, loss, TASKS)


def test_autocast_holds_in_every_thread() -> None:
    net = network().float()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            answers = metazoo.for_each_task(net, lambda own, i: own(data()[i].float()), TASKS)
        assert answers.dtype == torch.bfloat16


class Saved:
    """A tensor that a graph keeps."""

    def __init__(self, value: Tensor):
        self.value = value


def test_a_graph_of_one_task_at_a_time_is_kept() -> None:
    net = network()
    most, alive = [0], weakref.WeakSet[Saved]()

    def keep(value: Tensor) -> Saved:
        saved = Saved(value)
        alive.add(saved)
        most[0] = max(most[0], len(alive))
        return saved

    def loss(own: nn.Module, i: int) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.value):
            return adapted_loss(own, i)

    loss(net, 0)
    one, most[0] = most[0], 0
    metazoo.mean_over_tasks(net, loss, TASKS)
    # Of the task before some may not be cleared away yet.
    assert 0 < most[0] <= 2 * one * torch.get_num_threads() < TASKS * one


def test_buffers_change_as_if_there_were_one_thread() -> None:
    found = []
    for count in (1, torch.get_num_threads()):
        threads = torch.get_num_threads()
        torch.set_num_threads(count)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)).double()
        for _ in range(2):
            metazoo.mean_over_tasks(net, lambda own, i: own(data()[i]).sin().mean(), TASKS)
        torch.set_num_threads(threads)
        found.append([b.clone() for b in net.buffers()])
    assert found[0][-1] == 2 * TASKS
    torch.testing.assert_close(found[1][-1], found[0][-1])
    torch.testing.assert_close(
        sorted(found[1][0].tolist()), sorted(found[0][0].tolist()), rtol=0.5, atol=0.05
    )


def test_random_numbers_that_come_later_are_noticed() -> None:
    net = network()
    metazoo.for_each_task(net, lambda own, i: own(data()[i]).sum(), TASKS)
    drawn = []
    for _ in range(4):
        torch.manual_seed(5)
        drawn.append(
            metazoo.for_each_task(net, lambda own, i: own(data()[i]).sum() + torch.rand(()), TASKS)
        )
    assert all(torch.equal(d, drawn[0]) for d in drawn)


def test_a_module_that_cannot_be_copied_goes_through_its_tasks_all_the_same() -> None:
    net = network()
    net.lock = threading.Lock()  # type: ignore[assignment]
    for _ in range(2):
        assert metazoo.mean_over_tasks(net, adapted_loss, TASKS).isfinite()


def test_nothing_to_learn_and_tasks_that_teach_nothing() -> None:
    net = network()
    some = metazoo.mean_over_tasks(
        net, lambda own, i: own(data()[i]).mean() if i % 2 else torch.zeros(()).double(), TASKS
    )
    assert any(g is not None and g.any() for g in gradients(net, some))
    net.requires_grad_(False)
    assert not metazoo.mean_over_tasks(
        net, lambda own, i: own(data()[i]).mean(), TASKS
    ).requires_grad


def test_a_hook_on_a_parameter_is_called_once() -> None:
    def loss(own: nn.Module, i: int) -> Tensor:
        return own(data()[i]).sin().mean()

    net = network()
    wanted = gradients(net, metazoo.mean_over_tasks(net, loss, TASKS))[0].clone()
    next(net.parameters()).register_hook(lambda g: 0.1 * g)
    got = gradients(net, metazoo.mean_over_tasks(net, loss, TASKS))[0]
    torch.testing.assert_close(got, 0.1 * wanted)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_computed_again_has_the_same_derivatives_and_random_numbers(dropout: float) -> None:
    net, x = network(dropout), data()[0]

    def step(scale: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            slopes = torch.autograd.grad(
                net(x).square().mean(), list(net.parameters()), create_graph=recorded
            )
        return scale * torch.cat([s.flatten() for s in slopes])

    results = []
    for run in (step, lambda scale: metazoo.checkpoint_activations(net, step, scale)):
        torch.manual_seed(3)
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            y = run(scale)
        after = torch.rand(1)
        grads = torch.autograd.grad(y.square().sum(), [scale, *net.parameters()])
        results.append([y.detach(), after, *grads, torch.rand(1)])
    torch.testing.assert_close(*results)
