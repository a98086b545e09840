"""The kernels' own source on the CPU: it passes the tests of the operators, and the emulator sees what is wrong with a kernel.

A mistake is made in a copy of csrc/, what depends on it is compiled again, and the operators must then fail against plain
PyTorch. What an emulator cannot see (races within a warp, the hardware's own limits) is for compute-sanitizer on a GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import Forks, forks
from once import once

from metazoo.errors import MetazooError
from metazoo.kernels.build import _script, build
from metazoo.kernels.toolchain import find_ninja

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TESTS = {
    "kernels": ["kernels/test_kernels"],
    "algorithms": [
        "kernels/test_ops",
        "algorithms/test_protonet",
        "algorithms/test_matching",
        "algorithms/test_maml",
        "algorithms/test_baseline",
    ],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that holds the emulated library."""
    try:
        return once(
            tmp_path_factory,
            "emulated",
            lambda folder: build("emulated", folder=folder / "kernels"),
        )
    except MetazooError as error:
        if shutil.which("g++") is None:
            pytest.skip(f"the emulator cannot be built here: {error.message}")
        raise


@pytest.mark.parametrize("group", TESTS)
def test_the_operators_pass_their_tests_as_kernels(group: str, cache: Path) -> None:
    environment = {**os.environ, "METAZOO_KERNELS": "emulated", "METAZOO_CACHE": str(cache)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(str(ROOT / "tests" / f"{name}.py") for name in TESTS[group]),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


# ---- mistakes --------------------------------------------------------------------------------------------------------------

# Loads a library and holds its operators against plain PyTorch, as tests/test_kernels.py does.
CHECK = """
import importlib.util, sys
import torch
import test_kernels as tests
spec = importlib.util.spec_from_file_location("_emulated", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert torch._C._dispatch_has_kernel_for_dispatch_key("metazoo::sqdist", "CPU")
tests.test_steps_of_gradients_in_pieces("TP", True, torch.float32)
tests.test_memory_layouts("of odd rows", 132)
before = module.launches()
x, y = tests.randn(2, 15, 64), tests.randn(2, 5, 64)
torch.ops.metazoo.sqdist_backward(torch.ops.metazoo.sqdist(x, y), x, y)
assert module.launches() - before == 2, "distances and their gradient are a launch each"
nll, prob = torch.ops.metazoo.prototypical_nll(x, y, torch.zeros(2, 15, dtype=torch.int64))
torch.ops.metazoo.prototypical_nll_backward(nll, prob, x, y, torch.zeros(2, 15, dtype=torch.int64))
assert module.launches() - before == 4, "the head and its gradient are a launch each"
torch.ops.metazoo.sgd_update(y.flatten(1), [y[:, :2], y[:, 2:]], None, None, None, 0.1, 0.0, 0.0)
assert module.launches() - before == 5, "a step with its gather is one launch"
for shape in [*tests.SHAPES, (1, 8200, 9, 2)]:  # the last: so many rows that a warp takes four at a time
    tests.test_distances_and_their_gradient(shape, torch.float64)
    if shape[2]:
        tests.test_nll_and_its_gradient(shape, torch.float64)
"""


@dataclass(frozen=True)
class Mistake:
    """What is changed into what, where; the source that is compiled again where that is a header."""

    file: str
    old: str
    new: str


MISTAKES = {
    "a chunk is overwritten while it is read": Mistake(
        "distance.cuh",
        "    __syncthreads();  // all threads are done with the previous chunk\n",
        "",
    ),
    "a chunk is read before it is there": Mistake(
        "distance.cuh",
        "    __syncthreads();\n    for (int d = lane * V",
        "    for (int d = lane * V",
    ),
    "weights are overwritten while they are read": Mistake(
        "distance.cuh",
        "      __syncthreads();  // all threads are done with the previous weights\n",
        "",
    ),
    "weights are read before they are there": Mistake(
        "distance.cuh", "      __syncthreads();\n      if (active)", "      if (active)"
    ),
    "half a reduction": Mistake(
        "distance.cuh", "else if constexpr (STEP > 0)", "else if constexpr (STEP > 2)"
    ),
    "the halves of a reduction change places": Mistake(
        "distance.cuh", "upper ? values[i] :", "!upper ? values[i] :"
    ),
    "a row too many": Mistake("distance.cuh", "x[row + r < x.count ?", "x[row + r <= x.count ?"),
    "the next point's index": Mistake(
        "distance.cuh", "load<T, V>(y[point + p] + start + d", "load<T, V>(y[p] + start + d"
    ),
    "the first task for all": Mistake(
        "distance.cu",
        "const int64_t task = job / point_tiles / row_tiles;",
        "const int64_t task = 0;",
    ),
    "threads leave before a barrier": Mistake(
        "distance.cu", "A sums[SUMS] = {};", "A sums[SUMS] = {};\n    if (row >= x.rows) continue;"
    ),
    "a maximum that moves without its sum": Mistake(
        "prototypical.cu", "mass * exponential(peak - base)", "mass"
    ),
    "a lane leaves before a shuffle": Mistake(
        "sgd.cu",
        "    A sum = 0;\n#pragma",
        "    A sum = 0;\n    if (threadIdx.x == 31) return;\n#pragma",
    ),
    "sums are read before they are there": Mistake(
        "sgd.cu", "    __syncthreads();\n    if (threadIdx.x == 0)", "    if (threadIdx.x == 0)"
    ),
    "a tensor of the list too early": Mistake(
        "sgd.cu", "if (pieces.block[middle] <= block)", "if (pieces.block[middle] < block)"
    ),
    "a load that is not aligned": Mistake("distance.cuh", "points.row_stride % wide ||", ""),
    "two launches": Mistake(
        "distance.cu",
        "  MZ_LAUNCH(kernel, grid(jobs), THREADS, place, x, y, static_cast<T*>(out), shape);",
        "  for (int i = 0; i < 2; ++i) MZ_LAUNCH(kernel, grid(jobs), THREADS, place, x, y, static_cast<T*>(out), shape);",
    ),
}


# Optimised less than it is used, and for the two types that CHECK uses: here compiling takes the time.
FLAGS = ["-O0", "-g0", "-fsanitize=address"]
ALL_TYPES = "    case 2: return work(Half{});\n    default: return work(BFloat16{});\n"
TWO_TYPES = "    default: throw type;\n"


def replace(path: Path, old: str, new: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(old) >= 1, "the source has changed; this must be changed elsewhere"
    path.write_text(source.replace(old, new), encoding="utf-8")


def compiled(folder: Path) -> Path:
    """Compile what changed in a folder that `built` made, and return the library."""
    done = subprocess.run([find_ninja()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return next(folder.glob("_emulated*.so"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sources and objects whose copies can be compiled further."""

    def make(folder: Path) -> None:
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        replace(folder / "csrc" / "portable.h", ALL_TYPES, TWO_TYPES)
        name = f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
        script = _script("emulated", folder / "csrc", name, "", "", False, FLAGS)
        relative = script.replace(str(folder / "csrc"), "csrc")
        (folder / "build.ninja").write_text(relative, encoding="utf-8")
        compiled(folder)

    return once(tmp_path_factory, "mistakes", make)


@pytest.fixture(scope="module")
def checker() -> Iterator[Forks]:
    # Python itself is not instrumented: the sanitizer has to be there before it.
    command = ["g++", "-print-file-name=libasan.so"]
    runtime = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    with forks(
        ("torch", "test_kernels"),
        path=[ROOT / "tests" / "kernels"],
        LD_PRELOAD=runtime,
        ASAN_OPTIONS="detect_leaks=0",
    ) as server:
        yield server


def test_what_is_right_passes_the_check(built: Path, checker: Forks) -> None:
    done = checker.run(CHECK, compiled(built))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_the_emulator_sees_a_mistake(
    name: str, built: Path, checker: Forks, tmp_path: Path
) -> None:
    wrong, folder = MISTAKES[name], tmp_path / "wrong"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("_emulated*"))
    replace(folder / "csrc" / wrong.file, wrong.old, wrong.new)
    done = checker.run(CHECK, compiled(folder))
    assert done.returncode != 0
    signs = (
        "AssertionError",
        "a barrier that not all threads reach",
        "not aligned",
        "AddressSanitizer",
    )
    assert any(sign in done.stderr for sign in signs), done.stderr
