"""The benchmarks: the harness, a quick run of each on the CPU, and a rehearsal of the GPU script."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metazoo import cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import benchmarks.caltech as caltech  # noqa: E402
from benchmarks.__main__ import NAMES, main  # noqa: E402
from benchmarks.harness import Bench, Different, Unavailable, Way, distance, write  # noqa: E402

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run(
    module: str, *options: Any, root: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, options)]
    environment = {**os.environ, **ONE_THREAD, **environment}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def tensor_way(value: float, delay: Callable[[], None] = lambda: None) -> Way:
    def call() -> torch.Tensor:
        delay()
        return torch.tensor([1.0, value])

    return Way(call)


def error(answer: torch.Tensor) -> float:
    return distance([answer], [torch.tensor([1.0, 2.0])])


def test_a_way_with_another_answer_is_refused() -> None:
    bench = Bench("some")
    with pytest.raises(Different, match=r"theirs is off by 5\.0e-01"):
        bench.race({"metazoo": tensor_way(2), "theirs": tensor_way(3)}, error=error)
    assert bench.rows == []


def test_nan_is_another_answer() -> None:
    with pytest.raises(Different):
        Bench("some").race({"metazoo": tensor_way(float("nan"))}, error=error)


def test_a_part_with_another_answer_is_a_problem_and_the_next_part_runs() -> None:
    saved: list[list[str]] = []
    bench = Bench("some", quick=True, save=lambda b: saved.append(list(b.problems)))
    with bench.part("first"):
        bench.race({"metazoo": tensor_way(2), "theirs": tensor_way(3)}, error=error)
    with bench.part("second"):
        bench.race({"metazoo": tensor_way(2), "theirs": tensor_way(2.0001)}, error=error)
    assert bench.problems == ["first: Different: theirs is off by 5.0e-01, allowed 1.0e-03"]
    assert {row.part for row in bench.rows} == {"second"}
    assert saved == [bench.problems, bench.problems]
    assert "PROBLEM: first" in bench.text()


def test_a_fact_that_does_not_hold_is_refused() -> None:
    bench = Bench("some")
    bench.check("the loss", 1e-7, 1e-6)
    for off in (1e-5, float("nan")):
        with pytest.raises(Different, match="the loss: off by"):
            bench.check("the loss", off, 1e-6)
    assert len(bench.same) == 1


def test_a_rival_that_raises_is_left_out_and_metazoo_must_not_raise() -> None:
    def fail() -> None:
        raise NotImplementedError("no derivative")

    bench = Bench("some", quick=True)
    bench.race({"metazoo": tensor_way(2), "theirs": Way(fail)}, error=error)
    assert [row.way for row in bench.rows] == ["metazoo"]
    assert bench.left_out == {": theirs": "NotImplementedError: no derivative"}
    with pytest.raises(NotImplementedError):
        bench.race({"metazoo": Way(fail)})


def test_a_missing_rival_is_left_out_with_the_reason() -> None:
    bench = Bench("some")
    with bench.rival("theirs"):
        raise Unavailable("it is not installed")
    with bench.part("a part"):
        raise Unavailable("there is no data")
    assert bench.left_out == {"theirs": "it is not installed", "a part": "there is no data"}
    assert bench.problems == []


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    bench = Bench("some")
    bench.add({"metazoo": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 16.0]}, unit="ms")
    ours, theirs = bench.rows
    assert (ours.median, ours.low, ours.high, ours.ratio) == (2000, 1000, 4000, None)
    assert (theirs.median, theirs.ratio) == (2000, 2)  # ratios of the rounds: 2, 1, 4


def test_ways_are_called_in_turns_and_amounts_divide_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    clock = [0.0]

    def slow(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            clock[0] += seconds

        return call

    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: clock[0])
    bench = Bench("some")
    ways = {"metazoo": Way(slow("a", 1)), "theirs": Way(slow("b", 6), amount=2)}
    bench.race(ways, unit="s", rounds=2)
    assert "".join(calls) == "ab" + "ab" + "abba"  # answers, sizes, two rounds
    assert [row.median for row in bench.rows] == [1, 3]
    assert bench.rows[1].ratio == 3


def test_what_is_written_has_no_folders_of_this_machine(tmp_path: Path) -> None:
    write(tmp_path / "out.json", {"here": f"{ROOT}/metazoo", "home": f"{Path.home()}/x"})
    assert json.loads((tmp_path / "out.json").read_text()) == {"here": "./metazoo", "home": "~/x"}


def check_result(result: dict[str, Any]) -> None:
    """Check what a quick run of a benchmark on the CPU found."""
    assert result["problems"] == []
    assert result["rows"] or result["left_out"]
    for row in result["rows"]:
        assert 0 <= row["low"] <= row["median"] <= row["high"], row


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "practitioner"])
def test_a_quick_run_of_each_benchmark(name: str) -> None:
    bench = Bench(name, quick=True)
    importlib.import_module(f"benchmarks.{name}").run(bench)
    check_result(bench.record())


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_a_whole_record(tmp_path: Path) -> None:
    done = run("benchmarks", "drawing", "--quick", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out.json").read_text()
    record = json.loads(text)
    assert record["finished"]
    assert record["quick"]
    assert record["command"] == "python -m benchmarks drawing --quick"
    for key in ("date", "machine", "processor", "threads"):
        assert record[key], key
    check_result(record["results"]["drawing"])
    assert done.stdout.startswith("## drawing\n")
    assert "(quick run: not a measurement)" in done.stdout
    assert "| growth with classes | 100 classes | " in done.stdout
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_the_gpu_script_is_rehearsed_offline_on_a_bare_checkout(tmp_path: Path) -> None:
    checkout, out = tmp_path / "checkout", tmp_path / "out.json"
    leave = shutil.ignore_patterns("__pycache__", "*.so")
    for folder in ("benchmarks", "csrc", "metazoo", "tests"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, checkout)
    # Nothing answers at this proxy: a request to the network fails.
    offline = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    words = ["--device", "cpu", "--quick", "--out", str(out), "--parts", "tests,memcheck,kernels"]
    done = run("benchmarks.gpu", *words, root=checkout, **offline)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"written to {out}\n")
    record = json.loads(out.read_text())
    assert record["finished"]
    parts = record["parts"]
    assert set(parts) == {"install", "build", "tests", "memcheck", "kernels"}
    assert {part["outcome"] for part in parts.values()} == {"passed"}
    check_result(parts["kernels"]["results"]["results"]["kernels"])
    assert str(tmp_path) not in out.read_text()


def test_a_part_that_fails_or_takes_too_long_loses_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import benchmarks.gpu as gpu

    monkeypatch.setattr(gpu, "WORK", tmp_path)
    out = tmp_path / "out.json"
    words = ["gpu", "--device", "cpu", "--minutes", "0.2", "--out", str(out), "--parts", "tests"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(gpu, "SHARE", {"slow": 0.05})
    session = gpu.Session(gpu.arguments(), "cpu")
    session.part("wrong", [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    session.part("slow", [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(session, "check", lambda name: 1 / 0)
    session.attempt("tests")
    session.part("right", [sys.executable, "-c", "print('done')"])
    parts = json.loads(out.read_text())["parts"]
    outcomes = {name: part["outcome"] for name, part in parts.items()}
    assert outcomes == {
        "wrong": "failed",
        "slow": "timed out",
        "tests": "failed",
        "right": "passed",
    }
    assert parts["wrong"]["tail"] == "why\n"
    assert "ZeroDivisionError" in parts["tests"]["tail"]
    # A second call keeps what it does not run.
    assert set(gpu.Session(gpu.arguments(), "cpu").record["parts"]) == {"wrong", "slow", "right"}


@pytest.mark.slow
def test_the_gpu_script_says_that_there_is_no_gpu() -> None:
    done = run("benchmarks.gpu", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no CUDA device")
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "error: there is no CUDA device\nhint: "),
        (["drawings"], "no benchmark named drawings; choose from startup, drawing"),
    ],
)
def test_a_wrong_command_line_is_explained(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


@pytest.fixture
def caltech_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that runs benchmarks.caltech on small made-up images.

    It runs the command line in this process, one command at a time, and returns the commands.
    """
    for split, classes in (("train", 11), ("val", 5), ("test", 5)):
        for c in range(classes):
            folder = tmp_path / "images" / split / f"{split}{c}"
            folder.mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (32, 32), (20 * c, 255 - 20 * c, 10 * i)).save(folder / f"{i}.png")
    commands: list[str] = []
    lock = threading.Lock()

    def metazoo(*words: str, output: bool = False) -> str:
        with lock, contextlib.redirect_stdout(io.StringIO()) as said:
            commands.append(" ".join(words[:2]))
            assert cli.run(list(words)) == 0
        return said.getvalue()

    def run_caltech(*options: object) -> list[str]:
        commands.clear()
        words = ["--data", tmp_path / "images", "--out", tmp_path / "out", "--images", 500]
        words += ["--episodes", 4, "--only", *options]
        monkeypatch.setattr(sys, "argv", ["caltech", *map(str, words)])
        caltech.main()
        return list(commands)

    monkeypatch.setattr(caltech, "metazoo", metazoo)
    monkeypatch.setattr(caltech, "VALIDATIONS", 2)
    monkeypatch.setattr(caltech, "VALIDATIONS_FROM_BASELINE", 1)
    return run_caltech


@pytest.mark.slow
def test_caltech_continues_and_adds_rows(
    caltech_runs: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert caltech_runs("baseline").count("train baseline") == 1
    assert "train baseline" not in caltech_runs("baseline", "protonet")
    record = json.loads((out / "caltech-conv4.json").read_text())
    rows = [(row["algorithm"], row["shots"], row["transductive"]) for row in record["rows"]]
    both = ("baseline", "protonet")
    assert rows == [(name, shots, False) for name in both for shots in (1, 5)]
    assert all(row["tasks"] == 4 and 0 <= row["mean"] <= 1 for row in record["rows"])
    assert "--images 500" in record["command"]
    # Two trainings at a time, both from the backbone of the baseline that is there already.
    caltech_runs("protonet", "--from-baseline", 1800, "--jobs", 2)
    baseline = out / "baseline-conv4-500-float32" / "batches"
    for shots in (1, 5):
        folder = out / "protonet-conv4-500+1800-float32" / f"{shots}-shot"
        recipe = json.loads((folder / "config.json").read_text())["recipe"]
        assert (recipe["init"], recipe["steps"]) == (str(baseline), 1800 // (10 * (shots + 10)))
    # Trainings from nothing stay as they were.
    assert json.loads((out / "caltech-conv4.json").read_text()) == record
    record = json.loads((out / "caltech-conv4-finished.json").read_text())
    rows = [(row["algorithm"], row["shots"], row["steps"]) for row in record["rows"]]
    assert rows == [("protonet", 1, 16), ("protonet", 5, 12)]
    assert "--images 500 --precision float32 --from-baseline 1800" in record["command"]
