"""Prove a checkout on a machine with a GPU, offline and in one command: `make gpu-test`, or

    python -m benchmarks.gpu [--minutes 9] [--parts tests,memcheck,...] [--out FILE]

It needs a Python from 3.10 on with torch for CUDA, metazoo's dependencies, pip, pytest and nvcc;
metazoo need not be installed. It installs the checkout below build/gpu, builds the kernels, and runs
the tests marked gpu beside compute-sanitizer over tests of the operators; then the benchmarks, one
by one. Each part is a process with a share of the time that is left, and cannot harm the others. One
file holds all results. It is written after every part. A second call with the same sources and
device keeps the parts that it does not run. Exits with 1 if a part fails. `--device cpu --quick` is
a rehearsal without a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "gpu"
CHECKS = ("tests", "memcheck", "racecheck")  # nothing is timed, so they run side by side
BENCHMARKS = ("kernels", "maml_step", "protonet_step", "evaluation")
PARTS = (*CHECKS, *BENCHMARKS)
# The most that a part may take of the time that is left when it begins.
SHARE = {"build": 0.5, **dict.fromkeys(CHECKS, 0.4), "kernels": 0.4, "maml_step": 0.5}
NEEDED = (
    "torch numpy pluggy click rich safetensors PIL matplotlib tensorboard setuptools pip pytest"
)
# The tests of the operators' answers, in all dtypes, layouts and odd sizes.
OPERATORS = "distances_and or layouts or nll or steps_of or steps_from"
TAIL = 4000
LOAD = """
import dataclasses, json, sys, torch
from metazoo import ops
from metazoo.kernels.loading import status
x = torch.ones(1, 2, 3, device=sys.argv[1])
assert ops.pairwise_sqdist(x, x).abs().max() == 0
print(json.dumps(dataclasses.asdict(status()), default=str))
assert sys.argv[1] == "cpu" or status().loaded
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="quick runs of the benchmarks")
    parser.add_argument("--minutes", type=float, default=9, help="for everything  [default: 9]")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="the file  [default: build/gpu-DEVICE.json]")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part named {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    return options


def device_name(device: str) -> str:
    """Return the name of the device; exit if it, or what everything needs, is missing."""
    absent = [name for name in NEEDED.split() if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(f"error: {sys.executable} lacks {', '.join(absent)}\nhint: set PYTHON to another")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"error: there is no CUDA device for torch {torch.__version__}\n"
            "hint: `--device cpu --quick` rehearses everything without one"
        )
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit."""
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    folders = [*(f"{home}/bin" for home in homes), None, "/usr/local/cuda/bin"]
    return next((path for folder in folders if (path := shutil.which(name, path=folder))), None)


def sources() -> str:
    """Return a digest of all that the figures depend on; a copied checkout need not have a commit."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in ("csrc", "metazoo") for p in (ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".h", ".cuh", ".cu", ".cpp"):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run(command: list[str], seconds: float, **environment: str) -> dict[str, Any]:
    """Run a command, print its output and return how it ended; after the time, kill its group."""
    path = os.pathsep.join([str(WORK / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = {"METAZOO_CACHE": str(WORK / "cache"), "PYTHONPATH": path}
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **fixed, **environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            outcome = "failed" if process.wait(max(seconds, 1)) else "passed"
        except subprocess.TimeoutExpired:
            outcome = "timed out"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    print(text, end="", flush=True)
    seconds = round(time.monotonic() - began, 1)
    return {"outcome": outcome, "seconds": seconds, "tail": text[-TAIL:]}


class Session:
    """One call: the time it has, and the record that it leaves."""

    def __init__(self, options: argparse.Namespace, name: str):
        self.options, self.cuda = options, options.device == "cuda"
        self.end = time.monotonic() + 60 * options.minutes
        self.lock = threading.Lock()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.out: Path = options.out or ROOT / "build" / f"gpu-{slug}.json"
        self.record: dict[str, Any] = {"device": name, "sources": sources(), "finished": False}
        self.record["tools"] = {name: bool(tool(name)) for name in ("nvcc", "compute-sanitizer")}
        self.record["parts"] = self.earlier()

    def earlier(self) -> dict[str, Any]:
        """Return the parts of an earlier call, of the same sources and device, that are not run again."""
        try:
            before = json.loads(self.out.read_text(encoding="utf-8"))
            same = all(before[key] == self.record[key] for key in ("device", "sources"))
            parts = before["parts"].items()
            return {name: part for name, part in parts if same and name not in self.options.parts}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Record a part and write the file."""
        with self.lock:
            self.record["parts"][name] = result
            self.write()
        return result

    def write(self) -> None:
        """Write the file, completely or not at all."""
        from .harness import write  # imports torch, which may be absent

        write(self.out, self.record)

    def part(self, name: str, command: list[str], **environment: str) -> dict[str, Any]:
        """Run a part in its share of the time that is left."""
        left = self.end - time.monotonic()
        print(f"\n== {name} ({left:.0f} s left)", flush=True)
        result: dict[str, Any] = {"outcome": "not run", "tail": "the time was over"}
        if left > 5:
            result = run(command, left * SHARE.get(name, 1.0), **environment)
        print(f"== {name}: {result['outcome']}", flush=True)
        return self.keep(name, result)

    def install(self) -> bool:
        """Install the checkout, so that its entry points are found; its own files are imported."""
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        words = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
        words += ["--no-build-isolation", "--target", str(WORK / "site"), "--editable", "."]
        result = self.part("install", [sys.executable, "-m", "pip", "install", *words])
        return result["outcome"] == "passed"

    def check(self, name: str) -> None:
        """Run the tests marked gpu, or those of the operators under a tool of compute-sanitizer."""
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE"]
        # Plugins for pytest that other packages brought must not change the tests.
        off = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if name == "tests":
            words = ["-m", "gpu", "tests"] if self.cuda else ["tests/test_errors.py"]
            self.part(name, [*pytest, *words], **off)
        elif self.cuda and not tool("compute-sanitizer"):
            self.keep(name, {"outcome": "not run", "tail": "there is no compute-sanitizer"})
        else:
            program = [str(tool("compute-sanitizer")), "--tool", name, "--error-exitcode", "99"]
            words = ["tests/kernels/test_kernels.py", "-k", OPERATORS if self.cuda else "layouts"]
            # One allocation for each tensor: a step beyond its end would otherwise go unseen.
            off |= {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            off |= {"METAZOO_TEST_DEVICE": self.options.device}
            self.part(name, [*(program if self.cuda else []), *pytest, *words], **off)

    def benchmark(self, name: str) -> None:
        """Run a benchmark and record what it has found, even if its time was not enough."""
        found = WORK / f"{name}.json"
        words = [name, "--device", self.options.device, "--json", str(found)]
        words += ["--quick"] * self.options.quick
        result = self.part(name, [sys.executable, "-m", "benchmarks", *words])
        if found.exists():
            self.keep(name, {**result, "results": json.loads(found.read_text())})

    def attempt(self, name: str) -> None:
        """Run a part; if this script fails at it, record that and go on."""
        try:
            self.check(name) if name in CHECKS else self.benchmark(name)
        except Exception as error:
            self.keep(name, {"outcome": "failed", "tail": f"{type(error).__name__}: {error}"})

    def __call__(self) -> int:
        if self.install():
            self.part("build", [sys.executable, "-c", LOAD, self.options.device])
            wanted = [part for part in PARTS if part in self.options.parts]
            with ThreadPoolExecutor(len(CHECKS)) as pool:
                list(pool.map(self.attempt, [part for part in wanted if part in CHECKS]))
            for name in wanted:
                if name in BENCHMARKS:
                    self.attempt(name)
        self.record["finished"] = True
        self.write()
        outcomes = {name: part["outcome"] for name, part in self.record["parts"].items()}
        print("\n" + "\n".join(f"{name:14} {outcome}" for name, outcome in outcomes.items()))
        print(f"written to {self.out}")
        return 1 if {"failed", "timed out"} & set(outcomes.values()) else 0


if __name__ == "__main__":
    options = arguments()
    if options.device == "cuda":
        os.environ["METAZOO_KERNELS"] = "auto"
    sys.exit(Session(options, device_name(options.device))())
