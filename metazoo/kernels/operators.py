"""Shared parts of the operators `torch.ops.metazoo.*`: declaration, kernel lookup, vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import loading


def declare(schema: str, plain: Callable[..., Any]) -> None:
    """Define an operator of the namespace metazoo; `plain` computes it without a kernel.

    The first call with a tensor of a covered device loads the library, which registers its kernels
    for that type of device.
    """
    name = schema.partition("(")[0]
    torch.library.define(
        f"metazoo::{name}", schema.removeprefix(name), tags=torch.Tag.pt2_compliant_tag
    )
    loading.FALLBACKS[name] = plain

    def find(*arguments: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        # With the library loaded, only calls without a kernel come here, such as on sparse tensors.
        if loading.covers(first.device.type) and not loading.status().loaded and loading.load():
            return getattr(torch.ops.metazoo, name)(*arguments)
        return plain(*arguments)

    torch.library.impl(f"metazoo::{name}", "CompositeExplicitAutograd", find)


def differentiated(*tensors: Tensor | None) -> bool:
    """Return whether derivatives by any of these tensors may be needed."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
    )


def without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on the tensor's device."""
    device = t.device.type
    return torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext()


def has_autocast(device_type: str) -> bool:
    """Return whether a type of device has autocast."""
    return torch.amp.is_autocast_available(device_type)


def fold(size: int, dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """Return tensors (size * B, *) from (B, *) tensors with a batch of `size` in dimension `dim`.

    A tensor with `dim` None is shared by the batch.
    """
    return [
        (t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in zip(tensors, dims)
    ]


def unfold(size: int, t: Tensor) -> Tensor:
    """Return (size * B, *) as (size, B, *)."""
    return t.unflatten(0, (size, t.shape[0] // size if size else 0))


def or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    """Return a tangent; None becomes zeros."""
    return torch.zeros_like(like) if tangent is None else tangent


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to sum values of a type in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
