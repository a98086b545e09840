"""Loading of the kernels' library."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast, get_args

import torch

from metazoo.errors import OptionError, did_you_mean, first_line
from metazoo.kernels.build import build, find_sources, is_of
from metazoo.kernels.toolchain import KernelBuildError, architectures
from metazoo.kernels.trust import check_owner

Mode = Literal["auto", "off", "emulated"]

# Plain PyTorch for each operator, by name, in case a kernel loads but does not run. `declare` fills
# it.
FALLBACKS: dict[str, Callable[..., Any]] = {}

_PREBUILT = "metazoo.kernels._cuda"
_SILENCE = "METAZOO_KERNELS=off silences this"


class KernelWarning(UserWarning):
    """PyTorch's own operations are used instead of the kernels."""


@dataclass(frozen=True)
class Status:
    """The state of the kernels' library.

    `origin` is "prebuilt" or "built on first use". If loading failed, `problem` says why and `hint`
    what to do. `info` is the library's own build information.
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
    """Return METAZOO_KERNELS: auto (the default), off or emulated. Raises OptionError."""
    chosen = os.environ.get("METAZOO_KERNELS") or "auto"
    if chosen not in (modes := get_args(Mode)):
        hint = f"{did_you_mean(chosen, modes)}it takes auto, off or emulated"
        raise OptionError(f"the environment variable METAZOO_KERNELS is '{chosen}'", hint)
    return cast(Mode, chosen)


def covers(device_type: str) -> bool:
    """Return whether the kernels serve a type of device; False after they have failed to load."""
    wanted = {"auto": "cuda", "emulated": "cpu", "off": None}[mode()]
    return device_type == wanted and (_status is None or _status.loaded)


def status() -> Status:
    """Return the state of the kernels without loading them."""
    return _status or Status(mode())


def module() -> ModuleType | None:
    """Return the library's Python module, or None if it is not loaded."""
    return _module


def load(*, cuda: str | None = None) -> bool:
    """Load the kernels, building them if necessary, and return whether they can be used.

    Only the first call does something; it warns if they cannot be used. `cuda` is an argument of
    `build.build`.
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
    instead = "PyTorch's own operations are used instead of metazoo's kernels"
    return f"{instead}: {status.problem}\n  hint: {hints}"


def _load(cuda: str | None) -> Status:
    now = Status(mode())
    if now.mode == "off":
        return now
    prebuilt_problem = ""
    if now.mode == "auto":
        try:
            return _accept(_prebuilt(), replace(now, origin="prebuilt"))
        except KernelBuildError as error:
            prebuilt_problem = error.message
    try:
        return _accept(_built(now.mode, cuda), replace(now, origin="built on first use"))
    except KernelBuildError as error:
        problem = "; ".join(filter(None, [prebuilt_problem, error.message]))
        return replace(now, problem=problem, hint=error.hint or "")
    except ImportError as error:
        return replace(now, problem=f"the library that was just built does not load: {error}")


def _built(mode: Mode, cuda: str | None) -> ModuleType:
    """Build the library, or find it in the cache, and import it."""
    wanted: dict[str, Any] = {"kind": "emulated"}
    if mode == "auto":
        gpus = range(torch.cuda.device_count())
        present = [torch.cuda.get_device_capability(gpu) for gpu in gpus]
        wanted = {"kind": "cuda", "cuda": cuda, "archs": architectures(present)}
    try:
        return _import(build(**wanted))
    except ImportError:
        return _import(build(**wanted, again=True))


def ahead_of_time() -> Status:
    """Return the state of the library built ahead of time, even if no GPU needs it."""
    try:
        found = _prebuilt()
    except KernelBuildError as error:
        return Status(mode(), problem=error.message)
    return Status(mode(), path=str(found.__file__), origin="prebuilt", info=found.build_info())


def _prebuilt() -> ModuleType:
    """Return the module built ahead of time.

    Raises KernelBuildError with the reason if it cannot be used, with no message if there is none.
    """
    spec = importlib.util.find_spec(_PREBUILT)
    if spec is None or spec.origin is None:
        others = sorted(path.name for path in Path(__file__).parent.glob("_cuda*.so"))
        raise KernelBuildError(
            f"{', '.join(others)} was built for another Python" if others else ""
        )
    # The sources of a checkout may have changed since.
    if not is_of(Path(spec.origin), find_sources()):
        raise KernelBuildError(f"{spec.origin} was built ahead of time from other sources")
    try:
        return importlib.import_module(_PREBUILT)
    except ImportError as error:
        raise KernelBuildError(
            f"{spec.origin}, which was built ahead of time, does not load: {error}"
        ) from error


def _import(path: Path) -> ModuleType:
    """Import a library that no other user could have written. Raises KernelBuildError, ImportError."""
    name = f"metazoo.kernels.{path.name.partition('.')[0]}"
    with path.open("rb") as file:
        check_owner(path, os.fstat(file.fileno()))
        # What was checked is what is loaded, even if the path leads elsewhere by now.
        opened = f"/proc/self/fd/{file.fileno()}"
        origin = opened if os.path.exists(opened) else str(path)
        loader = importlib.machinery.ExtensionFileLoader(name, origin)
        spec = importlib.util.spec_from_file_location(name, origin, loader=loader)
        assert spec is not None
        found = importlib.util.module_from_spec(spec)
        loader.exec_module(found)
    found.__file__ = str(path)
    sys.modules[name] = found
    return found


def _accept(found: ModuleType, now: Status) -> Status:
    """Test a library on this machine; if it fails, replace its kernels by plain PyTorch."""
    global _module, _overrides
    now = replace(now, path=str(found.__file__), info=found.build_info())
    if now.mode == "emulated":
        device, key, testable = torch.device("cpu"), "CPU", True
    else:
        has_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device() if has_gpu else 0)
        key, testable = "CUDA", has_gpu and not torch.cuda.is_current_stream_capturing()
    problem = ""
    if testable:
        # A new thread, because this one may be inside of transforms, modes or autocast.
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            problem = other.submit(_test, device, key).result()
    if not problem:
        _module = found
        return replace(now, loaded=True)
    _overrides = torch.library.Library("metazoo", "IMPL")
    with warnings.catch_warnings():
        # torch warns of every override.
        warnings.simplefilter("ignore")
        for name, plain in FALLBACKS.items():
            _overrides.impl(name, plain, key, allow_override=True)
    hint = "set TORCH_CUDA_ARCH_LIST to the architecture of this GPU, or update its driver"
    return replace(now, problem=problem, hint=hint if key == "CUDA" else "")


def _test(device: torch.device, key: str) -> str:
    """Return what is wrong with the kernels on a device, or an empty text."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("metazoo::sqdist", key):
        return "the library has not registered its kernels"
    try:
        x = torch.tensor([[[0.0, 3.0]]], device=device)
        y = torch.tensor([[[4.0, 0.0]]], device=device)
        found = torch.ops.metazoo.sqdist(x, y).item()
    except RuntimeError as error:
        return f"the kernels do not run on {device}: {first_line(error)}"
    return "" if found == 25.0 else f"the kernels are wrong on {device}: {found} instead of 25"
