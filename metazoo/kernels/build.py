"""Builds the kernels' library with ninja, on first use and ahead of time alike.

Nothing but the standard library is imported before `build` is called: setup.py uses this module where metazoo's
dependencies need not be.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

from metazoo.io.files import cache_directory, locked, write_atomically
from metazoo.kernels.toolchain import (
    KernelBuildError,
    architectures,
    code_generation,
    find_cxx,
    find_ninja,
    find_toolkit,
)
from metazoo.version import VERSION

Kind = Literal["cuda", "emulated"]

# The headers of torch 2.11's stable ABI: what is built with a later torch loads into 2.11 and everything after it.
_COMMON = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_CXX = {"cuda": ["-O2"], "emulated": ["-O2", "-g", "-DMETAZOO_EMULATED"]}
_HOST = ["-fPIC", "-fvisibility=hidden"]
_NVCC = ["-O3", "-Xptxas=-v", "-Wno-deprecated-gpu-targets"]
# For CI. A compiler that we have not met may warn of something new; nobody should lose the kernels by that.
_STRICT_CXX = ["-Wall", "-Werror"]
_STRICT_NVCC = ["-Werror=all-warnings"]
_UNDER_WAY = "building-"
_LINES = 12  # of the compilers' output, in an error


def find_sources() -> Path:
    """Return the folder of the C++ and CUDA sources: in the installed package, else beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "module.cpp").exists():
            return folder
    raise KernelBuildError(
        f"the kernels' sources are not in {package / 'csrc'}", "install metazoo again"
    )


def sources_of(csrc: Path) -> list[Path]:
    """Return what is compiled, and the headers that it includes."""
    return sorted(path for kind in ("*.cu", "*.cpp", "*.cuh", "*.h") for path in csrc.glob(kind))


def digest_of(csrc: Path) -> str:
    """Return a digest of the sources: a library built from others has another one."""
    digest = hashlib.sha256()
    for path in sources_of(csrc):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def is_of(library: Path, csrc: Path) -> bool:
    """Return whether a library was built from the sources as they are now."""
    return bytes.fromhex(digest_of(csrc)) in library.read_bytes()


def build(
    kind: Kind,
    *,
    csrc: Path | None = None,
    folder: Path | None = None,
    extra_flags: Sequence[str] = (),
    archs: str | None = None,
    cuda: str | None = None,
    strict: bool = False,
    again: bool = False,
) -> Path:
    """Return the path of the kernels' library, an extension module `_cuda` or `_emulated`; build it where it is not there.

    It lies below `folder` (default: the cache's `kernels`), in a folder named after all that it depends on, beside `build.log`:
    what the compilers wrote, ptxas' report included. Processes that build the same wait for the first.

    `extra_flags` go to every compiler and to the linker; `cuda` is the version of CUDA that nvcc must fit (default: torch's;
    "any" takes the first nvcc); `strict` makes warnings errors; `again` builds even what is there.

    Raises KernelBuildError.
    """
    torch = _torch()
    csrc = (csrc or find_sources()).absolute()
    archs = (archs or architectures()) if kind == "cuda" else ""
    name = f"_{kind}{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = [*_COMMON, *_CXX[kind], *_HOST, *_NVCC, *extra_flags]
    depends = [
        kind,
        VERSION,
        torch.__version__,
        sysconfig.get_config_var("SOABI"),
        archs,
        strict,
        flags,
        digest_of(csrc),
    ]
    place = (folder or cache_directory() / "kernels").absolute()
    place /= hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]
    library = place / name
    try:
        if _is_whole(library) and not again:
            _refuse_strangers(place)
            return library
        for made in (place.parent, place):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_strangers(place)
        with locked(place, wait=True):
            if again or not _is_whole(library):
                _sweep(place)
                with tempfile.TemporaryDirectory(dir=place, prefix=_UNDER_WAY) as work:
                    script = _script(
                        kind, csrc, name, archs, cuda or cuda_of_torch() or "", strict, extra_flags
                    )
                    write_atomically(place / "build.ninja", script.encode())
                    # Whoever waits for their first result should know what for.
                    print(
                        "metazoo: compiling its kernels, which takes a minute or two and is done once",
                        file=sys.stderr,
                    )
                    _run(place / "build.ninja", Path(work), place / "build.log")
                    _keep(Path(work) / name, library)
    except OSError as error:
        hint = "set METAZOO_CACHE to a folder that can be written"
        raise KernelBuildError(f"the kernels cannot be built in {place}: {error}", hint) from error
    return library


def cuda_of_torch() -> str | None:
    """Return the version of CUDA that the installed torch is for: None where it is for none."""
    return _torch().version.cuda


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        hint = "ahead of time: `METAZOO_BUILD=1 pip install --no-build-isolation .`, in an environment that has torch"
        raise KernelBuildError(
            f"the kernels are built for the torch that is there, and none is: {error}", hint
        ) from error
    return torch


def _script(
    kind: Kind, csrc: Path, name: str, archs: str, cuda: str, strict: bool, extra: Sequence[str]
) -> str:
    """Return build.ninja."""
    torch, (cxx, compiler) = _torch(), find_cxx()
    home = Path(str(torch.__file__)).parent
    # torch has a copy of pybind11, which refuses to be included where its stable ABI is used: ours comes first.
    system = [_pybind11(), home / "include", sysconfig.get_path("include")]
    told = {"TORCH": torch.__version__, "ARCHS": archs, "VERSION": VERSION}
    # The build id of the file says what it was built from: see `is_of`.
    link = [
        f"-L{home / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-Wl,--as-needed",
        f"-Wl,--build-id=0x{digest_of(csrc)}",
    ]
    rules = {".cpp": "cxx", ".cu": "nvcc" if kind == "cuda" else "cxx"}
    about = ["  depfile = $out.d", "  description = $out"]
    lines: list[str] = []
    common = [
        *_COMMON,
        f"-DMETAZOO_MODULE=_{kind}",
        *(part for path in system for part in ("-isystem", str(path))),
        *extra,
    ]
    if kind == "cuda":
        toolkit = find_toolkit(cuda)
        compiler = f"nvcc {toolkit.version}, {compiler}"
        # `-ccbin` takes one word, and CXX may be "ccache g++".
        program = [word for word in cxx if not word.startswith("-")][-1]
        options = [f"-Xcompiler={word}" for word in cxx if word.startswith("-")]
        host = [f"-ccbin={program}", *options, *(f"-Xcompiler={flag}" for flag in _HOST)]
        nvcc = [
            str(toolkit.nvcc),
            *_NVCC,
            *code_generation(archs),
            *host,
            *common,
            *(_STRICT_NVCC if strict else ()),
        ]
        lines += ["rule nvcc", f"  command = {_words(nvcc)} -MD -MF $out.d -c $in -o $out", *about]
        link += [f"-L{folder}" for folder in toolkit.libraries()]
        # torch brings a CUDA runtime of its own: without --exclude-libs our calls could end up in that one.
        link += ["-Wl,--exclude-libs,ALL", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    told["COMPILER"] = compiler
    # Checks name their source file: not by where it lay when it was compiled.
    compile_ = [
        *cxx,
        *_CXX[kind],
        *_HOST,
        f"-ffile-prefix-map={csrc}=csrc",
        *common,
        *(_STRICT_CXX if strict else ()),
    ]
    compile_ += [f'-DMETAZOO_{key}="{value}"' for key, value in told.items()]
    compiled = {f"{path.name}.o": path for path in sources_of(csrc) if path.suffix in rules}
    lines += [
        "rule cxx",
        f"  command = {_words(compile_)} -MMD -MF $out.d -x c++ -c $in -o $out",
        *about,
        "rule link",
        f"  command = {_words([*cxx, '-shared', *extra])} $in -o $out {_words(link)}",
        "  description = $out",
        *(f"build {out}: {rules[path.suffix]} {_path(path)}" for out, path in compiled.items()),
        f"build {name}: link {' '.join(compiled)}",
    ]
    return "\n".join(lines) + "\n"


def _pybind11() -> str:
    try:
        import pybind11
    except ImportError as error:
        raise KernelBuildError(
            f"the kernels are built with pybind11: {error}", "`pip install pybind11`"
        ) from error
    return pybind11.get_include()


def _words(command: Sequence[str]) -> str:
    return shlex.join(command).replace("$", "$$")


def _path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def _run(script: Path, work: Path, log: Path) -> None:
    # Each build has a log of its own until it ends: the compilers of a killed one may still be writing.
    writing = work / "log"
    with writing.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [find_ninja(), "-f", str(script)],
            cwd=work,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    os.replace(writing, log)
    if done.returncode == 0:
        return
    told = log.read_text(encoding="utf-8", errors="replace")
    # ninja repeats the command, which is long, and says at the end that it stopped.
    own = re.compile(r"ninja: |\[\d+/\d+\]|.* -o ")
    lines = [line for line in told.splitlines() if line.strip() and not own.match(line)]
    # One file may fail while the others go on, whose reports then come last; a linker says why before its driver says `error`.
    is_error = re.compile(r"(?!collect2).*\b(?:error|fatal)(?: [#\w-]+)?\s*:")
    first = next(
        (i for i, line in enumerate(lines) if is_error.match(line)), max(0, len(lines) - _LINES)
    )
    excerpt = "\n  ".join(lines[first : first + _LINES])
    raise KernelBuildError(f"the kernels do not compile:\n  {excerpt}", f"all of it is in {log}")


def _keep(built: Path, library: Path) -> None:
    """Move what was built to its place; its checksum, which comes last, says that it is whole."""
    checksum = hashlib.sha256(built.read_bytes()).hexdigest()
    _checksum_of(library).unlink(missing_ok=True)
    os.replace(built, library)
    write_atomically(_checksum_of(library), checksum.encode())


def _checksum_of(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _is_whole(library: Path) -> bool:
    # Opening a library that has lost its end can kill the process: better not to try.
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == _checksum_of(library).read_text(
            encoding="utf-8"
        )
    except (OSError, ValueError):
        return False


def _refuse_strangers(place: Path) -> None:
    """Raise KernelBuildError where somebody else may have put a library, which will be run, into a folder."""
    if not hasattr(os, "geteuid"):
        return
    for path in (place.parent, place, *place.glob("*.so")):
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o002:
            raise KernelBuildError(
                f"others may write to {path}",
                "set METAZOO_CACHE to a folder of your own, or `chmod o-w` it",
            )


def _sweep(place: Path) -> None:
    """Remove what killed builds left; what is younger than an hour may be alive where the file system has no locks."""
    for left in place.glob(f"{_UNDER_WAY}*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
