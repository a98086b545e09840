"""Prove a checkout on a machine with a GPU, offline and in one command: `make gpu-test`, or

    benchmarks/gpu.sh [--minutes 9] [--parts tests,memcheck,racecheck,kernels,...] [--out FILE]

It needs a Python from 3.10 on with torch for CUDA, metazoo's dependencies, pytest and nvcc; metazoo
need not be installed. It installs the checkout into an environment under build/gpu, builds and loads
the kernels, runs the tests marked gpu and, at the same time, compute-sanitizer over
benchmarks/sanitize.py. Then it runs the benchmarks, one after the other. Each part is a process with
its own share of the time. All results go into one file, which is written after every part and while
a benchmark runs, so that a stop loses only what was running. If the file is there already, from the
same sources and device, the parts that are not run again stay in it. Exits with 1 if a part fails.
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
import sysconfig
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "gpu"
PYTHON = WORK / "venv" / "bin" / "python"
CHECKS = ("tests", "memcheck", "racecheck")  # they take no times, and run side by side
BENCHMARKS = ("kernels", "maml_step", "protonet_step", "evaluation")
PARTS = (*CHECKS, *BENCHMARKS)
# The most that a part may take of the time that is left when it begins.
SHARE = {"kernels built": 0.5, **dict.fromkeys(CHECKS, 0.4), "kernels": 0.4, "maml_step": 0.5}
NEEDED = (
    "numpy",
    "pluggy",
    "click",
    "rich",
    "safetensors",
    "PIL",
    "matplotlib",
    "tensorboard",
    "setuptools",
)
OPTIONAL = ("pytest", "ninja", "pybind11")
TAIL = 4000
LOAD = """
import dataclasses, json, sys, torch
from metazoo import ops
from metazoo.kernels.loading import status
x = torch.ones(1, 2, 3, device=sys.argv[1])
assert ops.pairwise_sqdist(x, x).abs().max() == 0
print(json.dumps(dataclasses.asdict(status()), default=str))
"""


class Failure(Exception):
    """This machine cannot be used: what is wrong, and a hint."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal"
    )
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
    """Return the name of the device, or raise Failure if it or a dependency is missing."""
    if absent := [name for name in ("torch", *NEEDED) if importlib.util.find_spec(name) is None]:
        raise Failure(
            f"{Path(sys.executable).name} lacks {', '.join(absent)}",
            "name another Python: PYTHON=...",
        )
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise Failure(
            f"there is no CUDA device for torch {torch.__version__}, built {built}",
            "`--device cpu --quick` rehearses everything without one",
        )
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit."""
    homes = [os.environ.get(key, "") for key in ("CUDA_HOME", "CUDA_PATH")]
    folders = [f"{home}/bin" for home in homes if home] + [None, "/usr/local/cuda/bin"]
    return next((path for folder in folders if (path := shutil.which(name, path=folder))), None)


def missing() -> list[str]:
    """Return what this machine lacks and could do without."""
    absent = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    return absent + [name for name in ("nvcc", "compute-sanitizer") if not tool(name)]


def sources() -> str:
    """Return a digest of all that the figures depend on; a copied checkout need not have a commit."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in ("csrc", "metazoo") for p in (ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".h", ".cuh", ".cu", ".cpp"):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run(command: list[str], seconds: float, **environment: str) -> dict[str, Any]:
    """Run a command, pass on its output and return how it ended; after the time, kill its group."""
    began, said = time.monotonic(), []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "METAZOO_CACHE": str(WORK / "cache"), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def listen() -> None:
        for line in process.stdout or ():
            said.append(line)
            print(line, end="", flush=True)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    outcome = ""
    try:
        process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        outcome = "timed out"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    listener.join(5)
    outcome = outcome or ("failed" if process.returncode else "passed")
    text = "".join(said)
    return {
        "outcome": outcome,
        "seconds": round(time.monotonic() - began, 1),
        "said": text,
        **({"tail": text[-TAIL:]} if outcome != "passed" else {}),
    }


class Session:
    """One call: the time it has, and the record that it leaves."""

    def __init__(self, options: argparse.Namespace, name: str):
        self.options, self.cuda = options, options.device == "cuda"
        self.end = time.monotonic() + 60 * options.minutes
        self.lock = threading.Lock()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.out: Path = options.out or ROOT / "build" / f"gpu-{slug}.json"
        self.record: dict[str, Any] = {"device": name, "sources": sources(), "missing": missing()}
        self.record |= {"finished": False, "parts": self.earlier()}

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
            self.record["parts"][name] = {key: v for key, v in result.items() if key != "said"}
            self.write()
        return result

    def write(self) -> None:
        """Write the file, completely or not at all."""
        text = json.dumps(self.record, indent=1).replace(str(ROOT), ".")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        unfinished.write_text(text.replace(str(Path.home()), "~") + "\n", encoding="utf-8")
        unfinished.replace(self.out)

    def part(self, name: str, command: list[str], **environment: str) -> dict[str, Any]:
        """Run a part in its share of the time that is left."""
        left = self.end - time.monotonic()
        print(f"\n== {name} ({left:.0f} s left)", flush=True)
        result: dict[str, Any] = {"outcome": "not run", "reason": "the time was over", "said": ""}
        if left > 5:
            result = run(command, left * SHARE.get(name, 1.0), **environment)
        print(f"== {name}: {result['outcome']}", flush=True)
        return self.keep(name, result)

    def install(self) -> bool:
        """Install the checkout into an environment that sees the packages of this Python."""
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        # Some systems have no ensurepip; the environment uses this Python's pip if there is one.
        words = [
            "--system-site-packages",
            *["--without-pip"] * bool(importlib.util.find_spec("pip")),
        ]
        made = self.part("venv", [sys.executable, "-m", "venv", *words, str(WORK / "venv")])
        if made["outcome"] != "passed":
            return False
        # If this Python is an environment itself, the new one sees only the Python below both.
        site = next((WORK / "venv").glob("lib/python*/site-packages"))
        folders = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
        (site / "below.pth").write_text("".join(lines), encoding="utf-8")
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        words = ["--no-index", "--no-deps", "--no-build-isolation", "-e", "."]
        return self.part("install", [*pip, *words])["outcome"] == "passed"

    def build(self) -> None:
        """Build and load the kernels."""
        result = self.part("kernels built", [str(PYTHON), "-c", LOAD, self.options.device])
        if result["outcome"] == "passed":
            result["kernels"] = json.loads(result["said"].strip().splitlines()[-1])
            if self.cuda and not result["kernels"]["loaded"]:
                result |= {"outcome": "failed", "reason": result["kernels"]["problem"]}
            self.keep("kernels built", result)

    def tests(self) -> None:
        """Run the tests marked gpu; in a rehearsal, a few others."""
        report = WORK / "tests.xml"
        chosen = ["-m", "gpu", "tests"] if self.cuda else ["tests/test_errors.py"]
        words = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *chosen]
        # Plugins for pytest that other packages brought must not change these tests.
        off = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        result = self.part("tests", [str(PYTHON), "-m", "pytest", *words], **off)
        if report.exists():
            bad = ("failure", "error", "skipped")
            cases = list(ElementTree.parse(report).iter("testcase"))
            ends = [next((c.tag for c in case if c.tag in bad), "passed") for case in cases]
            failed = [c.get("name") for c, end in zip(cases, ends) if end in ("failure", "error")]
            result |= {"counts": dict(Counter(ends)), "failed": failed}
            if result["outcome"] == "passed" and "passed" not in ends:
                result |= {"outcome": "failed", "reason": "no test ran"}
            self.keep("tests", result)

    def sanitizer(self, name: str) -> None:
        """Run every kernel under a tool of compute-sanitizer; in a rehearsal, without it."""
        command = [str(PYTHON), "-m", "benchmarks.sanitize", "--device", self.options.device]
        program = tool("compute-sanitizer")
        if self.cuda and program is None:
            self.keep(name, {"outcome": "not run", "reason": "there is no compute-sanitizer"})
            return
        if self.cuda:
            command = [str(program), "--tool", name, "--error-exitcode", "99", *command]
        result = self.part(name, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        said = result["said"]
        result["checked"] = re.findall(r"^\w+: \d+ answers checked, \d+ wrong$", said, re.M)
        result["summary"] = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: .*$", said, re.M)
        if "Device not supported" in said:
            result |= {
                "outcome": "not run",
                "reason": "compute-sanitizer does not support this device",
            }
        if not self.cuda and result["outcome"] == "passed":
            result["outcome"] = "rehearsed"
        self.keep(name, result)

    def benchmark(self, name: str) -> None:
        """Run a benchmark; copy what it has found into the record while it runs."""
        found, stop = WORK / f"{name}.json", threading.Event()

        def follow() -> None:
            while not stop.wait(5):
                if found.exists():
                    self.keep(
                        name, {"outcome": "running", "results": json.loads(found.read_text())}
                    )

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        words = [name, "--device", self.options.device, "--json", str(found)]
        words += ["--quick"] * self.options.quick
        try:
            result = self.part(name, [str(PYTHON), "-m", "benchmarks", *words])
        finally:
            stop.set()
            follower.join()
        if found.exists():
            self.keep(name, {**result, "results": json.loads(found.read_text())})

    def attempt(self, name: str) -> None:
        """Run a part; if this script fails at it, record that and go on."""
        try:
            if name == "tests":
                self.tests()
            elif name in CHECKS:
                self.sanitizer(name)
            else:
                self.benchmark(name)
        except Exception as error:
            self.keep(name, {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"})

    def __call__(self) -> int:
        if self.install():
            self.build()
            wanted = self.options.parts
            with ThreadPoolExecutor(len(CHECKS)) as pool:
                list(pool.map(self.attempt, [part for part in CHECKS if part in wanted]))
            for name in BENCHMARKS:
                if name in wanted:
                    self.attempt(name)
        self.record["finished"] = True
        outcomes = {name: part["outcome"] for name, part in self.record["parts"].items()}
        self.write()
        print("\n" + "\n".join(f"{name:14} {outcome}" for name, outcome in outcomes.items()))
        print(f"written to {self.out}")
        return 1 if {"failed", "timed out"} & set(outcomes.values()) else 0


def main() -> int:
    options = arguments()
    if options.device == "cuda":
        os.environ["METAZOO_KERNELS"] = "auto"
    try:
        name = device_name(options.device)
        if "tests" in options.parts and importlib.util.find_spec("pytest") is None:
            raise Failure(
                "there is no pytest for the tests", "install it, or leave tests out of --parts"
            )
        return Session(options, name)()
    except Failure as failure:
        print("error: {}\nhint: {}".format(*failure.args), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
