"""The benchmarks run where there is no GPU, too, and what they write is whole: figures wait for a GPU, scripts do not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SECTIONS = {"rates", "distances", "head", "evaluation", "inner_loop", "maml"}


def run(
    module: str, *options: Any, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, options)]
    return subprocess.run(
        command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True
    )


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
    distances = {
        (row["mode"], row["Q"], row["way"]): row for row in record["sections"]["distances"]
    }
    assert "not implemented" in distances["double", 15, "cdist"]["skipped"]
    assert distances["forward", 15, "broadcast"]["ops"] == 3
    assert (
        distances["forward", 75, "ours"]["error_close"]
        < 1e-4
        < distances["forward", 75, "norms + bmm"]["error_close"]
    )
    assert {row["way"] for row in record["sections"]["inner_loop"]} >= {
        "per tensor",
        "foreach",
        "flat, sub",
        "ours",
        "ours, in place",
    }
    accuracies = [
        row["result"]
        for row in record["sections"]["evaluation"]
        if row["what"] == "accuracy" and row["D"] == 64
    ]
    assert min(accuracies) > 0.25
    assert max(accuracies) - min(accuracies) < 0.01
    auto, off = record["sections"]["maml"]
    assert (auto["way"], off["way"]) == ("auto", "off")
    assert auto["error"] < 1e-4


def check_goals(record: dict[str, Any]) -> None:
    """Check the goals of a quick run on the CPU."""
    assert record["finished"]
    assert record["quick"]
    assert record["problems"] == []
    assert set(record["sections"]) == {"maml", "protonet", "cached"}
    for name, section in record["sections"].items():
        assert section["same"], name
        assert section["goals"], name
        rows = {row["way"]: row for row in section["rows"]}
        for row in rows.values():
            assert 0 < row["low"] <= row["us"] <= row["high"], (name, row)
        graphs = [row for row in section["captured"] if row["way"].endswith("CUDA graph")]
        assert {row["skipped"] for row in graphs} == (
            {"a CPU has no CUDA graphs"} if graphs else set()
        )
        for goal in section["goals"]:
            assert goal["reached"] == (goal["value"] <= goal["limit"]) or "share" in goal["goal"]
    maml, protonet = (
        {row["way"]: row for row in record["sections"][name]["rows"]}
        for name in ("maml", "protonet")
    )
    assert maml["ours"]["error"] < 0.01 < maml["functorch's example as it stands"]["error"]
    assert protonet["ours"]["error"] < 0.1
    shares = {goal["way"]: goal["value"] for goal in record["sections"]["protonet"]["goals"]}
    convolutions = min(
        protonet[f"convolutions alone, {order}"]["us"] for order in ("contiguous", "channels_last")
    )
    assert shares["ours"] == pytest.approx(convolutions / protonet["ours"]["us"], rel=0.01)


@pytest.mark.slow
def test_what_the_time_does_not_reach_is_recorded(tmp_path: Path) -> None:
    done = run(
        "benchmarks.kernels",
        "--device",
        "cpu",
        "--quick",
        "--minutes",
        1e-6,
        "--out",
        tmp_path / "out.json",
    )
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
    leave = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "docs", "plugins", "*.egg-info", "__pycache__", "*.so"
    )
    shutil.copytree(ROOT, tmp_path / "checkout", ignore=leave)
    out = tmp_path / "out.json"
    # A proxy that is none: whoever asks the network for something fails.
    options = {
        "root": tmp_path / "checkout",
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    first = run(
        "benchmarks.gpu_test",
        "--device",
        "cpu",
        "--quick",
        "--parts",
        "goals,benchmarks",
        "--out",
        out,
        **options,
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert "distances: microseconds a call" in first.stdout
    assert "how many times as fast as stock PyTorch" in first.stdout
    script = [
        str(tmp_path / "checkout" / "benchmarks" / "gpu.sh"),
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        **{k: v for k, v in options.items() if k != "root"},
    }
    script += ["--parts", "tests,memcheck,racecheck"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"written to {out}\n")
    record = json.loads(out.read_text())
    assert record["finished"]
    parts = record["parts"]
    assert {name for name, part in parts.items() if part["outcome"] == "rehearsed"} == {
        "memcheck",
        "racecheck",
    }
    assert {part["outcome"] for part in parts.values()} == {"passed", "rehearsed"}
    assert record["rehearsal"]
    assert set(parts) == {
        "install",
        "kernels",
        "tests",
        "goals",
        "memcheck",
        "racecheck",
        "benchmarks",
    }
    assert parts["tests"]["passed"] > 0
    assert parts["tests"]["failed"] == []
    assert len(parts["memcheck"]["checked"]) == 3
    check(parts["benchmarks"]["results"])
    check_goals(parts["goals"]["results"])
    assert str(tmp_path) not in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["benchmarks.gpu_test", "benchmarks.kernels", "benchmarks.sanitize"]
)
def test_says_that_there_is_no_gpu(module: str) -> None:
    done = run(module, "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no CUDA device")
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_caltech_goes_on_where_it_was_stopped_and_adds_rows(tmp_path: Path) -> None:
    for split, classes in (("train", 11), ("val", 5), ("test", 5)):
        for c in range(classes):
            folder = tmp_path / "images" / split / f"{split}{c}"
            folder.mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (32, 32), (20 * c, 255 - 20 * c, 10 * i)).save(folder / f"{i}.png")
    out = tmp_path / "out"
    options = [
        "--data",
        tmp_path / "images",
        "--out",
        out,
        "--images",
        500,
        "--episodes",
        4,
        "--only",
    ]
    first = run("benchmarks.caltech", *options, "baseline")
    assert first.returncode == 0, first.stderr
    again = run("benchmarks.caltech", *options, "baseline", "protonet")
    assert again.returncode == 0, again.stderr
    assert "training baseline" not in again.stderr
    record = json.loads((out / "caltech-conv4.json").read_text())
    rows = [(row["algorithm"], row["shots"], row["transductive"]) for row in record["rows"]]
    assert rows == [
        ("baseline", 1, False),
        ("baseline", 5, False),
        ("protonet", 1, False),
        ("protonet", 5, False),
    ]
    assert all(row["tasks"] == 4 and 0 <= row["mean"] <= 1 for row in record["rows"])
    assert "--images 500" in record["command"]
    # Two trainings at a time from one that is there, and both go on from its backbone.
    finished = run("benchmarks.caltech", *options, "protonet", "--from-baseline", 1800, "--jobs", 2)
    assert finished.returncode == 0, finished.stderr
    baseline = out / "baseline-conv4-500-float32" / "batches"
    for shots in (1, 5):
        recipe = json.loads(
            (out / "protonet-conv4-500+1800-float32" / f"{shots}-shot" / "config.json").read_text()
        )["recipe"]
        assert (recipe["init"], recipe["steps"]) == (str(baseline), 1800 // (10 * (shots + 10)))
    assert (
        json.loads((out / "caltech-conv4.json").read_text()) == record
    )  # what began from nothing stands by itself
    record = json.loads((out / "caltech-conv4-finished.json").read_text())
    assert [(row["algorithm"], row["shots"], row["steps"]) for row in record["rows"]] == [
        ("protonet", 1, 16),
        ("protonet", 5, 12),
    ]
    assert "--images 500 --precision float32 --from-baseline 1800" in record["command"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_packed_data_are_compared_with_memory(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run(
        "benchmarks.packed",
        "--out",
        tmp_path / "data",
        "--images",
        2000,
        "--tasks",
        20,
        "--json",
        out,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["megabytes"] == 2000 * 784 / 1e6
    assert record["ratio"] > 0.01
    assert str(tmp_path) not in out.read_text()


SUITE = (
    "drawing",
    "evaluation",
    "protonet_step",
    "maml_step",
    "to_98",
    "heads",
    "memory",
    "growth",
)
RIVALS = [name for name in ("easyfsl", "higher") if importlib.util.find_spec(name) is None]
needs_rivals = pytest.mark.skipif(
    bool(RIVALS), reason=f"{', '.join(RIVALS)} not installed (`make bench` does)"
)
needs_omniglot = pytest.mark.skipif(
    not (Path(os.environ.get("METAZOO_DATA", "")) / "omniglot").is_dir(),
    reason="METAZOO_DATA names no folder with omniglot",
)


def quick(name: str, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = run("benchmarks", name, "--quick", "--out", out, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@needs_rivals
@needs_omniglot
@pytest.mark.parametrize("name", SUITE)
def test_a_benchmark_of_the_suite_writes_a_whole_record(name: str, tmp_path: Path) -> None:
    done = quick(name, tmp_path)
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["quick"]
    assert record["command"].startswith(f"python -m benchmarks {name}")
    assert record["left_out"] == {}
    assert record["torch"] == torch.__version__
    for field in ("date", "machine", "processor", "threads", "work", "unit"):
        assert record[field], field
    for row in record["rows"]:
        assert 0 < row["low"] <= row["median"] <= row["high"], row
        assert row["way"] in done.stdout
    if name == "growth":
        assert [(tmp_path / picture).exists() for picture in record["plots"]] == [True]
    else:
        assert record["same"]
        assert record["goals"]
        own = {row["part"]: row["median"] for row in record["rows"] if row["way"] == "metazoo"}
        for row in record["rows"]:
            if row["way"] != "metazoo":
                assert row["ratio"] == pytest.approx(row["median"] / own[row["part"]], rel=0.01)
    assert str(tmp_path) not in (tmp_path / f"{name}.json").read_text()


@pytest.mark.slow
def test_what_cannot_be_measured_here_is_left_out_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in ('easyfsl', 'higher') else find(name, *rest)\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = quick("maml_step", tmp_path, PYTHONPATH=path)
    assert "left out: higher: higher is not installed; `make bench` installs it" in done.stdout
    record = json.loads((tmp_path / "maml_step.json").read_text())
    assert set(record["left_out"]) == {"higher"}
    done = quick("drawing", tmp_path, METAZOO_DATA="")
    assert "drawing is left out: $METAZOO_DATA names no folder" in done.stderr
    assert not (tmp_path / "drawing.json").exists()


def test_every_benchmark_of_the_suite_has_its_place_in_the_docs() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"<!-- (\w+) -->", page)) == SUITE


def test_a_quick_run_does_not_pass_for_a_result() -> None:
    done = run("benchmarks", "growth", "--quick", "--out", "benchmarks/results")
    assert done.returncode == 2
    assert "the results of a quick run are no results" in done.stderr
