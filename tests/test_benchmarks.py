"""The benchmarks run where there is no GPU, too, and what they write is whole: figures wait for a GPU, scripts do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = {"rates", "distances", "head", "evaluation", "inner_loop", "maml"}


def run(module: str, *options: Any, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, options)]
    return subprocess.run(command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True)


def check(record: dict[str, Any]) -> None:
    """Check the record of a quick run on the CPU."""
    assert record["finished"]
    assert record["problems"] == []
    assert record["not_run"] == []
    assert set(record["sections"]) == SECTIONS
    assert record["kernels"]["mode"] == "auto"
    assert 0.1 < record["rates"]["copy_gb_s"] < 1e4
    assert 0.1 < record["rates"]["fp32_gflop_s"] < 1e6
    for section, rows in record["sections"].items():
        for row in rows:
            if "skipped" not in row:
                assert 0 < row["low"] <= row["us"] <= row["high"], (section, row)
    distances = {(row["mode"], row["Q"], row["way"]): row for row in record["sections"]["distances"]}
    assert "not implemented" in distances["double", 15, "cdist"]["skipped"]
    assert distances["forward", 15, "broadcast"]["ops"] == 3
    assert distances["forward", 75, "ours"]["error_close"] < 1e-4 < distances["forward", 75, "norms + bmm"]["error_close"]
    assert {row["way"] for row in record["sections"]["inner_loop"]} >= {
        "per tensor",
        "foreach",
        "flat, sub",
        "ours",
        "ours, in place",
    }
    accuracies = [row["result"] for row in record["sections"]["evaluation"] if row["what"] == "accuracy" and row["D"] == 64]
    assert min(accuracies) > 0.25
    assert max(accuracies) - min(accuracies) < 0.01
    auto, off = record["sections"]["maml"]
    assert (auto["way"], off["way"]) == ("auto", "off")
    assert auto["error"] < 1e-4


@pytest.mark.slow
def test_what_the_time_does_not_reach_is_recorded(tmp_path: Path) -> None:
    done = run("benchmarks.kernels", "--device", "cpu", "--quick", "--minutes", 1e-6, "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert "maml: second-order steps" in record["not_run"]
    assert set(record["sections"]) == {"rates"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "emulated"])
def test_the_kernels_answer_right_on_odd_shapes(mode: str) -> None:
    done = run("benchmarks.sanitize", "--device", "cpu", METAZOO_KERNELS=mode)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 wrong") == 3
    assert ("plain PyTorch" in done.stdout) == (mode == "auto")


@pytest.mark.slow
def test_gpu_test_is_rehearsed_offline_on_a_bare_checkout(tmp_path: Path) -> None:
    leave = shutil.ignore_patterns(".*", "build", "dist", "runs", "docs", "plugins", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=leave)
    out = tmp_path / "out.json"
    # A proxy that is none: whoever asks the network for something fails.
    options = {"root": tmp_path / "checkout", "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    first = run("benchmarks.gpu_test", "--device", "cpu", "--quick", "--parts", "benchmarks", "--out", out, **options)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "distances: microseconds a call" in first.stdout
    assert "how many times as fast as stock PyTorch" in first.stdout
    done = run("benchmarks.gpu_test", "--device", "cpu", "--parts", "tests,memcheck,racecheck", "--out", out, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["finished"]
    parts = record["parts"]
    assert {name for name, part in parts.items() if part["outcome"] == "rehearsed"} == {"memcheck", "racecheck"}
    assert {part["outcome"] for part in parts.values()} == {"passed", "rehearsed"}
    assert record["rehearsal"]
    assert set(parts) == {"install", "kernels", "tests", "memcheck", "racecheck", "benchmarks"}
    assert parts["tests"]["passed"] > 0
    assert parts["tests"]["failed"] == []
    assert len(parts["memcheck"]["checked"]) == 3
    check(parts["benchmarks"]["results"])
    assert str(tmp_path) not in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["benchmarks.gpu_test", "benchmarks.kernels", "benchmarks.sanitize"])
def test_says_that_there_is_no_gpu(module: str) -> None:
    done = run(module, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no CUDA device")
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_packed_data_are_compared_with_memory(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run("benchmarks.packed", "--out", tmp_path / "data", "--images", 2000, "--tasks", 20, "--json", out)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["megabytes"] == 2000 * 784 / 1e6
    assert record["ratio"] > 0.01
    assert str(tmp_path) not in out.read_text()
