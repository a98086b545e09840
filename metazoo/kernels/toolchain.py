"""Finds what the kernels are built with: ninja, a C++ compiler, nvcc."""

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
# Ampere and Hopper as machine code; PTX lets the driver translate for what comes after them.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


class KernelBuildError(MetazooError):
    """The kernels cannot be built, or what was built does not load."""

    exit_code = 1


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its nvcc, the folder it lies in, and its version ("13.0")."""

    nvcc: Path
    root: Path
    version: str

    def libraries(self) -> list[Path]:
        """Return the folders that its libraries may lie in."""
        folders = [self.root / "lib64", self.root / "lib", *sorted(self.root.glob("targets/*/lib"))]
        return [folder for folder in folders if folder.is_dir()]


def find_ninja() -> str:
    """Return the path of ninja: that of the Python package, else one on PATH."""
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")
    if found is None:
        raise KernelBuildError(
            "ninja, which builds the kernels, is not to be found", "`pip install ninja`"
        )
    return found


def find_cxx() -> tuple[list[str], str]:
    """Return the command of the C++ compiler, from CXX or else g++, and what it calls itself."""
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    told = _output([*command, "--version"])
    if not told:
        wrong = (
            f"CXX names '{shlex.join(command)}', which does not run"
            if os.environ.get("CXX")
            else "there is no g++ that runs"
        )
        raise KernelBuildError(wrong, "install g++, or set CXX to a C++ compiler")
    return command, told.splitlines()[0]


def find_toolkit(cuda: str) -> Toolkit:
    """Return the first CUDA toolkit of the same major version as `cuda`; of any where that is ANY.

    Looked for, in this order: CUDA_HOME, CUDA_PATH, nvcc on PATH, /usr/local/cuda, /usr/local/cuda-*, the nvidia packages
    of pip.
    """
    if not cuda:
        raise KernelBuildError(
            "the torch that is installed is for CPUs alone", "install a torch for CUDA"
        )
    others = []
    for nvcc in _nvccs():
        told = re.search(r"release (\d+)\.(\d+)", _output([str(nvcc), "--version"]))
        if told is None:
            continue
        if cuda in (ANY, told[1]) or cuda.startswith(f"{told[1]}."):
            return Toolkit(nvcc, _root(nvcc), f"{told[1]}.{told[2]}")
        others.append(f"{nvcc} is of {told[1]}.{told[2]}")
    wanted = "the CUDA toolkit" if cuda == ANY else f"the CUDA toolkit {cuda.partition('.')[0]}.x"
    hint = f"install {wanted}, or set CUDA_HOME to where it is"
    if others:
        raise KernelBuildError(
            f"torch is built for CUDA {cuda}, and no nvcc for it is here: {', '.join(others)}", hint
        )
    places = "CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda*, pip's nvidia packages"
    raise KernelBuildError(f"there is no working nvcc (looked in {places})", hint)


def architectures(present: Sequence[tuple[int, int]] = ()) -> str:
    """Return the CUDA architectures to build for: TORCH_CUDA_ARCH_LIST, else 8.0;9.0+PTX, and what `present` needs besides."""
    chosen = list(
        filter(
            None,
            re.split(
                r"[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "") or DEFAULT_ARCHITECTURES
            ),
        )
    )
    parsed = [_parse(text) for text in chosen]

    def runs_on(gpu: tuple[int, int]) -> bool:
        # Machine code runs on later GPUs of its own generation, PTX on all later ones, "9.0a" on 9.0 alone.
        return any(
            gpu == arch or (not letter and arch <= gpu and (ptx or arch[0] == gpu[0]))
            for arch, letter, ptx in parsed
        )

    return ";".join(
        [
            *chosen,
            *(
                f"{major}.{minor}"
                for major, minor in sorted(set(present))
                if not runs_on((major, minor))
            ),
        ]
    )


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
            f"TORCH_CUDA_ARCH_LIST holds '{text}', which is no architecture",
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
    # nvcc on PATH may be a link or a script that calls the one in the toolkit: nvcc itself says where it lies.
    told = re.search(r"^#\$ TOP=(.+)$", _output([str(nvcc), "--dryrun", "x.cu"]), flags=re.M)
    return Path(told[1].strip() if told else nvcc.resolve().parents[1]).resolve()


def _output(command: list[str]) -> str:
    """Return what a command writes to stdout and stderr; nothing where it cannot be run or fails."""
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
