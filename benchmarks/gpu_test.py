"""Proves a checkout on a machine with a GPU, offline and in one command: `make gpu-test`, or

    benchmarks/gpu.sh [--minutes 9] [--parts tests,memcheck,racecheck,goals,benchmarks] [--out FILE]

Needs Python 3.10 or later with torch for CUDA, what metazoo depends on, pytest and nvcc; metazoo itself need not be
installed. In an environment of its own under build/gpu-test it installs the checkout, builds and loads the kernels, runs the
tests marked gpu and, beside them, compute-sanitizer over benchmarks/sanitize.py; then it measures the goals (benchmarks/goals)
and, in the time that is left, the benchmarks. All goes into one file, benchmarks/results/gpu-DEVICE-DATE.json, written anew
after every part (and while the benchmarks run), so that being stopped loses only what was running. Where that file is there
already, of the same sources, parts that are not run again are kept: a machine lent for minutes can be used twice. Ends with
status 1 where a part fails. `--device cpu --quick` is a rehearsal.
"""

from __future__ import annotations

import argparse
import datetime
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .kernels.report import ROOT, command, commit, sources, write
from .needs import Failure, device_name, missing, tool

# What takes no times runs side by side; what does, alone and after it.
CHECKS, MEASURES = ("tests", "memcheck", "racecheck"), ("goals", "benchmarks")
PARTS = (*CHECKS, *MEASURES)
WORK = ROOT / "build" / "gpu-test"
# Of the time that is left when a part begins, at most so much is its own.
SHARES = {
    "install": 1.0,
    "kernels": 0.5,
    "tests": 0.4,
    "memcheck": 0.4,
    "racecheck": 0.4,
    "goals": 0.6,
}
TAIL = 4000
LOAD_KERNELS = """
import json, sys, torch
from benchmarks.kernels.__main__ import kernels
from metazoo import ops
x = torch.ones(1, 2, 3, device=sys.argv[1])
assert ops.pairwise_sqdist(x, x).abs().max() == 0
print(json.dumps(kernels()))
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal"
    )
    parser.add_argument("--quick", action="store_true", help="small benchmarks")
    parser.add_argument("--minutes", type=float, default=9, help="for everything  [default: 9]")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--out", type=Path, help="the JSON file  [default: benchmarks/results/gpu-DEVICE-DATE.json]"
    )
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def run(command: list[str], seconds: float, **environment: str) -> dict[str, Any]:
    """Run a command, pass on what it says, and return how it ended; kill it and what it started when the time is over."""
    began = time.monotonic()
    said: list[str] = []
    # What is proven is a fresh build; METAZOO_KERNELS=emulated or off is for rehearsals.
    environment = {"METAZOO_CACHE": str(WORK / "cache"), **environment}
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
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
    outcome = outcome or ("passed" if process.returncode == 0 else "failed")
    result = {
        "outcome": outcome,
        "seconds": round(time.monotonic() - began, 1),
        "status": process.returncode,
    }
    if outcome != "passed":
        result["tail"] = "".join(said)[-TAIL:]
    return {**result, "said": "".join(said)}


class Session:
    """The record of one call, and the parts of it."""

    def __init__(self, options: argparse.Namespace, name: str):
        self.options = options
        self.lock = threading.Lock()
        self.end = time.monotonic() + 60 * options.minutes
        today = datetime.date.today().isoformat()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.rehearsal = options.device == "cpu"
        results = WORK.parent / "rehearsal" if self.rehearsal else ROOT / "benchmarks" / "results"
        self.out: Path = options.out or results / f"gpu-{slug}-{today}.json"
        self.python = str(WORK / "venv" / "bin" / "python")
        self.record: dict[str, Any] = {
            "format": 1,
            "command": command("benchmarks.gpu_test"),
            "date": today,
            "device": name,
            "rehearsal": self.rehearsal,
            "commit": commit(),
            "sources": sources(),
            "missing": missing(),
            "finished": False,
            "parts": self.earlier(name),
        }

    def earlier(self, name: str) -> dict[str, Any]:
        """Return the parts of an earlier call, of the same sources and device, that this one does not run."""
        try:
            before = json.loads(self.out.read_text(encoding="utf-8"))
            same = before["device"] == name and before["sources"] == sources()
            return {
                part: before["parts"][part]
                for part in before["parts"]
                if same and part not in self.options.parts
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def part(self, name: str, command: list[str], **environment: str) -> dict[str, Any]:
        """Run a part with its share of what is left, and record how it ended."""
        left = self.end - time.monotonic()
        print(f"\n== {name} ({left:.0f} s left)", flush=True)
        if left < 5:
            return self.keep(name, {"outcome": "not run", "reason": "the time was over"})
        return self.keep(name, run(command, left * SHARES[name], **environment))

    def keep(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Record a part and write the file."""
        with self.lock:
            self.record["parts"][name] = {
                key: value for key, value in result.items() if key != "said"
            }
            write(self.out, self.record)
        print(f"== {name}: {result['outcome']}", result.get("reason", ""), flush=True)
        return result

    def install(self) -> bool:
        """Make an environment that sees this Python's packages, with the checkout in it."""
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        # This Python's pip serves, where it has one: ensurepip is a package of its own on some systems.
        pip = ["--without-pip"] if importlib.util.find_spec("pip") else []
        made = run(
            [sys.executable, "-m", "venv", "--system-site-packages", *pip, str(WORK / "venv")], 120
        )
        if made["outcome"] != "passed":
            self.keep("install", made)
            return False
        if sys.prefix != sys.base_prefix:
            # An environment made in another sees the packages of the Python beneath both, not the other's.
            site = next((WORK / "venv").glob("lib/python*/site-packages"))
            folders = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
            lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
            (site / "beneath.pth").write_text("".join(lines), encoding="utf-8")
        command = [
            self.python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-index",
            "--no-deps",
        ]
        return (
            self.part("install", [*command, "--no-build-isolation", "-e", "."])["outcome"]
            == "passed"
        )

    def kernels(self) -> None:
        """Build and load the kernels, and say what was loaded."""
        result = self.part("kernels", [self.python, "-c", LOAD_KERNELS, self.options.device])
        if result["outcome"] != "passed":
            return
        status = json.loads(result["said"].strip().splitlines()[-1])
        result["kernels"] = status
        if self.options.device == "cuda" and not (status and status["loaded"]):
            result.update(
                outcome="failed", reason=status["problem"] if status else "there are none"
            )
        self.keep("kernels", result)

    def tests(self) -> None:
        """Run the tests that need a GPU; without one, a few others beside them."""
        report = WORK / "tests.xml"
        chosen = (
            ["-m", "gpu", "tests"]
            if self.options.device == "cuda"
            else ["tests/test_errors.py", "tests/test_gpu.py"]
        )
        pytest = [
            self.python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *chosen,
        ]
        # Other packages' plugins for pytest are no business of these tests.
        result = self.part("tests", pytest, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        if report.exists():
            cases = list(ElementTree.parse(report).getroot().iter("testcase"))
            outcomes = [
                next(
                    (child.tag for child in case if child.tag in ("failure", "error", "skipped")),
                    "",
                )
                for case in cases
            ]
            result["passed"] = outcomes.count("")
            result["skipped"] = outcomes.count("skipped")
            result["failed"] = [
                f"{case.get('classname')}::{case.get('name')}"
                for case, how in zip(cases, outcomes)
                if how in ("failure", "error")
            ]
            if result["outcome"] == "passed" and not result["passed"]:
                result.update(outcome="failed", reason="no test ran")
            self.keep("tests", result)

    def goals(self) -> None:
        """Measure the goals, and keep what was found of them where the time was over."""
        found = WORK / "goals.json"
        command = [
            self.python,
            "-m",
            "benchmarks.goals",
            "--device",
            self.options.device,
            "--out",
            str(found),
        ]
        result = self.part("goals", [*command, *(["--quick"] if self.options.quick else [])])
        if found.exists():
            result["results"] = json.loads(found.read_text(encoding="utf-8"))
            self.keep("goals", result)

    def sanitizer(self, name: str) -> None:
        """Run every kernel under a tool of compute-sanitizer; without a GPU, without it."""
        command = [self.python, "-m", "benchmarks.sanitize", "--device", self.options.device]
        if self.options.device == "cuda":
            sanitizer = tool("compute-sanitizer")
            if sanitizer is None:
                self.keep(
                    name,
                    {
                        "outcome": "not run",
                        "reason": "compute-sanitizer is neither in CUDA_HOME/bin nor on the PATH",
                    },
                )
                return
            command = [sanitizer, "--tool", name, "--error-exitcode", "99", *command]
        # An allocation for every tensor: in the allocator's large blocks a step beyond the end of one would go unseen.
        result = self.part(name, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        result["checked"] = re.findall(
            r"^\w+: \d+ answers checked, \d+ wrong$", result.get("said", ""), re.M
        )
        result["summary"] = re.findall(
            r"^=+ (?:ERROR|RACECHECK) SUMMARY: .*$", result.get("said", ""), re.M
        )
        if "Device not supported" in result.get("said", ""):
            result.update(
                outcome="not run",
                reason="compute-sanitizer does not support this device or this kind of container",
            )
        if self.rehearsal and result["outcome"] == "passed":
            result.update(outcome="rehearsed", reason="without compute-sanitizer")
        self.keep(name, result)

    def benchmarks(self) -> None:
        """Run the benchmarks in the time that is left, and copy what they have found so far into the record as they go."""
        left = self.end - time.monotonic()
        print(f"\n== benchmarks ({left:.0f} s left)", flush=True)
        if left < 20:
            self.keep("benchmarks", {"outcome": "not run", "reason": "the time was over"})
            return
        found = WORK / "benchmarks.json"
        command = [
            self.python,
            "-m",
            "benchmarks.kernels",
            "--device",
            self.options.device,
            "--out",
            str(found),
        ]
        command += [
            "--minutes",
            f"{(left - 15) / 60:.2f}",
            *(["--quick"] if self.options.quick else []),
        ]
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(5):
                if found.exists():
                    self.record["parts"]["benchmarks"] = {
                        "outcome": "running",
                        "results": json.loads(found.read_text()),
                    }
                    write(self.out, self.record)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            # A part that has begun may end a little late: its figures are what all this is for.
            result = run(command, left + 45)
        finally:
            stop.set()
            follower.join()
        if found.exists():
            result["results"] = json.loads(found.read_text(encoding="utf-8"))
        self.keep("benchmarks", result)

    def take(self, part: str) -> None:
        """Run a part, whatever its kind."""
        if part in ("memcheck", "racecheck"):
            self.sanitizer(part)
        else:
            getattr(self, part)()

    def __call__(self) -> int:
        if self.record["missing"]:
            print(f"missing here: {', '.join(self.record['missing'])}", flush=True)
        if self.install():
            self.kernels()
            with ThreadPoolExecutor(len(CHECKS)) as pool:
                checks = [
                    pool.submit(self.take, part) for part in CHECKS if part in self.options.parts
                ]
            for check in checks:
                check.result()
            for part in MEASURES:
                if part in self.options.parts:
                    self.take(part)
        outcomes = {name: part["outcome"] for name, part in self.record["parts"].items()}
        self.record["finished"] = True
        write(self.out, self.record)
        print(
            "\n"
            + "\n".join(f"{name:12} {outcome}" for name, outcome in outcomes.items())
            + f"\nwritten to {self.out}"
        )
        return 1 if any(outcome in ("failed", "timed out") for outcome in outcomes.values()) else 0


def main() -> int:
    options = arguments()
    if options.device == "cuda":
        os.environ["METAZOO_KERNELS"] = "auto"
    try:
        name = device_name(options.device)
        if "tests" in options.parts and importlib.util.find_spec("pytest") is None:
            raise Failure(
                "there is no pytest for the tests",
                "install it, or --parts goals,memcheck,racecheck,benchmarks",
            )
        return Session(options, name)()
    except Failure as failure:
        print(f"error: {failure.message}\nhint: {failure.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
