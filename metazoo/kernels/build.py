"""Building of the kernels' library with ninja, on first use or ahead of time.

setup.py imports this module without metazoo's dependencies, so it imports only the standard library
until `build` is called.
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

from metazoo.io.files import cache_directory, locked, read_verified, write_atomically
from metazoo.kernels.toolchain import (
    KernelBuildError,
    Toolkit,
    architectures,
    code_generation,
    find_cxx,
    find_ninja,
    find_toolkit,
)
from metazoo.kernels.trust import check_folder
from metazoo.version import VERSION

Kind = Literal["cuda", "emulated"]

# The stable ABI of torch 2.11: a library built with a later torch also loads into 2.11.
_COMMON = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
_CXX = {"cuda": ["-O2"], "emulated": ["-O2", "-g", "-DMETAZOO_EMULATED"]}
_HOST = ["-fPIC", "-fvisibility=hidden"]
_NVCC = ["-O3", "-Xptxas=-v", "-Wno-deprecated-gpu-targets"]
# For CI only, because a new compiler's warnings must not prevent a build.
_STRICT_CXX = ["-Wall", "-Werror"]
_STRICT_NVCC = ["-Werror=all-warnings"]
_WORK_PREFIX = "building-"
_LINES = 12  # lines of the compilers' output in an error


def find_sources() -> Path:
    """Return the folder of the C++ and CUDA sources, in the package or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "module.cpp").exists():
            return folder
    raise KernelBuildError(
        f"the kernels' sources are not in {package / 'csrc'}", "install metazoo again"
    )


def sources_of(csrc: Path) -> list[Path]:
    """Return the sources and headers."""
    return sorted(path for kind in ("*.cu", "*.cpp", "*.cuh", "*.h") for path in csrc.glob(kind))


def digest_of(csrc: Path) -> str:
    """Return a digest of the sources, which a library carries as its build id."""
    digest = hashlib.sha256()
    for path in sources_of(csrc):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def is_of(library: Path, csrc: Path) -> bool:
    """Return whether a library was built from these sources."""
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
    """Build the kernels' library, an extension module `_cuda` or `_emulated`, and return its path.

    An existing library is reused. It is in a folder named after everything that it depends on,
    beside `build.log` with the output of the compilers and ptxas. Processes that build the same
    library wait for the first.

    Args:
        kind: "cuda", or "emulated" for CPU tensors
        csrc: folder of the sources
        folder: parent of the library's folder (default: `kernels` in the cache)
        extra_flags: for every compiler and the linker
        archs: CUDA architectures, such as "8.0;9.0+PTX"
        cuda: the version of CUDA to build for (default: torch's); "any" takes the first nvcc
        strict: treat warnings as errors
        again: build even if the library exists

    Raises:
        KernelBuildError: something is missing, or the sources do not compile
    """
    csrc = (csrc or find_sources()).absolute()
    archs = (archs or architectures()) if kind == "cuda" else ""
    place = (folder or cache_directory() / "kernels").absolute()
    place /= _key(kind, csrc, archs, strict, extra_flags)
    library = place / f"_{kind}{sysconfig.get_config_var('EXT_SUFFIX')}"
    try:
        for made in (*reversed(place.parents), place):
            made.mkdir(exist_ok=True, mode=0o700)
        check_folder(place, whole_path=folder is None)
        if _is_complete(library) and not again:
            return library
        with locked(place, wait=True):
            if again or not _is_complete(library):
                version = cuda or cuda_of_torch() or ""
                script = _script(kind, csrc, library.name, archs, version, strict, extra_flags)
                _compile(script, library)
    except OSError as error:
        hint = "set METAZOO_CACHE to a folder that can be written"
        raise KernelBuildError(f"the kernels cannot be built in {place}: {error}", hint) from error
    return library


def _key(kind: Kind, csrc: Path, archs: str, strict: bool, extra_flags: Sequence[str]) -> str:
    """Return a digest of everything that a library depends on."""
    depends = [
        kind,
        VERSION,
        _torch().__version__,
        sysconfig.get_config_var("SOABI"),
        archs,
        strict,
        [*_COMMON, *_CXX[kind], *_HOST, *_NVCC, *extra_flags],
        digest_of(csrc),
    ]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]


def _compile(script: str, library: Path) -> None:
    place = library.parent
    _sweep(place)
    with tempfile.TemporaryDirectory(dir=place, prefix=_WORK_PREFIX) as work:
        write_atomically(place / "build.ninja", script.encode())
        print(
            "metazoo: compiling its kernels; this takes a minute or two, once",
            file=sys.stderr,
        )
        _run(place / "build.ninja", Path(work), place / "build.log")
        _keep(Path(work) / library.name, library)


def cuda_of_torch() -> str | None:
    """Return the CUDA version of the installed torch, or None for a torch without CUDA."""
    return _torch().version.cuda


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        hint = "in an environment with torch: `METAZOO_BUILD=1 pip install --no-build-isolation .`"
        raise KernelBuildError(
            f"the kernels are built for the installed torch, and torch is missing: {error}", hint
        ) from error
    return torch


def _script(
    kind: Kind, csrc: Path, name: str, archs: str, cuda: str, strict: bool, extra: Sequence[str]
) -> str:
    """Return the contents of build.ninja."""
    cxx, compiler = find_cxx()
    common = _common_flags(kind, extra)
    # The file's build id says which sources it was built from; see `is_of`.
    link = [
        f"-L{_home() / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-Wl,--as-needed",
        f"-Wl,--build-id=0x{digest_of(csrc)}",
    ]
    about = ["  depfile = $out.d", "  description = $out"]
    lines: list[str] = []
    if kind == "cuda":
        toolkit = find_toolkit(cuda)
        compiler = f"nvcc {toolkit.version}, {compiler}"
        nvcc = _nvcc_command(toolkit, cxx, archs, common, strict)
        lines += ["rule nvcc", f"  command = {_words(nvcc)} -MD -MF $out.d -c $in -o $out", *about]
        link += [f"-L{folder}" for folder in toolkit.libraries()]
        # Without --exclude-libs our calls could end up in the CUDA runtime that torch brings.
        link += ["-Wl,--exclude-libs,ALL", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    info = {"ARCHS": archs, "COMPILER": compiler}
    compile_ = _cxx_command(kind, cxx, csrc, common, info, strict)
    rules = {".cpp": "cxx", ".cu": "nvcc" if kind == "cuda" else "cxx"}
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


def _home() -> Path:
    return Path(str(_torch().__file__)).parent


def _common_flags(kind: Kind, extra: Sequence[str]) -> list[str]:
    # Our pybind11 comes first: torch's copy refuses to be included together with the stable ABI.
    include = [_pybind11(), _home() / "include", sysconfig.get_path("include")]
    system = [part for path in include for part in ("-isystem", str(path))]
    return [*_COMMON, f"-DMETAZOO_MODULE=_{kind}", *system, *extra]


def _nvcc_command(
    toolkit: Toolkit, cxx: list[str], archs: str, common: list[str], strict: bool
) -> list[str]:
    # `-ccbin` takes one word, and CXX may be "ccache g++".
    program = [word for word in cxx if not word.startswith("-")][-1]
    options = [word for word in cxx if word.startswith("-")]
    return [
        str(toolkit.nvcc),
        *_NVCC,
        *code_generation(archs),
        f"-ccbin={program}",
        *(f"-Xcompiler={flag}" for flag in (*options, *_HOST)),
        *common,
        *(_STRICT_NVCC if strict else ()),
    ]


def _cxx_command(
    kind: Kind, cxx: list[str], csrc: Path, common: list[str], info: dict[str, str], strict: bool
) -> list[str]:
    info = {"TORCH": _torch().__version__, "VERSION": VERSION, **info}
    return [
        *cxx,
        *_CXX[kind],
        *_HOST,
        # Failed checks name their source file; the prefix map keeps the build's folder out of it.
        f"-ffile-prefix-map={csrc}=csrc",
        *common,
        *(_STRICT_CXX if strict else ()),
        *(f'-DMETAZOO_{key}="{value}"' for key, value in info.items()),
    ]


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
    # Each build has a log of its own, because the compilers of a killed build may still write.
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
    errors = _error_lines(log.read_text(encoding="utf-8", errors="replace"))
    raise KernelBuildError(f"the kernels do not compile:\n  {errors}", f"the whole log is {log}")


def _error_lines(log: str) -> str:
    """Return the first error of a log and the lines after it."""
    # ninja repeats the long commands.
    own = re.compile(r"ninja: |\[\d+/\d+\]|.* -o ")
    lines = [line for line in log.splitlines() if line.strip() and not own.match(line)]
    # Output of other files may follow an error. A linker's reason precedes its driver's `error`.
    is_error = re.compile(r"(?!collect2).*\b(?:error|fatal)(?: [#\w-]+)?\s*:")
    last = max(0, len(lines) - _LINES)
    first = next((i for i, line in enumerate(lines) if is_error.match(line)), last)
    return "\n  ".join(lines[first : first + _LINES])


def _keep(built: Path, library: Path) -> None:
    """Move a library to its place, then write its checksum, which marks it as complete."""
    built.chmod(0o755)  # a umask may let a group write
    checksum = hashlib.sha256(built.read_bytes()).hexdigest()
    _checksum_of(library).unlink(missing_ok=True)
    os.replace(built, library)
    write_atomically(_checksum_of(library), checksum.encode())


def _checksum_of(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _is_complete(library: Path) -> bool:
    # Loading a truncated library can kill the process. The checksum is against that; against other
    # users it is no help, as it lies beside the library: `trust` is.
    try:
        checksum = _checksum_of(library).read_text(encoding="utf-8")
        return read_verified(library, checksum) is not None
    except (OSError, ValueError):
        return False


def _sweep(place: Path) -> None:
    """Remove the files of killed builds.

    Without locks in the file system, those younger than an hour may belong to a running build.
    """
    for left in place.glob(f"{_WORK_PREFIX}*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
