"""A disk that is full, at many moments: the error says what to do, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import Capture, output
from forks import Forks

from metazoo.zoo import run_folder
from metazoo.zoo.weights import load_tensors

# Runs a command in processes that may write no file of more than so many bytes.
PROGRAM = """
import json, os, resource, sys
from pathlib import Path
from metazoo.cli import run
from metazoo.training import curve, loop

sizes, words = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = []
for size in sizes:
    read, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(write, 1)
        os.dup2(write, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        os._exit(run([word.replace("SIZE", str(size)) for word in words]))
    os.close(write)
    told = os.fdopen(read, errors="replace").read()
    found.append((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told))
print(json.dumps(found))
"""
TINY = ["--ways", "3", "--train-ways", "3", "--train-queries", "2", "--queries", "2"]
TINY += ["--steps", "4", "--validate-every", "2", "--validation-episodes", "4"]
TINY += ["--test-episodes", "4", "--device", "cpu", "--data-alphabets", "6"]
TINY += ["--backbone-width", "4"]


def on_full_disks(fresh_python: Forks, sizes: list[int], *words: str) -> list[tuple[int, int, str]]:
    """Return each size, and the status and the output of the command on a disk of that size."""
    done = fresh_python.run(PROGRAM, json.dumps(sizes), json.dumps(words))
    assert done.returncode == 0, done.stderr
    return [(size, *found) for size, found in zip(sizes, json.loads(done.stdout))]


def said(told: str) -> tuple[str, str]:
    """Return the error and the hint, which are all that was told."""
    assert "Traceback" not in told
    lines = told.splitlines()
    error, hint = lines[-2:]
    assert error.startswith("error: "), told
    assert hint.startswith("hint: "), told
    return error, hint


def ending(run: Path) -> dict[str, Any]:
    result = json.loads((run / run_folder.RESULT).read_text())
    metrics = run_folder.read_metrics(run)
    for line in [result, *metrics]:
        line.pop("seconds", None)
    return {"result": result, "metrics": metrics, "best": (run / run_folder.BEST).read_bytes()}


def test_training_on_a_full_disk_goes_on_from_where_it_was(
    fresh_python: Forks, tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", "protonet", *TINY, "--out"]
    output(capsys, *words, str(tmp_path / "whole"))
    whole = ending(tmp_path / "whole")
    weights = load_tensors(tmp_path / "whole" / run_folder.LAST)[0]
    files = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    # Each file in turn is the first that does not fit.
    names = (run_folder.CONFIG, run_folder.BEST, run_folder.LAST, run_folder.CURVE)
    sizes = sorted({0, *(files[name] - 1 for name in names), max(files.values())})
    for size, status, told in on_full_disks(fresh_python, sizes, *words, str(tmp_path / "SIZE")):
        run = tmp_path / str(size)
        assert "Traceback" not in told, told
        if status:
            assert status == 1
            error, hint = said(told)
            assert "File too large" in error
            if not (run / run_folder.CONFIG).exists():
                assert f"the run folder {run} cannot be made" in error
                continue
            assert f"the run in {run} stopped" in error
            assert f"`metazoo train --resume {run}`" in hint
        elif not (run / run_folder.CURVE).exists():
            assert "warning: the learning curve cannot be saved" in told
        assert not [path for path in run.iterdir() if path.name.startswith(".")]
        output(capsys, "train", "--resume", str(run))
        assert ending(run) == whole
        ours = load_tensors(run / run_folder.LAST)[0]
        assert all((value == weights[name]).all() for name, value in ours.items())
    assert size >= max(files.values())
    assert status == 0, "the last one had room for everything"


def test_an_export_on_a_full_disk_is_repeated(
    fresh_python: Forks, protonet_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "zoo"
    words = ["export", str(protonet_run), "--name", "protonet.x", "--episodes", "12"]
    words += ["--out", str(out)]
    for size, status, told in on_full_disks(fresh_python, [0, 400], *words):
        assert status == 1, size
        assert f"error: File too large: {out / 'protonet.x.safetensors'}" in told
        assert list(out.iterdir()) == []
    output(capsys, *words)
    assert sorted(path.name for path in out.iterdir()) == [
        "protonet.x.json",
        "protonet.x.safetensors",
    ]


def test_packing_on_a_full_disk_goes_on(
    fresh_python: Forks, packed_glyphs: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["data", "pack", "glyphs", "--data-alphabets", "6"]
    largest = max(path.stat().st_size for path in packed_glyphs.iterdir())
    sizes = [0, 100, 5000, largest - 1, largest]
    for size, status, told in on_full_disks(fresh_python, sizes, *words, str(tmp_path / "SIZE")):
        out = tmp_path / str(size)
        assert (status == 0) == (size == largest)
        if status:
            error, hint = said(told)
            assert "File too large" in error
            assert str(out) in error
            assert "run the same command again" in hint
            output(capsys, *words, str(out))
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            path.name: path.read_bytes() for path in packed_glyphs.iterdir()
        }
