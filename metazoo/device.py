"""The device that tensors are computed on."""

from __future__ import annotations

import torch

from metazoo.errors import OptionError, first_line


def find_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is a GPU if there is one. Raises OptionError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(
            f"there is no device '{name}'",
            "a device is cpu, cuda, cuda:1, ...; auto takes a GPU if there is one",
        ) from error
    try:
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        # The rest of the message lists every backend.
        why = first_line(error).partition(". ")[0]
        raise OptionError(
            f"device '{name}' cannot be used: {why}", "leave out --device, or use cpu"
        ) from error
    return device
