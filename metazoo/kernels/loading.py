"""Loads the kernels' library, or says why it cannot."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from metazoo.errors import OptionError, did_you_mean, first_line
from metazoo.kernels.build import build, find_sources, is_of
from metazoo.kernels.toolchain import KernelBuildError, architectures

Mode = Literal["auto", "off", "emulated"]

# What stands in for a kernel that loads and then does not run: the name of a raw operation -> plain PyTorch.
# The modules that declare the operations fill it.
FALLBACKS: dict[str, Callable[..., Any]] = {}

_PREBUILT = "metazoo.kernels._cuda"
_SILENCE = "METAZOO_KERNELS=off silences this"


class KernelWarning(UserWarning):
    """The kernels are not used, and PyTorch's own operations are."""


@dataclass(frozen=True)
class Status:
    """Whether the kernels are loaded, from where, and if not, why not.

    `origin` is "prebuilt" or "built on first use"; `problem` and `hint` say what went wrong and what to do about it; `info` is
    what the library tells about itself.
    """

    mode: Mode
    loaded: bool = False
    path: str = ""
    origin: str = ""
    problem: str = ""
    hint: str = ""
    info: dict[str, Any] = field(default_factory=dict)


_lock = threading.Lock()
_status: Status | None = None
_module: ModuleType | None = None
_overrides: torch.library.Library | None = None


@functools.cache
def mode() -> Mode:
    """Return what METAZOO_KERNELS says: auto (the default), off or emulated; OptionError if anything else."""
    chosen = os.environ.get("METAZOO_KERNELS") or "auto"
    for known in ("auto", "off", "emulated"):
        if chosen == known:
            return known  # type: ignore[return-value]
    hint = f"{did_you_mean(chosen, ('auto', 'off', 'emulated'))}it takes auto, off or emulated"
    raise OptionError(f"the environment variable METAZOO_KERNELS is '{chosen}'", hint)


def covers(device_type: str) -> bool:
    """Return whether tensors of that type of device go to the kernels: not once they have failed to load."""
    wanted = {"auto": "cuda", "emulated": "cpu", "off": None}[mode()]
    return device_type == wanted and (_status is None or _status.loaded)


def status() -> Status:
    """Return what is known of the kernels, without loading them."""
    return _status or Status(mode())


def module() -> ModuleType | None:
    """Return the library's Python module where it is loaded."""
    return _module


def load(*, cuda: str | None = None) -> bool:
    """Load the kernels of this mode, building them where they are not built, and return whether they can be used.

    The first call settles it. Where they cannot be used it warns, once, and says why. `cuda` is that of `build.build`.
    """
    global _status
    if _status is None:
        with _lock:
            if _status is None:
                _status = _load(cuda)
                if not _status.loaded and _status.mode != "off":
                    warnings.warn(_warning(_status), KernelWarning, stacklevel=2)
    return _status.loaded


def _warning(status: Status) -> str:
    hints = "; ".join(filter(None, [status.hint, _SILENCE]))
    return f"PyTorch's own operations are used instead of metazoo's kernels: {status.problem}\n  hint: {hints}"


def _load(cuda: str | None) -> Status:
    now = Status(mode())
    if now.mode == "off":
        return now
    kind: Literal["cuda", "emulated"] = "emulated" if now.mode == "emulated" else "cuda"
    passed_over = ""
    if kind == "cuda":
        try:
            return _accept(_prebuilt(), replace(now, origin="prebuilt"))
        except KernelBuildError as error:
            passed_over = error.message
    try:
        present = (
            [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
            if kind == "cuda"
            else []
        )
        wanted: dict[str, Any] = (
            {"cuda": cuda, "archs": architectures(present)} if kind == "cuda" else {}
        )
        path = build(kind, **wanted)
        try:
            loaded = _import(path)
        except ImportError:
            loaded = _import(build(kind, again=True, **wanted))
        return _accept(loaded, replace(now, origin="built on first use"))
    except KernelBuildError as error:
        return replace(
            now,
            problem="; ".join(filter(None, [passed_over, error.message])),
            hint=error.hint or "",
        )
    except ImportError as error:
        return replace(now, problem=f"the library that was just built does not load: {error}")


def ahead_of_time() -> Status:
    """Return what is known of a library that was built ahead of time, which may be nothing, where no GPU calls for it."""
    try:
        found = _prebuilt()
    except KernelBuildError as error:
        return Status(mode(), problem=error.message)
    return Status(mode(), path=str(found.__file__), origin="prebuilt", info=found.build_info())


def _prebuilt() -> ModuleType:
    """Return the module that was built ahead of time; KernelBuildError with why not, and no message where there is none."""
    spec = importlib.util.find_spec(_PREBUILT)
    if spec is None or spec.origin is None:
        others = sorted(path.name for path in Path(__file__).parent.glob("_cuda*.so"))
        raise KernelBuildError(
            f"{', '.join(others)} was built for another Python" if others else ""
        )
    if not is_of(Path(spec.origin), find_sources()):  # as in a checkout that has moved on
        raise KernelBuildError(f"{spec.origin} was built ahead of time from other sources")
    try:
        return importlib.import_module(_PREBUILT)
    except ImportError as error:
        raise KernelBuildError(
            f"{spec.origin}, which was built ahead of time, does not load: {error}"
        ) from error


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"metazoo.kernels.{path.name.partition('.')[0]}", path
    )
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    sys.modules[found.__name__] = found
    return found


def _accept(found: ModuleType, now: Status) -> Status:
    """Try a library out; where it does not work here, put plain PyTorch in its place."""
    global _module, _overrides
    now = replace(now, path=str(found.__file__), info=found.build_info())
    device, key = torch.device("cpu"), "CPU"
    if now.mode != "emulated":
        device, key = (
            torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0),
            "CUDA",
        )
    problem = ""
    if key == "CPU" or (torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()):
        # A thread of its own has none of what may be under way here: transforms, modes, autocast.
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            problem = other.submit(_try_out, device, key).result()
    if not problem:
        _module = found
        return replace(now, loaded=True)
    _overrides = torch.library.Library("metazoo", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that something is overridden
        for name, plain in FALLBACKS.items():
            _overrides.impl(name, plain, key, allow_override=True)
    hint = "TORCH_CUDA_ARCH_LIST names the architectures to build for, and a newer driver runs newer code"
    return replace(now, problem=problem, hint=hint if key == "CUDA" else "")


def _try_out(device: torch.device, key: str) -> str:
    """Return what is wrong with the kernels on a device."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("metazoo::sqdist", key):
        return "the library has not registered its kernels"
    try:
        x, y = (
            torch.tensor([[[0.0, 3.0]]], device=device),
            torch.tensor([[[4.0, 0.0]]], device=device),
        )
        found = torch.ops.metazoo.sqdist(x, y).item()
    except RuntimeError as error:
        return f"the kernels do not run on {device}: {first_line(error)}"
    return "" if found == 25.0 else f"the kernels are wrong on {device}: {found} instead of 25"
