"""`metazoo eval`: what it measures, on which tasks, and what it says beside that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, failure, output
from pictures import picture
from PIL import Image

from metazoo import MetazooError
from metazoo.cli import run
from metazoo.datasets.glyphs import Glyphs
from metazoo.zoo import run_folder


def test_eval_gives_a_row_for_every_task(capsys: Capture, protonet_run: Path) -> None:
    words = ["eval", str(protonet_run), "--ways", "2,3", "--shots", "1, 2", "--episodes", "10"]
    out, err = output(capsys, *words, "--json")
    found = json.loads(out)
    assert err == ""
    assert [(r["ways"], r["shots"]) for r in found["results"]] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert all(
        r["tasks"] == 10 and r["queries"] == 3 and r["split"] == "test" for r in found["results"]
    )
    assert found["differences"] == []
    table = output(capsys, *words)[0].splitlines()
    assert len(table) == 5
    assert re.search(
        r"glyphs alphabets=6 +2-way 1-shot +accuracy +\d+\.\d\d ± \d+\.\d\d % +10 +inductive$",
        table[1],
    )


def test_eval_by_default_draws_the_tasks_that_training_was_tested_on(
    capsys: Capture, protonet_run: Path
) -> None:
    out, _ = output(capsys, "eval", str(protonet_run), "--episodes", "4", "--json")
    row = json.loads(out)["results"][0]
    tested = json.loads((protonet_run / run_folder.RESULT).read_text())
    assert {key: row[key] for key in ("mean", "interval", "tasks", "seed", "split")} == {
        key: tested[key] for key in ("mean", "interval", "tasks", "seed", "split")
    }
    other = json.loads(
        output(capsys, "eval", str(protonet_run), "--episodes", "4", "--seed", "5", "--json")[0]
    )["results"][0]
    assert (other["seed"], other["mean"]) != (row["seed"], row["mean"])


def test_a_model_differs_from_itself_by_nothing(capsys: Capture, protonet_run: Path) -> None:
    best = str(protonet_run / run_folder.BEST)
    out, _ = output(
        capsys, "eval", str(protonet_run), best, "--shots", "1,2", "--episodes", "20", "--json"
    )
    found = json.loads(out)
    assert [r["mean"] for r in found["results"][:2]] == [r["mean"] for r in found["results"][2:]]
    assert [(d["mean"], d["interval"], d["shots"], d["tasks"]) for d in found["differences"]] == [
        (0, 0, 1, 20),
        (0, 0, 2, 20),
    ]
    assert all((d["model"], d["minus"]) == (best, str(protonet_run)) for d in found["differences"])
    table = output(capsys, "eval", str(protonet_run), best, "--episodes", "20")[0]
    assert re.search(r"paired difference.*\n.* 0\.00 ± 0\.00 % ", table)


def test_paired_differences_know_more_than_two_intervals(
    capsys: Capture, protonet_run: Path, other_run: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(other_run, again)
    config = json.loads((again / run_folder.CONFIG).read_text())
    config["recipe"]["seed"] = 1  # of its training; the tasks are those of the first model
    (again / run_folder.CONFIG).write_text(json.dumps(config))
    out, _ = output(capsys, "eval", str(protonet_run), str(again), "--episodes", "300", "--json")
    found = json.loads(out)
    one, two = found["results"]
    (difference,) = found["differences"]
    assert difference["mean"] == pytest.approx(two["mean"] - one["mean"], abs=1e-6)
    assert difference["interval"] < (one["interval"] ** 2 + two["interval"] ** 2) ** 0.5
    assert difference["interval"] > 0
    assert one["seed"] == two["seed"] == difference["seed"] == 0


def test_options_set_otherwise_stand_beside_the_result(capsys: Capture, protonet_run: Path) -> None:
    words = ["eval", str(protonet_run), "--episodes", "4"]
    out, _ = output(capsys, *words, "-o", "tta=shifted", "-o", "distance=euclidean")
    assert "inductive, tta=shifted, distance=euclidean" in " ".join(out.split())
    out, _ = output(capsys, *words, "-o", "tta=shifted", "--json")
    assert json.loads(out)["results"][0]["options"] == {"tta": "shifted"}
    out, _ = output(capsys, *words, "--json")
    assert "options" not in json.loads(out)["results"][0]


def test_models_of_different_data_are_not_paired(
    capsys: Capture, protonet_run: Path, sinusoid_run: Path, tmp_path: Path
) -> None:
    words = [
        "eval",
        str(protonet_run),
        str(sinusoid_run),
        "--shots",
        "1,2",
        "--episodes",
        "4",
        "--json",
    ]
    out, err = output(capsys, *words)
    found = json.loads(out)
    assert [r["metric"] for r in found["results"]] == ["accuracy", "accuracy", "mse", "mse"]
    assert found["differences"] == []
    assert "different data" in err
    assert "--dataset can give both the same" in err
    # Without --shots each is given what it was trained for.
    out, _ = output(
        capsys, "eval", str(protonet_run), str(sinusoid_run), "--episodes", "4", "--json"
    )
    assert [r["shots"] for r in json.loads(out)["results"]] == [
        run_folder.read_blueprint(run).recipe.shots for run in (protonet_run, sinusoid_run)
    ]
    again = tmp_path / "again"
    shutil.copytree(protonet_run, again)
    config = json.loads((again / run_folder.CONFIG).read_text())
    config["dataset_options"]["seed"] = 1  # the same names of classes, other classes
    (again / run_folder.CONFIG).write_text(json.dumps(config))
    out, err = output(capsys, "eval", str(protonet_run), str(again), "--episodes", "4", "--json")
    assert json.loads(out)["differences"] == []
    assert "different data" in err
    assert "--data-seed can give both the same" in err
    out, err = output(
        capsys,
        "eval",
        str(protonet_run),
        str(again),
        "--episodes",
        "4",
        "--data-seed",
        "1",
        "--json",
    )
    assert len(json.loads(out)["differences"]) == 1
    assert err == ""


def test_eval_on_other_data(capsys: Capture, protonet_run: Path) -> None:
    words = [
        "eval",
        str(protonet_run),
        "--dataset",
        "glyphs",
        "--episodes",
        "10",
        "--split",
        "val",
        "--json",
    ]
    same = json.loads(output(capsys, *words)[0])["results"][0]
    other = json.loads(output(capsys, *words, "--data-seed", "3")[0])["results"][0]
    assert same["split"] == "val"
    assert same["mean"] != other["mean"]
    assert other["data_options"] == {**same["data_options"], "seed": 3}
    assert "root" not in same["data_options"]
    table, _ = output(capsys, *words[:-1], "--data-seed", "3")
    assert re.search(r" glyphs alphabets=6 seed=3 +3-way 1-shot, val ", table)


def test_classes_that_the_model_was_trained_on_are_told(
    capsys: Capture, protonet_run: Path, sinusoid_run: Path
) -> None:
    words = ["eval", str(protonet_run), "--episodes", "4", "--ways", "2,3"]
    for split in ("test", "val"):
        assert output(capsys, *words, "--split", split)[1] == ""
    _, err = output(capsys, *words, "--split", "train")
    assert err.startswith(
        f"note: 80 of the 80 classes have names of classes that '{protonet_run}' was trained on"
    )
    assert err.count("note: ") == 1  # not for each kind of task
    assert output(capsys, "eval", str(sinusoid_run), "--episodes", "4", "--split", "train")[1] == ""


def test_a_remark_on_a_result_costs_no_result(
    capsys: Capture, protonet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = tmp_path / "run"
    shutil.copytree(protonet_run, unknown)
    config = json.loads((unknown / run_folder.CONFIG).read_text())
    (unknown / run_folder.CONFIG).write_text(
        json.dumps({**config, "dataset": "coins", "dataset_options": {}})
    )
    out, err = output(
        capsys,
        "eval",
        str(unknown),
        "--dataset",
        "glyphs",
        "--data-alphabets",
        "6",
        "--episodes",
        "4",
        "--json",
    )
    assert json.loads(out)["results"][0]["tasks"] == 4
    assert err == ""

    def no_streams(self: Glyphs) -> Any:
        raise (
            MetazooError("they are gone")
            if self.config.seed == 0
            else OSError(5, "the disk is gone")
        )

    monkeypatch.setattr(Glyphs, "streams", no_streams)
    assert output(capsys, "eval", str(protonet_run), "--episodes", "4")[1] == ""
    (unknown / run_folder.CONFIG).write_text(
        json.dumps({**config, "dataset_options": {**config["dataset_options"], "seed": 1}})
    )
    assert run(["eval", str(unknown), "--episodes", "4"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2  # the result
    assert err == "error: the disk is gone\n"


def test_what_a_run_was_trained_on_is_sought_where_its_data_lie(
    capsys: Capture, tmp_path: Path
) -> None:
    for name in (
        "a/train/cat",
        "a/train/dog",
        "a/val/owl",
        "a/val/ram",
        "a/test/fox",
        "a/test/elk",
        "b/test/cat",
        "b/test/emu",
    ):
        (tmp_path / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (16, 16), 60 * i).save(tmp_path / name / f"{i}.png")
    tiny = shlex.split(
        "--ways 2 --queries 1 --train-queries 1 --steps 1 --validation-episodes 2 --test-episodes 2 --data-size 16"
    )
    words = [
        "train",
        "protonet",
        "--dataset",
        "folder",
        "--data-root",
        str(tmp_path / "a"),
        "--out",
        str(tmp_path / "run"),
    ]
    output(capsys, *words, *tiny, "--backbone-width", "4")
    words = ["eval", str(tmp_path / "run"), "--episodes", "2"]
    assert output(capsys, *words)[1] == ""
    _, err = output(capsys, *words, "--data-root", str(tmp_path / "b"))
    assert err.startswith(
        f"note: 1 of the 2 classes have names of classes that '{tmp_path / 'run'}' was trained on"
    )
    # Where they are no more, they are sought where the present ones lie.
    (tmp_path / "a").rename(tmp_path / "moved")
    _, err = output(capsys, *words, "--data-root", str(tmp_path / "moved"), "--split", "train")
    assert err.startswith("note: 2 of the 2 classes have names of classes that ")


def test_eval_with_other_options_of_the_algorithm(capsys: Capture, maml_run: Path) -> None:
    words = ["eval", str(maml_run), "--episodes", "20", "--json"]
    found = [
        json.loads(output(capsys, *words, "-o", f"eval-inner-steps={n}")[0])["results"][0]
        for n in (0, 3)
    ]
    assert len({(result["mean"], result["interval"]) for result in found}) == 2


def test_a_measurement_shows_on_a_terminal_how_far_it_is(protonet_run: Path) -> None:
    ours, theirs = os.openpty()
    command = [
        sys.executable,
        "-m",
        "metazoo",
        "eval",
        str(protonet_run),
        "--episodes",
        "40",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 0
    assert b"3-way 1-shot" in shown
    assert b"100%" in shown
    assert printed.startswith(b"model")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Three classes of dark shapes on white paper, too few to divide into splits."""
    for label in ("bar", "cup", "ring"):
        for i in range(4):
            path = tmp_path / "shapes" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(label, i).save(path)
    return tmp_path / "shapes"


def test_a_folder_is_evaluated_as_the_model_takes_images(
    capsys: Capture, protonet_run: Path, shapes: Path
) -> None:
    words = ["eval", str(protonet_run), "--queries", "2", "--episodes", "4", "--json"]
    words += ["--dataset", "folder", "--data-root", str(shapes)]
    out, err = output(capsys, *words)
    (result,) = json.loads(out)["results"]
    assert (result["ways"], err) == (3, "")  # every class is used
    chosen = result["data_options"]
    assert (chosen["size"], chosen["channels"], chosen["invert"]) == (28, "grey", True)
    out, _ = output(capsys, *words, "--no-data-invert")
    assert json.loads(out)["results"][0]["data_options"]["invert"] is False
    # The splits of a folder stand.
    for name, path in (("cup", "test/cup"), ("ring", "test/ring"), ("bar", "train/bar")):
        (shapes / path).parent.mkdir(exist_ok=True)
        (shapes / name).rename(shapes / path)
    out, _ = output(capsys, *words, "--ways", "2")
    assert json.loads(out)["results"][0]["ways"] == 2
    assert "has 2 classes" in failure(capsys, 1, *words)[0]


def test_a_model_of_a_folder_is_evaluated_on_another_folder(
    capsys: Capture, shapes: Path, tree: Path, tmp_path: Path
) -> None:
    trained = str(tmp_path / "run")
    words = ["train", "protonet", "--dataset", "folder", "--data-root", str(tree), "--data-size=16"]
    words += shlex.split("--data-channels grey --backbone-width 4 --ways 2 --queries 2 --steps 1")
    words += shlex.split("--train-ways 2 --train-queries 2 --test-episodes 2 --device cpu --out")
    output(capsys, *words, trained, "--validation-episodes", "2")
    own = ["eval", trained, "--episodes", "4", "--json"]
    usual = json.loads(output(capsys, *own, "--data-root", str(tree))[0])["results"]
    assert usual == json.loads(output(capsys, *own)[0])["results"]
    assert usual == json.loads(output(capsys, *own, "--dataset", "folder")[0])["results"]
    # A file of weights does not say where the data of the model are.
    for name in (trained, str(Path(trained) / run_folder.BEST)):
        words = ["eval", name, "--dataset", "folder", "--data-root", str(shapes), "--ways", "3"]
        out, err = output(capsys, *words, "--episodes", "4", "--json")
        assert json.loads(out)["results"][0]["ways"] == 3
        assert err == ""  # no class is taken for one that the model was trained on
