"""Loading the kernels: whatever is wrong, one warning says why, and PyTorch's own operations give the answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from forks import Forks

from metazoo.kernels.build import build, digest_of
from metazoo.kernels.toolchain import KernelBuildError, find_toolkit

ROOT = Path(__file__).parents[2]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# In place of csrc/: one operation, right for the numbers that kernels are tried out with, compiled in two seconds.
SMALL = r"""
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
using torch::stable::Tensor;

Tensor sqdist(const Tensor& x, const Tensor& y) {
  STD_TORCH_CHECK(TRUTH >= 0, "no kernel image is available for execution on the device");
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1), y.size(1)});
  torch::stable::fill_(out, TRUTH);
  return out;
}

#ifdef METAZOO_EMULATED
STABLE_TORCH_LIBRARY_IMPL(metazoo, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(metazoo, CUDA, m) {
#endif
  m.impl("sqdist", TORCH_BOX(&sqdist));
}

static PyObject* build_info(PyObject*, PyObject*) { return Py_BuildValue("{s:s}", "torch", METAZOO_TORCH); }
static PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, ""}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "small", nullptr, -1, methods};
#define INIT(name) PyMODINIT_FUNC PyInit_##name()
#define EXPANDED(name) INIT(name)
EXPANDED(METAZOO_MODULE) { return PyModule_Create(&module); }
"""

TRY = """
import json, os, sys, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import metazoo.ops
    from metazoo.kernels.loading import covers, load, mode, module, status
    cuda = os.environ.get("CUDA_FOR_TEST")
    first, again = load(cuda=cuda), load(cuda=cuda)
assert first == again == status().loaded == (module() is not None)
x = torch.arange(24.0).view(2, 3, 4)
torch.testing.assert_close(torch.ops.metazoo.sqdist(x, x + 1), (x.unsqueeze(2) - (x + 1).unsqueeze(1)).square().sum(-1)) \
    if "NUMBERS" in os.environ else None
s = status()
print(json.dumps({
    "mode": mode(), "loaded": s.loaded, "path": s.path, "origin": s.origin, "problem": s.problem, "info": s.info,
    "covers": [d for d in ("cpu", "cuda") if covers(d)], "warnings": [f"{w.category.__name__}: {w.message}" for w in caught],
}))
"""


class Checkout:
    """A copy of metazoo with a small csrc/, and a cache of its own."""

    def __init__(self, folder: Path, fresh_python: Forks, truth: int = 25):
        self.folder, self.cache, self.fresh_python = folder, folder / "cache", fresh_python
        leave = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
        shutil.copytree(ROOT / "metazoo", folder / "metazoo", ignore=leave)
        self.csrc = folder / "csrc"
        self.csrc.mkdir()
        self.tell(truth)

    def tell(self, truth: int) -> None:
        (self.csrc / "module.cpp").write_text(f"#define TRUTH ({truth})\n{SMALL}")

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {
            key: value
            for key, value in os.environ.items()
            if key not in ("METAZOO_KERNELS", "CXX", "CUDA_FOR_TEST")
        }
        clean |= {"PYTHONPATH": str(self.folder), "METAZOO_CACHE": str(self.cache)} | environment
        return self.fresh_python.run(code, env=clean, cwd=self.folder)

    def load(self, **environment: str) -> dict:
        done = self.run(TRY, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def library(self) -> Path:
        (found,) = self.cache.rglob(f"_*{SUFFIX}")
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, fresh_python: Forks) -> Checkout:
    """A checkout whose kernels are built; never changed."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), fresh_python)
    found = checkout.load(METAZOO_KERNELS="emulated")
    assert found["loaded"], found
    return checkout


@pytest.fixture
def checkout(built: Checkout, tmp_path: Path, fresh_python: Forks) -> Checkout:
    """A checkout of one's own, with the kernels built."""
    copy = Checkout(tmp_path, fresh_python)
    shutil.copytree(built.cache, copy.cache)
    return copy


def says(found: dict, *words: str) -> None:
    """Check that there is one warning, that it says why and what to do, and that nothing is loaded."""
    assert not found["loaded"]
    assert found["covers"] == []
    (warning,) = found["warnings"]
    assert warning.startswith(
        "KernelWarning: PyTorch's own operations are used instead of metazoo's kernels: "
    )
    assert "METAZOO_KERNELS=off silences this" in warning
    for word in words:
        assert word in warning


pytestmark = pytest.mark.slow  # each takes a Python of its own


def test_off(built):
    found = built.load(METAZOO_KERNELS="off", NUMBERS="1")
    assert (found["mode"], found["loaded"], found["covers"], found["warnings"]) == (
        "off",
        False,
        [],
        [],
    )


def test_built_on_first_use_and_then_found(built):
    # With no compiler at hand: what is in the cache needs none.
    found = built.load(METAZOO_KERNELS="emulated", CXX="/bin/false")
    assert found["loaded"]
    assert found["warnings"] == []
    assert found["covers"] == ["cpu"]
    assert found["origin"] == "built on first use"
    assert Path(found["path"]) == built.library()
    assert found["info"]["torch"]


def test_an_unknown_mode_is_the_users_mistake(built):
    done = built.run("from metazoo.kernels.loading import mode; mode()", METAZOO_KERNELS="emulate")
    assert "the environment variable METAZOO_KERNELS is 'emulate'" in done.stderr
    assert "did you mean 'emulated'" in done.stderr


def test_a_torch_for_cpus_alone(built):
    if find_cuda():
        pytest.skip("this torch is for CUDA")
    says(built.load(NUMBERS="1"), "installed torch has no CUDA")


def find_cuda() -> str | None:
    import torch

    return torch.version.cuda


@pytest.mark.parametrize("cxx", ["/bin/false", "/nothing/g++"])
def test_no_compiler(checkout, cxx):
    shutil.rmtree(checkout.cache)
    says(
        checkout.load(METAZOO_KERNELS="emulated", CXX=cxx, NUMBERS="1"),
        f"CXX is '{cxx}'",
        "install g++",
    )


def test_a_cache_that_cannot_be_written(checkout):
    shutil.rmtree(checkout.cache)
    checkout.cache.touch()
    says(
        checkout.load(METAZOO_KERNELS="emulated", NUMBERS="1"),
        str(checkout.cache),
        "set METAZOO_CACHE",
    )


def test_sources_that_do_not_compile(checkout):
    with (checkout.csrc / "module.cpp").open("a") as file:
        file.write("int wrong() { return nothing_of_that_name; }\n")
    says(
        checkout.load(METAZOO_KERNELS="emulated", NUMBERS="1"), "nothing_of_that_name", "build.log"
    )


def test_a_damaged_library_is_built_again(checkout):
    library = checkout.library()
    os.truncate(library, library.stat().st_size // 2)
    found = checkout.load(METAZOO_KERNELS="emulated")
    assert found["loaded"]
    assert found["warnings"] == []
    # One that is whole and does not load: built by another compiler, say, for another C library.
    damage(library)
    found = checkout.load(METAZOO_KERNELS="emulated")
    assert found["loaded"]
    assert found["warnings"] == []
    damage(library)
    says(checkout.load(METAZOO_KERNELS="emulated", CXX="/bin/false", NUMBERS="1"), "CXX is")


def damage(library: Path) -> None:
    """Put a library that is whole, and cannot be loaded, in the place of another."""
    import hashlib

    foreign(library)
    library.with_name(f"{library.name}.sha256").write_text(
        hashlib.sha256(library.read_bytes()).hexdigest()
    )


def foreign(path: Path, build_id: str = "00") -> None:
    """Make a library that needs what no torch has."""
    code = "extern int of_another_torch; int* needed() { return &of_another_torch; }"
    command = [
        "g++",
        "-x",
        "c++",
        "-",
        "-shared",
        "-fPIC",
        f"-Wl,--build-id=0x{build_id}",
        "-o",
        str(path),
    ]
    subprocess.run(command, input=code, check=True, text=True)


def test_a_kernel_that_does_not_run_here_gives_way_to_pytorch(checkout):
    checkout.tell(-1)
    found = checkout.load(METAZOO_KERNELS="emulated", NUMBERS="1")
    says(found, "the kernels do not run on cpu: ", "no kernel image is available")
    checkout.tell(7)
    says(checkout.load(METAZOO_KERNELS="emulated", NUMBERS="1"), "wrong on cpu: 7.0 instead of 25")


def test_a_library_that_registers_nothing(checkout):
    source = checkout.csrc / "module.cpp"
    source.write_text(source.read_text().replace('m.impl("sqdist", TORCH_BOX(&sqdist));', ""))
    says(checkout.load(METAZOO_KERNELS="emulated", NUMBERS="1"), "has not registered its kernels")


def test_a_warning_that_is_an_error_leaves_things_settled(checkout):
    shutil.rmtree(checkout.cache)
    code = """
import warnings
warnings.simplefilter("error")
from metazoo.kernels.loading import KernelWarning, load, status
try:
    load()
except KernelWarning as warning:
    print("raised once")
print(load(), bool(status().problem))
"""
    done = checkout.run(code, METAZOO_KERNELS="auto", PATH="")
    assert done.stdout == "raised once\nFalse True\n", done.stderr


def test_threads_load_once(checkout):
    shutil.rmtree(checkout.cache)
    code = """
import threading
from metazoo.kernels import load
results = []
threads = [threading.Thread(target=lambda: results.append(load())) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print(results)
"""
    assert checkout.run(code, METAZOO_KERNELS="emulated").stdout == f"{[True] * 8}\n"


def test_covers_is_a_constant_to_the_compiler(built):
    code = """
import torch
import metazoo.kernels.compiling
from metazoo.kernels import covers
f = torch.compile(lambda x: x + 1 if covers(x.device.type) else x - 1, backend="eager", fullgraph=True)
print(f(torch.zeros(())).item())
"""
    assert built.run(code, METAZOO_KERNELS="auto").stdout == "-1.0\n"
    assert built.run(code, METAZOO_KERNELS="emulated").stdout == "1.0\n"


class TestCuda:
    """The CUDA library, which links and loads without a GPU, and without a torch for one."""

    @pytest.fixture(autouse=True)
    def toolkit(self):
        try:
            return find_toolkit("any")
        except KernelBuildError as error:
            pytest.skip(error.message)

    @pytest.fixture
    def ahead(self, checkout: Checkout) -> Path:
        """The library, built ahead of time."""
        path = checkout.folder / "metazoo" / "kernels" / f"_cuda{SUFFIX}"
        shutil.copy(
            build("cuda", csrc=checkout.csrc, folder=checkout.folder / "ahead", cuda="any"), path
        )
        return path

    def test_built_on_first_use(self, checkout):
        shutil.rmtree(checkout.cache)
        found = checkout.load(CUDA_FOR_TEST="any")
        assert (found["loaded"], found["origin"], found["covers"]) == (
            True,
            "built on first use",
            ["cuda"],
        )
        assert found["warnings"] == []

    def test_built_ahead_of_time(self, checkout, ahead):
        shutil.rmtree(checkout.cache)
        found = checkout.load(CXX="/bin/false")
        assert (found["loaded"], found["origin"], found["path"]) == (True, "prebuilt", str(ahead))
        assert not checkout.cache.exists()

    def test_a_checkout_that_has_moved_on_since(self, checkout, ahead):
        (checkout.csrc / "more.h").write_text("// new\n")
        assert checkout.load(CUDA_FOR_TEST="any")["origin"] == "built on first use"
        shutil.rmtree(checkout.cache)
        says(
            checkout.load(CUDA_FOR_TEST="any", CXX="/bin/false"),
            str(ahead),
            "from other sources",
            "CXX is",
        )

    def test_built_for_another_torch(self, checkout, ahead):
        foreign(ahead, digest_of(checkout.csrc))
        assert checkout.load(CUDA_FOR_TEST="any")["origin"] == "built on first use"
        shutil.rmtree(checkout.cache)
        says(
            checkout.load(CUDA_FOR_TEST="any", CXX="/bin/false"),
            str(ahead),
            "of_another_torch",
            "CXX is",
        )

    def test_built_for_another_python(self, checkout, ahead):
        other = ahead.with_name("_cuda.cpython-399-x86_64-linux-gnu.so")
        ahead.rename(other)
        says(
            checkout.load(CUDA_FOR_TEST="any", CXX="/bin/false"),
            f"{other.name} was built for another Python",
            "CXX is",
        )

    def test_a_toolkit_of_another_version(self, checkout):
        says(
            checkout.load(CUDA_FOR_TEST="5.0"),
            "torch is built for CUDA 5.0",
            "install the CUDA toolkit 5.x",
        )


def info(checkout: Checkout, *options: str, **environment: str) -> tuple[int, str, str]:
    code = f"import sys; from metazoo.cli import main; sys.exit(main(['info', *{options!r}]))"
    done = checkout.run(code, **environment)
    return done.returncode, done.stdout, done.stderr


def test_info_in_every_mode(checkout):
    def kernels(**environment: str) -> dict:
        status, out, err = info(checkout, "--json", **environment)
        assert status == 0, err
        assert err == ""
        return json.loads(out)["kernels"]

    import torch

    assert kernels(METAZOO_KERNELS="off")["mode"] == "off"
    if not torch.cuda.is_available():
        nothing = {"loaded": False, "path": "", "origin": "", "hint": "", "info": {}}
        assert kernels() == {"mode": "auto", "problem": "there is no CUDA device", **nothing}
        assert "kernels:        auto, not loaded: there is no CUDA device\n" in info(checkout)[1]
    emulated = kernels(METAZOO_KERNELS="emulated")
    assert emulated["loaded"]
    assert emulated["path"] == str(checkout.library())
    assert emulated["info"]["torch"] == torch.__version__
    _, out, _ = info(checkout, METAZOO_KERNELS="emulated")
    assert "kernels:        emulated, loaded: built on first use\n" in out
    assert f"kernels from:   {checkout.library()}\n" in out
    assert "kernels:        off, not loaded\n" in info(checkout, METAZOO_KERNELS="off")[1]


def test_info_says_why_not(checkout):
    shutil.rmtree(checkout.cache)
    status, out, err = info(checkout, METAZOO_KERNELS="emulated", CXX="/bin/false")
    assert status == 0
    assert "kernels:        emulated, not loaded: CXX is '/bin/false', which does not run\n" in out
    assert "kernels hint:   install g++" in out
    told = json.loads(info(checkout, "--json", METAZOO_KERNELS="emulated", CXX="/bin/false")[1])[
        "kernels"
    ]
    assert not told["loaded"]
    assert told["problem"]
    assert told["hint"]
    status, out, err = info(checkout, METAZOO_KERNELS="emulate")
    assert (status, out) == (2, "")
    assert err.startswith(
        "error: the environment variable METAZOO_KERNELS is 'emulate'\nhint: did you mean 'emulated'?"
    )
