"""Building the kernels: every way that it can fail, with real compilers; the CUDA library and the wheels, without a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pybind11
import pytest
import torch
from distributions import copy_sources
from once import once

from metazoo.errors import MetazooError
from metazoo.kernels import loading
from metazoo.kernels.build import build, find_sources, is_of
from metazoo.kernels.toolchain import KernelBuildError, architectures, code_generation, find_toolkit

ROOT = Path(__file__).parents[2]

# A library that compiles in a moment.
TINY = """
#include "tiny.h"
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny", nullptr, -1, nullptr};
#define INIT(name) PyMODINIT_FUNC PyInit_##name()
#define EXPANDED(name) INIT(name)
EXPANDED(METAZOO_MODULE) { return PyModule_Create(&module); }
"""


@pytest.fixture
def csrc(tmp_path: Path) -> Path:
    folder = (
        tmp_path / "the sources: $1"
    )  # what a shell and ninja would each take for something else
    folder.mkdir()
    (folder / "module.cpp").write_text(TINY)
    (folder / "tiny.h").write_text("#include <Python.h>\n")
    return folder


@pytest.fixture(scope="module")
def nvcc() -> Path:
    try:
        return find_toolkit("any").nvcc
    except KernelBuildError as error:
        pytest.skip(f"{error.message}")


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # Python looks for metazoo in the working directory before it looks in PYTHONPATH.
    here = environment.get("PYTHONPATH")
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | environment, cwd=here
    )


BUILD = """
import sys
from pathlib import Path
from metazoo.kernels.build import build
print(build("emulated", csrc=Path(sys.argv[1]), folder=Path(sys.argv[2])))
"""


def test_what_is_built_is_kept_until_something_that_it_depends_on_changes(
    csrc, tmp_path, monkeypatch
):
    first = build("emulated", csrc=csrc, folder=tmp_path / "out")
    assert first.name.startswith("_emulated.")
    assert is_of(first, csrc)
    found = subprocess.run(
        [sys.executable, "-c", "import torch, _emulated; print(_emulated.__file__)"],
        cwd=first.parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(first), found.stderr
    monkeypatch.setenv("CXX", "/bin/false")
    assert build("emulated", csrc=csrc, folder=tmp_path / "out") == first
    monkeypatch.delenv("CXX")
    (csrc / "tiny.h").write_text("#include <Python.h>  // changed\n")
    second = build("emulated", csrc=csrc, folder=tmp_path / "out")
    assert second.parent != first.parent
    assert is_of(second, csrc)
    assert not is_of(first, csrc)
    assert build(
        "emulated", csrc=csrc, folder=tmp_path / "out", extra_flags=["-DMORE"]
    ).parent not in (
        first.parent,
        second.parent,
    )


def test_a_library_that_has_lost_its_end_is_built_again(csrc, tmp_path):
    library = build("emulated", csrc=csrc, folder=tmp_path)
    whole = library.stat().st_size
    os.truncate(library, whole // 2)
    assert build("emulated", csrc=csrc, folder=tmp_path) == library
    assert library.stat().st_size == whole


def test_an_error_shows_what_the_compiler_says(csrc, tmp_path):
    (csrc / "module.cpp").write_text(TINY + "int wrong() { return nothing_of_that_name; }\n")
    with pytest.raises(KernelBuildError, match="nothing_of_that_name") as caught:
        build("emulated", csrc=csrc, folder=tmp_path)
    assert isinstance(caught.value, MetazooError)
    assert " -fPIC" not in caught.value.message
    log = Path(caught.value.hint.removeprefix("the whole log is "))
    assert "nothing_of_that_name" in log.read_text()
    assert not list(tmp_path.rglob("_emulated.*"))
    assert not list(tmp_path.rglob("building-*"))


def test_an_error_is_shown_though_other_files_have_more_to_say_after_it(csrc, tmp_path):
    chatter = '#pragma message("no error")\n' * 30
    (csrc / "module.cpp").write_text(f'{chatter}#error "the mistake"\n{chatter}')
    with pytest.raises(KernelBuildError, match="the mistake"):
        build("emulated", csrc=csrc, folder=tmp_path)


def test_what_the_linker_misses_is_named(csrc, tmp_path):
    with pytest.raises(KernelBuildError, match="lnowhere"):
        build("emulated", csrc=csrc, folder=tmp_path, extra_flags=["-lnowhere"])


def test_pybind11_is_the_installed_one(csrc, tmp_path):
    # That of torch 2.11 says #error where its stable ABI is used.
    build("emulated", csrc=csrc, folder=tmp_path)
    script = next(tmp_path.rglob("build.ninja")).read_text()
    assert script.index(str(Path(pybind11.get_include()))) < script.index(
        str(Path(torch.__file__).parent / "include")
    )


def test_what_others_could_have_written_is_not_run(csrc, tmp_path):
    library = build("emulated", csrc=csrc, folder=tmp_path / "out")
    assert build("emulated", csrc=csrc, folder=tmp_path / "out") == library
    for path in (library, library.parent, tmp_path / "out"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(KernelBuildError, match="others may write"):
            build("emulated", csrc=csrc, folder=tmp_path / "out")
        path.chmod(mode)


def test_a_build_makes_what_only_its_owner_may_write(csrc, tmp_path, monkeypatch):
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "a" / "b"))
    before = os.umask(0)
    try:
        built = build("emulated", csrc=csrc)
    finally:
        os.umask(before)
    assert built.stat().st_mode & 0o777 == 0o755
    for folder in built.parents[:4]:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert build("emulated", csrc=csrc) == built
    found = loading._import(built)
    monkeypatch.delitem(sys.modules, "metazoo.kernels._emulated")
    assert found.__file__ == str(built)
    built.chmod(0o777)
    with pytest.raises(KernelBuildError, match="others may write"):
        loading._import(built)


def test_warnings_are_errors_for_ci_alone(csrc, tmp_path):
    (csrc / "module.cpp").write_text(TINY + "static int unused() { return 0; }\n")
    assert build("emulated", csrc=csrc, folder=tmp_path).exists()
    with pytest.raises(KernelBuildError, match="unused"):
        build("emulated", csrc=csrc, folder=tmp_path, strict=True)


@pytest.mark.parametrize("cxx", ["/bin/false", "no-such-compiler", "ccache-is-not-here g++"])
def test_a_compiler_that_does_not_run(csrc, tmp_path, monkeypatch, cxx):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(KernelBuildError, match=re.escape(cxx)) as caught:
        build("emulated", csrc=csrc, folder=tmp_path)
    assert "CXX" in caught.value.hint


def test_cxx_is_honoured(csrc, tmp_path, monkeypatch):
    monkeypatch.setenv(
        "CXX", script(tmp_path / "bin" / "mine", f'echo "$@" >> "{tmp_path}/calls"\nexec g++ "$@"')
    )
    build("emulated", csrc=csrc, folder=tmp_path)
    assert "-shared" in (tmp_path / "calls").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["ninja", "torch"])
def test_something_is_not_installed(csrc, tmp_path, missing):
    code = (
        f"import sys; from metazoo.kernels import build; sys.modules[{missing!r}] = None\n{BUILD}"
    )
    failed = python(code, csrc, tmp_path / "out", PATH=f"{tmp_path}")
    # Without a PATH there is no g++ either: the compiler is looked for first.
    if missing == "ninja":
        gxx = script(tmp_path / "g++", f'exec {shutil.which("g++")} "$@"')
        failed = python(code, csrc, tmp_path / "out", PATH=str(Path(gxx).parent))
        assert "KernelBuildError: ninja" in failed.stderr
        assert "pip install ninja" in failed.stderr
    else:
        assert "--no-build-isolation" in failed.stderr


def test_a_cache_that_cannot_be_written(csrc, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(KernelBuildError, match=re.escape(str(tmp_path / "file"))) as caught:
        build("emulated", csrc=csrc)
    assert "METAZOO_CACHE" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(csrc, tmp_path):
    library = build("emulated", csrc=csrc, folder=tmp_path / "out")
    for path in (library.parent, tmp_path / "out"):
        path.chmod(0o555)
    try:
        assert build("emulated", csrc=csrc, folder=tmp_path / "out") == library
        with pytest.raises(KernelBuildError, match="cannot be built"):
            build("emulated", csrc=csrc, folder=tmp_path / "out", extra_flags=["-DMORE"])
    finally:
        for path in (tmp_path / "out", library.parent):
            path.chmod(0o755)


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_that_looks_whole_and_nothing_that_hangs(
    csrc, tmp_path
):
    reached = tmp_path / "reached"
    slow = script(
        tmp_path / "bin" / "slow",
        f'case "$*" in *--version*) exec g++ --version;; esac\ntouch {reached}\nexec sleep 600',
    )
    command = [sys.executable, "-c", BUILD, csrc, tmp_path / "out"]
    victim = subprocess.Popen(command, env=os.environ | {"CXX": slow}, start_new_session=True)
    try:
        while not reached.exists():
            assert victim.poll() is None
            time.sleep(0.05)
        victim.kill()  # the process alone: ninja and the compiler live on, as they would
        victim.wait()
        assert not list((tmp_path / "out").rglob("_emulated.*"))
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert Path(done.stdout.strip()).exists()
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
    # What the victim left is swept away once it is old; here, by the next build in its place.
    (left,) = (tmp_path / "out").rglob("building-*")
    os.utime(left, (0, 0))
    build("emulated", csrc=csrc, folder=tmp_path / "out", again=True)
    assert not left.exists()


@pytest.mark.slow
def test_processes_that_build_at_once_build_once(csrc, tmp_path):
    calls = tmp_path / "calls"
    counting = script(
        tmp_path / "bin" / "counting",
        f'case "$*" in *" -c "*) echo >> {calls}; sleep 1;; esac\nexec g++ "$@"',
    )
    command = [sys.executable, "-c", BUILD, csrc, tmp_path / "out"]
    environment = os.environ | {"CXX": counting}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert len(calls.read_text().splitlines()) == 1


def test_what_setup_py_imports_is_the_standard_library():
    code = "import setup_like, sys; print([m for m in ('torch', 'numpy', 'pluggy', 'click') if m in sys.modules])"
    code = code.replace(
        "import setup_like, sys",
        "import setuptools, sys; setuptools.setup = lambda **_: None; sys.path.insert(0, sys.argv[1]); "
        "import setup; assert setup.builder().find_sources()",
    )
    done = python(code, ROOT)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("chosen", "present", "expected"),
    [
        ("", [], "8.0;9.0+PTX"),
        ("", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)], "8.0;9.0+PTX"),
        ("", [(7, 5), (7, 5)], "8.0;9.0+PTX;7.5"),
        ("8.0", [(9, 0)], "8.0;9.0"),
        ("8.6, 9.0a", [(8, 0), (9, 0), (10, 0)], "8.6;9.0a;8.0;10.0"),
    ],
)
def test_architectures(monkeypatch, chosen, present, expected):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", chosen)
    assert architectures(present) == expected


def test_an_architecture_that_is_none(monkeypatch):
    assert code_generation("8.0;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hoper")
    with pytest.raises(KernelBuildError, match="'Hoper'"):
        architectures()


def test_nvcc_of_another_version(nvcc, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake = script(tmp_path / "nvcc", 'echo "Cuda compilation tools, release 4.1, V4.1.9"')
    assert find_toolkit("4.2").nvcc == Path(fake)
    with pytest.raises(
        KernelBuildError, match=rf"built for CUDA 5\.0.*{re.escape(fake)} is of 4\.1"
    ) as caught:
        find_toolkit("5.0")
    assert "CUDA toolkit 5.x" in caught.value.hint
    # One that fits is found behind one that does not, and one that does not run is passed over.
    real = find_toolkit("any").version
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parents[2]))
    assert find_toolkit(real).version == real
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing"))
    assert find_toolkit("4.1").nvcc == Path(fake)
    script(tmp_path / "nvcc", "exit 1")
    with pytest.raises(KernelBuildError):
        find_toolkit("4.1")


def test_a_torch_for_cpus_alone_has_no_toolkit():
    with pytest.raises(KernelBuildError, match="installed torch has no CUDA"):
        find_toolkit("")


def test_nvcc_may_be_a_script_that_calls_the_one_in_the_toolkit(nvcc, tmp_path, monkeypatch):
    root = find_toolkit("any").root
    real = root / "bin" / "nvcc"
    script(tmp_path / "nvcc", f'exec {real} "$@"')
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = find_toolkit("any")
    assert found.nvcc == tmp_path / "nvcc"
    assert found.root == root
    assert found.libraries()


@pytest.fixture(scope="module")
def cuda_library(nvcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        build("cuda", folder=folder, cuda="any", strict=True)

    return next(once(tmp_path_factory, "cuda", make).rglob("_cuda*.so"))


@pytest.mark.slow
def test_nvcc_compiles_every_kernel_without_a_warning_or_a_spill(cuda_library):
    report = (cuda_library.parent / "build.log").read_text()
    assert {path.name for path in find_sources().glob("*.cu")} <= {
        name.removesuffix(".o") for name in re.findall(r"\S+\.cu\.o", report)
    }
    assert {"sm_80", "sm_90"} <= set(re.findall(r"for '(sm_\d+)'", report))
    spills = re.findall(
        r"Function properties for (\S+)\n\s+.* (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
    )
    assert len(spills) > 10
    assert [name for name, stores, loads in spills if stores != "0" or loads != "0"] == []


REGISTERED = """
import torch
from metazoo.kernels.loading import FALLBACKS, load, status
load(cuda="any")
assert status().loaded, status()
assert FALLBACKS
for name in FALLBACKS:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"metazoo::{name}", "CUDA"), name
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"metazoo::{name}", "CPU"), name
print(status())
"""


def install(target: Path, wheel: Path) -> dict[str, str]:
    zipfile.ZipFile(wheel).extractall(target)
    return {
        "PYTHONPATH": str(target),
        "METAZOO_KERNELS": "auto",
        "METAZOO_CACHE": str(target / "cache"),
    }


@pytest.mark.slow
def test_the_cuda_library_loads_and_registers_every_operation(cuda_library, tmp_path):
    shutil.copytree(
        ROOT / "metazoo",
        tmp_path / "metazoo",
        ignore=shutil.ignore_patterns("__pycache__", "_cuda*.so"),
    )
    shutil.copytree(find_sources(), tmp_path / "metazoo" / "csrc")
    shutil.copy(cuda_library, tmp_path / "metazoo" / "kernels")
    done = python(
        REGISTERED,
        PYTHONPATH=str(tmp_path),
        METAZOO_KERNELS="auto",
        METAZOO_CACHE=str(tmp_path / "cache"),
    )
    assert "origin='prebuilt'" in done.stdout, done.stderr
    assert "'architectures': '8.0;9.0+PTX'" in done.stdout
    assert not (tmp_path / "cache").exists()


def make_wheel(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    copy_sources(folder / "source")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        *options,
        "-w",
        folder,
        folder / "source",
    ]
    clean = {key: value for key, value in os.environ.items() if key not in ("METAZOO_BUILD", "CXX")}
    return subprocess.run(
        [*map(str, command)], check=False, capture_output=True, text=True, env=clean | environment
    )


@pytest.mark.slow
def test_the_wheel_is_pure_and_holds_the_sources(tmp_path):
    # No compiler runs, whatever is there.
    done = make_wheel(tmp_path, "--no-build-isolation", CXX="/bin/false", CUDA_HOME="/nothing")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"metazoo/csrc/{path.name}" for path in (ROOT / "csrc").iterdir() if path.suffix != ".md"
    } <= held
    assert not [name for name in held if name.endswith(".so")]
    found = python(
        "from metazoo.kernels.build import find_sources; print(find_sources())",
        **install(tmp_path / "site", wheel),
    )
    assert found.stdout.strip() == str(tmp_path / "site" / "metazoo" / "csrc"), found.stderr


@pytest.mark.slow
def test_one_flag_builds_the_kernels_into_the_wheel(nvcc, tmp_path):
    one = {"METAZOO_BUILD": "1", "TORCH_CUDA_ARCH_LIST": "8.0"}
    done = make_wheel(tmp_path, "--no-build-isolation", **one)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    site = install(tmp_path / "site", wheel)
    found = python(REGISTERED, CXX="/bin/false", **site)
    assert "origin='prebuilt'" in found.stdout, found.stderr
    # Where no GPU calls for it, too, `metazoo info` says what was built.
    told = json.loads(
        python("from metazoo.cli import run; run(['info', '--json'])", **site).stdout
    )["kernels"]
    assert told["path"].startswith(str(tmp_path / "site"))
    assert told["info"]["architectures"] == "8.0"


@pytest.mark.slow
def test_what_the_flag_is_set_to_must_mean_something(tmp_path):
    done = make_wheel(tmp_path, "--no-build-isolation", METAZOO_BUILD="no")
    assert done.returncode != 0
    assert "error: METAZOO_BUILD is 'no'" in done.stderr + done.stdout


@pytest.mark.slow
def test_a_build_ahead_of_time_that_fails_is_an_error(nvcc, tmp_path):
    done = make_wheel(tmp_path, "--no-build-isolation", METAZOO_BUILD="1", CXX="/bin/false")
    assert done.returncode != 0
    assert "error: METAZOO_BUILD=1, but CXX is '/bin/false'" in done.stderr + done.stdout
    assert not list(tmp_path.glob("*.whl"))
