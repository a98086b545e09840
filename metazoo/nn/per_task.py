"""The tasks of a meta-batch one at a time, on a CPU side by side in threads, for what adapts a network's weights to each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")
Gradients = Sequence[Tensor | None]

# Modules that draw random numbers or change their buffers, or cannot be copied: their tasks run one after another.
_in_order: WeakSet[nn.Module] = WeakSet()


def for_each_task(module: M, function: Callable[[M, int], Tensor], count: int) -> Tensor:
    """Return `function(module, i)` of each task i in range(count), stacked; nothing is recorded for derivatives.

    `function` must use the module that it is given: each thread has a copy, which shares its parameters.
    """

    @torch.no_grad()
    def share(own: M, tasks: range) -> list[Tensor]:
        return [function(own, i) for i in tasks]

    shares = _shared_out(module, share, count)
    return torch.stack([shares[i % len(shares)][i // len(shares)] for i in range(count)])


def mean_over_tasks(module: M, loss: Callable[[M, int], Tensor], count: int) -> Tensor:
    """Return the mean of `loss(module, i)`, a scalar, over tasks i in range(count), as `for_each_task` goes through them.

    It can be differentiated once, by the module's parameters and nothing else: their gradient is computed here, task by task,
    so that memory holds the graph of one task a thread, not of all.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters or not torch.is_grad_enabled():
        return for_each_task(module, loss, count).mean()
    if any(p._backward_hooks for p in parameters):
        # A hook on a parameter would be called for each task and again for their sum.
        return torch.stack([loss(module, i) for i in range(count)]).mean()
    return _Mean.apply(module, loss, count, *parameters)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, module: M, loss: Callable[[M, int], Tensor], count: int, *parameters: Tensor
    ) -> Tensor:
        @torch.enable_grad()
        def share(own: M, tasks: range) -> tuple[Tensor, Gradients]:
            return reduce(_sum, map(lambda i: one(own, i), tasks))

        def one(own: M, i: int) -> tuple[Tensor, Gradients]:
            value = loss(own, i) / count
            if not value.requires_grad:
                return value, [None] * len(parameters)
            return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True)

        total, ctx.gradients = reduce(_sum, _shared_out(module, share, count))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(g if g is None else g * slope for g in ctx.gradients))


def gradient_of(
    function: Callable[..., Tensor], create_graph: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """Return the gradient of a scalar function by its first argument, a tuple of tensors, as torch.func.grad does.

    It has no layer around every operation, and none of the limits of torch.func. With `create_graph`, and where gradients are
    recorded, it can be differentiated in its turn.
    """

    def gradient(parameters: tuple[Tensor, ...], *data: Tensor) -> tuple[Tensor, ...]:
        recorded = torch.is_grad_enabled() and create_graph
        with torch.enable_grad():
            if not (recorded and parameters[0].requires_grad):
                parameters = tuple(p.detach().requires_grad_() for p in parameters)
            value = function(parameters, *data)
            return torch.autograd.grad(
                value, parameters, create_graph=recorded, materialize_grads=True
            )

    return gradient


def checkpoint_activations(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `function(x)` and keep no more of it than x: for its derivatives it is computed again.

    It can be differentiated once, by x and the parameters of `module`; the function may use nothing else
    that has a graph. Unlike torch.utils.checkpoint it takes functions that differentiate.
    """
    return _CheckpointActivations.apply(function, x, *[p for p in module.parameters() if p.requires_grad])


class _CheckpointActivations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.function, ctx.parameters = function, parameters
        ctx.devices = [x.device] if x.is_cuda else []
        ctx.random = (
            torch.get_rng_state(),
            [torch.cuda.get_rng_state(device) for device in ctx.devices],
        )
        ctx.save_for_backward(x)
        return function(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(ctx.devices), torch.enable_grad():
            torch.set_rng_state(ctx.random[0])
            for device, state in zip(ctx.devices, ctx.random[1]):
                torch.cuda.set_rng_state(state, device)
            y = ctx.function(x)
        return None, *torch.autograd.grad(y, [x, *ctx.parameters], slope, allow_unused=True)


def _sum(a: tuple[Tensor, Gradients], b: tuple[Tensor, Gradients]) -> tuple[Tensor, Gradients]:
    gradients = [g if h is None else h if g is None else g + h for g, h in zip(a[1], b[1])]
    return a[0] + b[0], gradients


def _shared_out(module: M, share: Callable[[M, range], R], count: int) -> list[R]:
    """Return what `share` gives for the tasks of each thread: w, w + threads, w + 2 * threads, ... for thread w.

    Where there are several, each computes with one of PyTorch's own threads: small convolutions gain more from another task
    than from another thread. The same numbers come of it whether they run side by side or one after another.
    """
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    threads = min(count, torch.get_num_threads()) if on_cpu else 1
    if threads <= 1:
        return [share(module, range(count))]
    tasks = [range(w, count, threads) for w in range(threads)]
    with _one_thread_each():
        # Copied before the first thread starts, for a module may change while it computes.
        copies = [] if module in _in_order else _copies(module, threads - 1)
        if copies:
            random, buffers = torch.get_rng_state(), [(b, b.clone()) for b in module.buffers()]
            results = _side_by_side([module, *copies], share, tasks)
            if torch.equal(random, torch.get_rng_state()) and all(
                torch.equal(b, before) for b, before in buffers
            ):
                return results
            # Threads draw in any order, and their copies keep what they change: this was for nothing, and is done again.
            torch.set_rng_state(random)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        _in_order.add(module)
        return [share(module, mine) for mine in tasks]


def _copies(module: M, count: int) -> list[M]:
    """Return copies that share the module's parameters, whose places functional_call takes; [] where it has no copies."""
    shared = {id(p): p for p in module.parameters()}
    try:
        copies = [copy.deepcopy(module, dict(shared)) for _ in range(count)]
    except Exception:  # a module may hold anything: a lock, a file, a tensor with a graph
        return []
    alike = all(p is q for twin in copies for p, q in zip(twin.parameters(), module.parameters()))
    return copies if alike else []


def _side_by_side(modules: list[M], share: Callable[[M, range], R], tasks: list[range]) -> list[R]:
    """Return what `share` gives for each module and its tasks, the first in this thread and every other in its own."""
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(own: M, mine: range) -> R:
        torch.set_num_threads(1)
        with torch.autocast("cpu", dtype, autocast):
            return share(own, mine)

    with ThreadPoolExecutor(len(modules) - 1) as pool:
        others = [pool.submit(run, own, mine) for own, mine in zip(modules[1:], tasks[1:])]
        return [share(modules[0], tasks[0]), *(other.result() for other in others)]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
