"""The tools that build the kernels: ninja, a C++ compiler, nvcc."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metazoo.errors import MetazooError

ANY = "any"
# Machine code for Ampere and Hopper; drivers translate PTX for later GPUs.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


class KernelBuildError(MetazooError):
    """The kernels cannot be built or loaded."""

    exit_code = 1


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its nvcc, its folder, and its version ("13.0")."""

    nvcc: Path
    root: Path
    version: str

    def libraries(self) -> list[Path]:
        """Return the folders with its libraries."""
        folders = [self.root / "lib64", self.root / "lib", *sorted(self.root.glob("targets/*/lib"))]
        return [folder for folder in folders if folder.is_dir()]


def find_ninja() -> str:
    """Return the path of ninja, from the Python package or PATH."""
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")
    if found is None:
        raise KernelBuildError(
            "ninja, which builds the kernels, was not found", "`pip install ninja`"
        )
    return found


def find_cxx() -> tuple[list[str], str]:
    """Return the command of the C++ compiler (CXX, or g++) and its version line."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    version = _output([*command, "--version"])
    if not version:
        problem = "no working g++ was found"
        if os.environ.get("CXX"):
            problem = f"CXX is '{shlex.join(command)}', which does not run"
        raise KernelBuildError(problem, "install g++, or set CXX to a C++ compiler")
    return command, version.splitlines()[0]


def find_toolkit(cuda: str) -> Toolkit:
    """Return the first CUDA toolkit with the major version of `cuda`, or of any version for ANY.

    It looks at CUDA_HOME, CUDA_PATH, nvcc on PATH, /usr/local/cuda, /usr/local/cuda-* and pip's
    nvidia packages, in this order. Raises KernelBuildError.
    """
    if not cuda:
        raise KernelBuildError("the installed torch has no CUDA", "install a torch for CUDA")
    others = []
    for nvcc in _nvccs():
        release = re.search(r"release (\d+)\.(\d+)", _output([str(nvcc), "--version"]))
        if release is None:
            continue
        version = f"{release[1]}.{release[2]}"
        if cuda in (ANY, release[1]) or cuda.startswith(f"{release[1]}."):
            return Toolkit(nvcc, _root(nvcc), version)
        others.append(f"{nvcc} is of {version}")
    wanted = "the CUDA toolkit" if cuda == ANY else f"the CUDA toolkit {cuda.partition('.')[0]}.x"
    hint = f"install {wanted}, or set CUDA_HOME to its folder"
    if others:
        raise KernelBuildError(f"torch is built for CUDA {cuda}, but {', '.join(others)}", hint)
    places = "CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda*, pip's nvidia packages"
    raise KernelBuildError(f"no working nvcc was found (looked in {places})", hint)


def architectures(present: Sequence[tuple[int, int]] = ()) -> str:
    """Return the CUDA architectures to build for: TORCH_CUDA_ARCH_LIST, or 8.0;9.0+PTX.

    Those of the GPUs in `present` are added if the list does not cover them.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "") or DEFAULT_ARCHITECTURES
    chosen = [arch for arch in re.split(r"[;, ]+", listed) if arch]
    parsed = [_parse(text) for text in chosen]

    def runs_on(gpu: tuple[int, int]) -> bool:
        # Machine code runs on later GPUs of its generation, PTX on all later GPUs, "9.0a" only on
        # 9.0.
        return any(
            gpu == arch or (not letter and arch <= gpu and (ptx or arch[0] == gpu[0]))
            for arch, letter, ptx in parsed
        )

    missing = [f"{gpu[0]}.{gpu[1]}" for gpu in sorted(set(present)) if not runs_on(gpu)]
    return ";".join([*chosen, *missing])


def code_generation(archs: str) -> list[str]:
    """Return nvcc's flags for architectures such as "8.0;9.0+PTX"."""
    flags = []
    for (major, minor), letter, ptx in map(_parse, archs.split(";")):
        number = f"{major}{minor}{letter}"
        kinds = [f"sm_{number}", f"compute_{number}"] if ptx else [f"sm_{number}"]
        flags += [f"-gencode=arch=compute_{number},code={kind}" for kind in kinds]
    return flags


def _parse(text: str) -> tuple[tuple[int, int], str, bool]:
    parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", text)
    if parts is None:
        raise KernelBuildError(
            f"TORCH_CUDA_ARCH_LIST has '{text}', which is not an architecture",
            f"write it as {DEFAULT_ARCHITECTURES}",
        )
    return (int(parts[1]), int(parts[2])), parts[3], parts[4] is not None


def _nvccs() -> Iterator[Path]:
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    yield from (root / "bin" / "nvcc" for root in roots)
    if on_path := shutil.which("nvcc"):
        yield Path(on_path)
    local = Path("/usr/local")
    yield from (
        root / "bin" / "nvcc"
        for root in [local / "cuda", *sorted(local.glob("cuda-*"), reverse=True)]
    )
    packages = importlib.util.find_spec("nvidia")
    for folder in (packages and packages.submodule_search_locations) or ():
        yield from sorted(Path(folder).glob("cu[0-9]*/bin/nvcc"), reverse=True)


def _root(nvcc: Path) -> Path:
    # nvcc on PATH may be a link or a wrapper script, so nvcc is asked for its folder.
    top = re.search(r"^#\$ TOP=(.+)$", _output([str(nvcc), "--dryrun", "x.cu"]), flags=re.M)
    return Path(top[1].strip() if top else nvcc.resolve().parents[1]).resolve()


def _output(command: list[str]) -> str:
    """Return what a command writes to stdout and stderr, or an empty text if it fails."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
