"""Work shared by several processes, started by `torchrun --nproc-per-node N -m metazoo ...`.

Each process computes a share of the tasks, and the results are put together in the order of the
tasks. In a single process these functions do no communication.
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

from metazoo.errors import MetazooError, OptionError

Item = TypeVar("Item")
T = TypeVar("T")

_joined = False


class ProcessLost(MetazooError):
    """Another process of the job has ended."""

    exit_code = 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started; only the first of them prints.

    The command line uses this. Metazoo as a library in a program with several processes does not
    share work among them. Raises ProcessLost if another process ends.
    """
    global _joined
    if not dist.is_torchelastic_launched() or _world_size() == 1:
        yield
        return
    _join()
    _joined = True
    try:
        with contextlib.nullcontext() if first() else _silenced():
            yield
    except RuntimeError as error:
        # The messages of gloo and NCCL about a closed connection do not help the user.
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "connection")):
            raise
        raise ProcessLost(
            "another process of this job has ended",
            "see its own message; the run resumes from its last checkpoint",
        ) from error
    finally:
        _joined = False
        dist.destroy_process_group()


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    if not text.isdecimal() or not int(text):
        raise OptionError(
            f"TORCHELASTIC_RUN_ID is set, and WORLD_SIZE is '{text}'",
            "start the command with torchrun, or unset these variables",
        )
    return int(text)


def _join() -> None:
    # The first optimizer imports this module, whose functions have the current process group as
    # their default (torch 2.13). Imported before there is a group, they have None. Otherwise the
    # group outlives `destroy_process_group`, and a thread of gloo that releases a tensor while the
    # interpreter ends aborts the process.
    import torch.distributed.nn.functional

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    # After a restart, torchrun's store still has the addresses of the old processes (torch 2.13).
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size
    )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _joined else 1


def rank() -> int:
    """Return the index of this process."""
    return dist.get_rank() if _joined else 0


def first() -> bool:
    """Return whether this process is the first, which writes files and prints."""
    return rank() == 0


def restarted() -> bool:
    """Return whether torchrun has restarted these processes after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def may_restart() -> bool:
    """Return whether torchrun would restart these processes."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def wait() -> None:
    """Wait until all processes call this."""
    if _joined:
        dist.barrier()


def on_first(function: Callable[[], T]) -> T:
    """Call a function in the first process only, and return its result in every process.

    A MetazooError that it raises is raised in every process.
    """
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
    """Return the slice of this process's tasks; shares of `count` tasks differ by at most one."""
    each, more = divmod(count, size())
    start = rank() * each + min(rank(), more)
    return slice(start, start + each + (rank() < more))


def gathered(function: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
    """Return `function(item)` of every item, in order; process r computes items r, r + size, ...

    If the function raises a MetazooError in one process, all processes raise it, so that they stay
    together. Results must be picklable.
    """
    if not _joined:
        return [function(item) for item in items]
    parts: list[T] = []
    problem: MetazooError | None = None
    try:
        parts = [function(item) for item in items[rank() :: size()]]
    except MetazooError as error:
        problem = error
    shares: list[Any] = [None] * size()
    dist.all_gather_object(shares, problem or parts)
    for found in shares:
        if isinstance(found, MetazooError):
            raise found
    return [shares[i % size()][i // size()] for i in range(len(items))]


def mapped(function: Callable[[Item], Tensor], items: Sequence[Item]) -> list[Tensor]:
    """Return the tensors `function(item)` as `gathered` does, each on the device of this process."""
    if not _joined:
        return [function(item) for item in items]
    device = torch.device("cpu")

    def on_cpu(item: Item) -> Tensor:
        nonlocal device
        result = function(item)
        device = result.device
        return result.cpu()

    return [part.to(device) for part in gathered(on_cpu, items)]


def any_process(flag: bool) -> bool:
    """Return whether the flag is true in any process."""
    if not _joined:
        return flag
    flags = torch.tensor(float(flag))
    dist.all_reduce(flags)
    return flags.item() > 0


def sum_gradients(model: nn.Module, loss: Tensor) -> float:
    """Sum the gradients over all processes, in place, and return the sum of the losses."""
    if not _joined:
        return loss.item()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # As in a single process, a parameter that is not used anywhere has the gradient None, not
    # zeros.
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
    """The buffers of a model during a step whose tasks the processes share.

    `merge` gives BatchNorm's running statistics the values of a single process. They decay with
    every task, so the changes of each process are applied in the order of the tasks. Create it
    before the step.
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
        """Return means, variances and the number of batches as float64, (2 * features + 1,)."""
        values = norm.running_mean, norm.running_var, norm.num_batches_tracked.view(1)
        return torch.cat([value.double().cpu() for value in values])

    def merge(self) -> None:
        """Merge the buffers of all processes, after the step."""
        if not _joined:
            return
        self._merge_norms()
        merged = {id(b) for norm in self.norms for b in norm.buffers()}
        # Other buffers are copied from the first process, so that all evaluate the same model.
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
