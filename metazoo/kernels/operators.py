"""What the operators `torch.ops.metazoo.*` have in common: how each is declared, finds its kernel, and batches under vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import loading


def declare(schema: str, plain: Callable[..., Any]) -> None:
    """Define an operator of the namespace metazoo, and what computes it where no kernel does.

    The kernels' library registers itself for one type of device when it is loaded: when a tensor of that type first comes here.
    """
    name = schema.partition("(")[0]
    torch.library.define(
        f"metazoo::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag
    )
    loading.FALLBACKS[name] = plain

    def find(*arguments: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        # Once it is loaded, what still comes here is what it has no kernel for (sparse tensors, say).
        if loading.covers(first.device.type) and not loading.status().loaded and loading.load():
            return getattr(torch.ops.metazoo, name)(*arguments)
        return plain(*arguments)

    torch.library.impl(f"metazoo::{name}", "CompositeExplicitAutograd", find)


def differentiated(*tensors: Tensor | None) -> bool:
    """Return whether a derivative by any of these may be asked for: if not, the operator can be called without more ado."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    )


def without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which operations on a tensor's device are of its own type."""
    device = t.device.type
    return (
        torch.autocast(device, enabled=False)
        if torch.amp.is_autocast_available(device)
        else nullcontext()
    )


def has_autocast(device_type: str) -> bool:
    """Return whether a type of device has autocast."""
    return torch.amp.is_autocast_available(device_type)


def fold(size: int, dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """Return (B, *) tensors, with `size` of them in dimension `dim` (None: one for all), as (size * B, *): more tasks."""
    return [
        (t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, dims)
    ]


def unfold(size: int, t: Tensor) -> Tensor:
    """Return (size * B, *) as (size, B, *)."""
    return t.unflatten(0, (size, t.shape[0] // size if size else 0))


def or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    """Return a tangent, zeros where there is none."""
    return torch.zeros_like(like) if tangent is None else tangent


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what values of a type are summed up in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
