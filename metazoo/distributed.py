"""Several processes that work as one, started by `torchrun --nproc-per-node N -m metazoo ...`.

What one process would do to tasks 0, 1, ... the processes do to shares of them, and put the results together in the same order.
In a single process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metazoo.errors import MetazooError

I = TypeVar("I")
T = TypeVar("T")

_joined = False


class ProcessLost(MetazooError):
    """Another process of the job has ended."""

    exit_code = 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun started, while it lasts; only the first of them speaks.

    A library does not do this: in a program that has processes of its own, nothing of metazoo's is shared out.
    """
    global _joined
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    # Where torchrun starts processes again, its store still has the addresses of those that ended (torch 2.13).
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size
    )
    _joined = True
    try:
        with contextlib.ExitStack() as quiet:
            if not first():
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(contextlib.redirect_stdout(nowhere))
                quiet.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    except RuntimeError as error:
        # What gloo and NCCL say when a connection closes tells the user nothing.
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            raise
        raise ProcessLost(
            "another process of this job has ended",
            "its own message says why; the run goes on from its last checkpoint",
        ) from error
    finally:
        _joined = False
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _joined else 1


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return dist.get_rank() if _joined else 0


def first() -> bool:
    """Return whether this is the process that writes files and speaks."""
    return rank() == 0


def restarted() -> bool:
    """Return whether torchrun has started these processes again, after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Return whether torchrun would start these processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def wait() -> None:
    """Wait for all processes."""
    if _joined:
        dist.barrier()


def by_first(function: Callable[[], T]) -> T:
    """Return what the function returns in the first process, which alone calls it, or raise what it raises in every process."""
    if not _joined:
        return function()
    values: list[Any] = [None]
    if first():
        try:
            values = [function()]
        except MetazooError as error:
            values = [error]
    dist.broadcast_object_list(values)
    if isinstance(values[0], MetazooError):
        raise values[0]
    return cast(T, values[0])


def share(count: int) -> slice:
    """Return this process's part of `count` tasks: as many as any other's, or one fewer."""
    each, more = divmod(count, size())
    start = rank() * each + min(rank(), more)
    return slice(start, start + each + (rank() < more))


def mapped(function: Callable[[I], Tensor], items: Sequence[I]) -> list[Tensor]:
    """Return what the function gives for every item, of which each process computes every size-th, in their order.

    Where it raises a MetazooError in some process, all raise it: they must not part company.
    """
    if not _joined:
        return [function(item) for item in items]
    parts: list[Tensor] = []
    problem: MetazooError | None = None
    try:
        parts = [function(item) for item in items[rank() :: size()]]
    except MetazooError as error:
        problem = error
    device = parts[0].device if parts else torch.device("cpu")
    shares: list[Any] = [None] * size()
    dist.all_gather_object(shares, problem or [part.cpu() for part in parts])
    for found in shares:
        if isinstance(found, MetazooError):
            raise found
    return [shares[i % size()][i // size()].to(device) for i in range(len(items))]


def anyone(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    if not _joined:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags)
    return flags.item() > 0


def add_up(model: nn.Module, loss: Tensor) -> float:
    """Put the sum of every process's gradients in the place of each, and return the sum of losses."""
    if not _joined:
        return loss.item()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A parameter that no process used has no gradient, as in one process, rather than one of zeros.
    facts = torch.tensor(
        [loss.item(), *(p.grad is not None for p in parameters)], dtype=torch.float64
    )
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    dist.all_reduce(facts)
    dist.all_reduce(flat)
    total, *users = facts.tolist()
    for p, part, used in zip(parameters, flat.split([p.numel() for p in parameters]), users):
        p.grad = part.view_as(p) if used else None
    return total


class Buffers:
    """The buffers of a model, over a step whose tasks the processes share: BatchNorm's running statistics above all.

    These decay with every task, in the tasks' order: each process's sum is put behind those of the tasks before.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        tracked = (
            m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        )
        self.norms: list[Any] = (
            [norm for norm in tracked if norm.momentum is not None] if _joined else []
        )
        self.before = [self._values(norm) for norm in self.norms]

    @staticmethod
    def _values(norm: Any) -> Tensor:
        """Return the means, the variances and the number of batches, (2 * features + 1,) in float64."""
        values = norm.running_mean, norm.running_var, norm.num_batches_tracked.view(1)
        return torch.cat([value.double().cpu() for value in values])

    def merge(self) -> None:
        """Put the processes' shares together, from what each has now."""
        if not _joined:
            return
        self._merge_norms()
        merged = {id(b) for norm in self.norms for b in norm.buffers()}
        # What else a network keeps in buffers is the first process's, so that all evaluate the same model.
        for buffer in self.model.buffers():
            if id(buffer) not in merged:
                dist.broadcast(buffer, 0)

    def _merge_norms(self) -> None:
        if not self.norms:
            return
        changes = []
        for norm, before in zip(self.norms, self.before):
            after = self._values(norm)
            batches = after[-1:] - before[-1:]
            decay = (1 - norm.momentum) ** batches
            changes.append(torch.cat([after[:-1] - decay * before[:-1], decay, batches]))
        every = [torch.empty_like(torch.cat(changes)) for _ in range(size())]
        dist.all_gather(every, torch.cat(changes))
        merged = list(self.before)
        for row in every:
            for i, part in enumerate(row.split([len(change) for change in changes])):
                merged[i] = torch.cat(
                    [part[-2] * merged[i][:-1] + part[:-2], merged[i][-1:] + part[-1:]]
                )
        for norm, value in zip(self.norms, merged):
            mean, variance = value[:-1].chunk(2)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked.fill_(int(value[-1]))
