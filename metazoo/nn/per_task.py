"""Run a function on each task of a meta-batch; on a CPU, in parallel threads."""

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

# Modules that draw random numbers, change their buffers or cannot be copied. Their tasks do not run
# in parallel.
_sequential: WeakSet[nn.Module] = WeakSet()


def for_each_task(module: M, function: Callable[[M, int], Tensor], count: int) -> Tensor:
    """Return `function(module, i)` for each i in range(count), stacked, without gradients.

    `function` must use the module that it is given, because each thread has its own copy. The
    copies share the parameters.
    """

    @torch.no_grad()
    def share(own: M, tasks: range) -> list[Tensor]:
        return [function(own, i) for i in tasks]

    shares = _spread(module, share, count)
    return torch.stack([shares[i % len(shares)][i // len(shares)] for i in range(count)])


def mean_over_tasks(module: M, loss: Callable[[M, int], Tensor], count: int) -> Tensor:
    """Return the mean of the scalars `loss(module, i)` over i in range(count).

    Tasks run as in `for_each_task`. The mean is differentiable once, by the module's parameters
    only. Their gradient is computed task by task, so memory holds one task's graph per thread.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters or not torch.is_grad_enabled():
        return for_each_task(module, loss, count).mean()
    if any(p._backward_hooks for p in parameters):
        # A parameter's hook would be called for each task and again for the sum.
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

        total, ctx.gradients = reduce(_sum, _spread(module, share, count))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(g if g is None else g * slope for g in ctx.gradients))


def gradient_of(
    function: Callable[..., Tensor], create_graph: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that computes the gradient of `function` by its first argument.

    `function` takes a tuple of tensors first and returns a scalar. The result works as that of
    torch.func.grad, but with plain autograd: without its overhead for each operation and without
    its limits. With `create_graph` the gradient is differentiable, unless gradients are disabled.
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


def checkpoint_activations(
    module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """Return `function(x)`; its activations are computed again in the backward pass.

    It is differentiable once, by x and the parameters of `module`. The function must not use other
    tensors that need gradients. Unlike in torch.utils.checkpoint, it may compute gradients itself.
    """
    return _CheckpointActivations.apply(
        function, x, *[p for p in module.parameters() if p.requires_grad]
    )


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


def _spread(module: M, share: Callable[[M, range], R], count: int) -> list[R]:
    """Return `share(module, tasks)` of each thread.

    Thread w has the tasks w, w + threads, w + 2 * threads, ...

    With several threads, each uses one of PyTorch's threads, because small convolutions gain more
    from a second task than from a second thread. Results are the same whether tasks run in parallel
    or not.
    """
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    threads = min(count, torch.get_num_threads()) if on_cpu else 1
    if threads <= 1:
        return [share(module, range(count))]
    tasks = [range(w, count, threads) for w in range(threads)]
    with _single_threaded():
        results = None if module in _sequential else _in_parallel(module, share, tasks)
        if results is None:
            _sequential.add(module)
            results = [share(module, own) for own in tasks]
        return results


def _in_parallel(module: M, share: Callable[[M, range], R], tasks: list[range]) -> list[R] | None:
    """Return the results of threads, or None if the module does not allow parallel runs."""
    # A module may change while it computes, so it is copied before the first thread starts.
    copies = _copies(module, len(tasks) - 1)
    if not copies:
        return None
    random, buffers = torch.get_rng_state(), [(b, b.clone()) for b in module.buffers()]
    results = _in_threads([module, *copies], share, tasks)
    same_buffers = all(torch.equal(b, before) for b, before in buffers)
    if same_buffers and torch.equal(random, torch.get_rng_state()):
        return results
    # Threads draw random numbers in any order, and changes of a copy's buffers are lost.
    torch.set_rng_state(random)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return None


def _copies(module: M, count: int) -> list[M]:
    """Return copies that share the module's parameters, or [] if it cannot be copied."""
    shared = {id(p): p for p in module.parameters()}
    try:
        copies = [copy.deepcopy(module, dict(shared)) for _ in range(count)]
    except Exception:  # a module may hold anything: a lock, a file, a tensor with a graph
        return []
    alike = all(p is q for twin in copies for p, q in zip(twin.parameters(), module.parameters()))
    return copies if alike else []


def _in_threads(modules: list[M], share: Callable[[M, range], R], tasks: list[range]) -> list[R]:
    """Return `share(module, tasks)` of each module, each but the first in a new thread."""
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def run(own: M, mine: range) -> R:
        torch.set_num_threads(1)
        with torch.autocast("cpu", dtype, autocast):
            return share(own, mine)

    with ThreadPoolExecutor(len(modules) - 1) as pool:
        others = [pool.submit(run, own, mine) for own, mine in zip(modules[1:], tasks[1:])]
        return [share(modules[0], tasks[0]), *(other.result() for other in others)]


@contextmanager
def _single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
