"""No mistake of a user's at the command line ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Capture, failure, output
from forks import Forks

from metazoo.cli import run
from metazoo.zoo import run_folder
from metazoo.zoo.weights import load_tensors, save_tensors

MISTAKES: dict[str, tuple[int, str, str]] = {
    "nonsense": (2, "no command named 'nonsense'", "hint: `metazoo --help` shows every command"),
    "evl RUN": (2, "no command named 'evl'", "did you mean 'eval'?"),
    "list nonsense": (2, "'nonsense' is not one of", "metazoo list --help"),
    "list --nonsense": (2, "No such option '--nonsense'", "metazoo list --help"),
    "info nonsense": (2, "unexpected extra argument", "metazoo info --help"),
    "train": (2, "Missing argument 'ALGORITHM'", "metazoo train --help"),
    "train mamel": (2, "no algorithm named 'mamel'", "did you mean 'maml'"),
    "train --steps 5 mamel": (2, "no algorithm named 'mamel'", "did you mean 'maml'"),
    "train maml --dataset omniglott": (
        2,
        "no data set named 'omniglott'",
        "did you mean 'omniglot'",
    ),
    "train maml --backbone conv5": (2, "no backbone named 'conv5'", "did you mean 'conv4'"),
    "train maml --stepz 5": (2, "No such option '--stepz'", "did you mean '--steps'? "),
    "train maml --steps x": (2, "--steps cannot be 'x'", "a whole number from 1 to 1,000,000,000"),
    "train maml --steps 0": (2, "--steps cannot be '0'", "a whole number from 1 to 1,000,000,000"),
    "train maml --steps 1.5": (2, "--steps cannot be '1.5'", "a whole number"),
    "train maml --lr nan": (2, "--lr cannot be 'nan'", "a number from 0 to 1e+30"),
    "train maml --lr -1": (2, "--lr cannot be '-1'", "a number from 0 to 1e+30"),
    "train maml --seed 99999999999999999999": (2, "--seed cannot be", "a whole number"),
    "train maml --optimizer adamm": (
        2,
        "--optimizer cannot be 'adamm'",
        "one of adam, adamw, sgd, nesterov",
    ),
    "train maml --inner-lr fast": (2, "--inner-lr cannot be 'fast'", "a number"),
    "train protonet --inner-lr 1": (2, "No such option '--inner-lr'", "metazoo train --help"),
    "train maml --data-alphabets 1": (2, "--data-alphabets cannot be '1'", "a whole number from 6"),
    "train maml --backbone-width 0": (2, "--backbone-width cannot be '0'", "a whole number"),
    "train maml --steps": (2, "'--steps' requires an argument", "--help"),
    "train maml protonet": (2, "unexpected extra argument", "metazoo train --help"),
    "train maml --device abacus": (2, "there is no device 'abacus'", "cpu, cuda"),
    "train maml --data-alphabets 6 --ways 50 --train-ways 5": (
        1,
        "20 classes, but a task needs 50",
        "lower --ways",
    ),
    "train maml --data-alphabets 6 --shots 50": (
        1,
        "20 examples, but a task needs 50",
        "lower --shots",
    ),
    "train maml --dataset folder": (2, "needs a folder of images", "--data-root"),
    "train maml --dataset folder --data-root nowhere": (1, "nowhere", "check the path"),
    "train baseline --dataset sinusoid": (2, "algorithm 'baseline'", ""),
    "train maml --dataset sinusoid --backbone conv4": (2, "backbone 'conv4' needs images", "mlp"),
    "train --resume nowhere": (1, "there is no run folder nowhere", "metazoo train"),
    "train --resume RUN --steps 9": (2, "--steps cannot be given", "metazoo train --resume"),
    "train protonet --resume RUN": (2, "algorithm cannot be given", "metazoo train --resume"),
    "train --resume RUN --lr 0.1": (2, "--lr cannot be given", "metazoo train --resume"),
    "train protonet --data-alphabets 6 --out RUN": (2, "exists already", "--resume"),
    "train protonet --data-alphabets 6 --out RUN/config.json/x": (
        1,
        "cannot be made",
        "another --out",
    ),
    "train protonet --data-alphabets 6 --out /proc/nothing/x": (
        1,
        "cannot be made",
        "another --out",
    ),
    "train protonet --progress loud": (2, "'loud' is not one of", "metazoo train --help"),
    "eval": (2, "Missing argument 'MODEL...'", "metazoo eval --help"),
    "eval protonet.nothing": (2, "no pretrained model named 'protonet.nothing'", "metazoo list"),
    "eval nowhere/nothing": (2, "no run folder or model file nowhere/nothing", "metazoo list"),
    "eval RUN/metrics.jsonl": (1, "is damaged, or not a metazoo checkpoint", "fetch it again"),
    "eval RUN/..": (1, "is not a run folder", "metazoo train"),
    "eval RUN --ways 1": (2, "--ways cannot be '1'", "at least 2"),
    "eval RUN --ways 5,": (2, "--ways cannot be '5,'", "separated by commas"),
    "eval RUN --shots 0": (2, "--shots cannot be '0'", "at least 1"),
    "eval RUN --episodes 1": (2, "'--episodes'", "metazoo eval --help"),
    "eval RUN --seed -1": (2, "'--seed'", "metazoo eval --help"),
    "eval RUN --seed 99999999999999999999": (2, "'--seed'", "metazoo eval --help"),
    "eval RUN --split dev": (1, "has no split 'dev'", "train, val, test"),
    "eval RUN --ways 500": (1, "20 classes, but a task needs 500", "lower --ways"),
    "eval RUN --shots 500": (1, "20 examples, but a task needs 500", "lower --shots"),
    "eval RUN --protocol official": (
        2,
        "has no protocol 'official'",
        "it has no official protocols",
    ),
    "eval RUN --protocol official --ways 5": (2, "--protocol has its own tasks", "leave out"),
    "eval RUN --dataset nothing": (2, "no data set named 'nothing'", "metazoo list"),
    "eval RUN --dataset sinusoid": (2, "is a classification model", "another --dataset"),
    "eval RUN --data-rotations": (2, "No such option '--data-rotations'", "metazoo eval --help"),
    "eval RUN -o distance": (2, "not of the form NAME=VALUE", ""),
    "eval RUN -o distance=far": (2, "'distance' cannot be 'far'", "euclidean, cosine"),
    "eval RUN -o distanc=cosine": (2, "no option 'distanc'", "did you mean 'distance'"),
    "eval RUN -o distance=cosine": (
        1,
        "they have no 'log_scale'",
        "cannot be changed after training",
    ),
    "eval RUN --device abacus": (2, "there is no device 'abacus'", "cpu, cuda"),
    "eval RUN --device meta": (2, "device 'meta' cannot be used: it computes nothing", "use cpu"),
    "eval SINE --ways 5": (
        2,
        "--ways cannot be set: regression tasks have no classes",
        "leave it out",
    ),
    "export RUN": (2, "Missing option '--name'", "metazoo export --help"),
    "export RUN --name protonet.x": (2, "Missing option '--out'", "metazoo export --help"),
    "export RUN --name maml.x --out OUT": (
        2,
        "this model cannot be called 'maml.x'",
        "protonet.TAG",
    ),
    "export RUN --name protonet.a/b --out OUT": (2, "cannot be called", "protonet.TAG"),
    "export RUN --name protonet --out OUT": (2, "this model cannot be called", "protonet.TAG"),
    "export nowhere --name protonet.x --out OUT": (
        1,
        "there is no run folder nowhere",
        "metazoo train",
    ),
    "export RUN --name protonet.x --episodes 2 --out RUN/config.json": (1, "config.json", ""),
    "eval RUN/last.safetensors": (1, "is the training state of a run", "give the run folder"),
    "eval RUN -o tta=none -o tta=shifted": (2, "option 'tta' is given twice", "once"),
    "train protonet --dataset folder --data-root ~nobody-at-all/x": (
        2,
        "--data-root",
        "",
    ),
    "push http://me:secret@host/x.json OUT": (2, "'http://host/x.json' is an address", "zoo name"),
    "predict": (2, "Missing option '--support'", "metazoo predict --help"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_words(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    protonet_run: Path,
    sinusoid_run: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, message, hint = MISTAKES[line]
    places = {"RUN": str(protonet_run), "SINE": str(sinusoid_run), "OUT": str(tmp_path / "out")}
    words = [re.sub("RUN|SINE|OUT", lambda found: places[found[0]], word) for word in line.split()]
    error, advice = failure(capsys, status, *words)
    assert message in error
    assert hint in advice
    assert list(tmp_path.iterdir()) == []  # and nothing is left behind


@pytest.fixture
def damaged(protonet_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that is not finished, to damage."""
    folder = tmp_path / "run"
    shutil.copytree(protonet_run, folder)
    (folder / run_folder.RESULT).unlink()
    return folder


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9}', "\x00"])
def test_a_damaged_config_is_told(capsys: Capture, damaged: Path, text: str) -> None:
    (damaged / run_folder.CONFIG).write_text(text)
    for words in (
        ["train", "--resume", str(damaged)],
        ["eval", str(damaged)],
        ["export", str(damaged), "--name", "protonet.x", "--out", str(damaged / "x")],
    ):
        error, hint = failure(capsys, 1, *words)
        assert run_folder.CONFIG in error
        assert hint


@pytest.mark.parametrize(
    "change", [None, "", "{", "[]", "{}", {"mean": None}, {"shots": None}, {"transductive": 1}]
)
def test_a_damaged_result_is_told(
    capsys: Capture, protonet_run: Path, damaged: Path, change: Any
) -> None:
    result = json.loads((protonet_run / run_folder.RESULT).read_text())
    (damaged / run_folder.RESULT).write_text(
        change if isinstance(change, str) else json.dumps(result | (change or {}))
    )
    for words in (
        ["train", "--resume", str(damaged)],
        ["export", str(damaged), "--name", "protonet.x", "--out", str(damaged)],
    ):
        status = run(words)
        lines = capsys.readouterr().err.splitlines()
        if change is None:
            assert status == 0
        else:
            assert status == 1
            assert lines[-2].startswith(f"error: {damaged / run_folder.RESULT} ")
            assert f"delete it: `metazoo train --resume {damaged}`" in lines[-1]
    (damaged / run_folder.RESULT).unlink()
    output(capsys, "train", "--resume", str(damaged))
    again = json.loads((damaged / run_folder.RESULT).read_text())
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_a_config_of_wrong_values_is_told(capsys: Capture, damaged: Path) -> None:
    config = json.loads((damaged / run_folder.CONFIG).read_text())
    changes: list[dict[str, Any]] = [
        {"recipe": {"ways": "x"}},
        {"dataset_options": []},
        {"dataset_options": {"alphabets": "x"}},
        {"spec": None},
        {"algorithm": "nothing"},
        {"recipe": None},
        {"backbone": None},
        {"dataset": "nothing"},
    ]
    for change in changes:
        (damaged / run_folder.CONFIG).write_text(json.dumps({**config, **change}))
        for words in (
            ["train", "--resume", str(damaged)],
            ["eval", str(damaged), "--episodes", "2"],
        ):
            if run(words) == 0:  # a model file has a config of its own
                assert words[0] == "eval"
                assert "algorithm" in change or "backbone" in change
            assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "1" * 100_000, '{"format": 2, "format": 2}', '{"format": 2, "spec": 1e999}'],
    ids=["deep", "digits", "twice", "infinite"],
)
@pytest.mark.parametrize("name", [run_folder.CONFIG, run_folder.RESULT])
def test_hostile_json_in_a_run_is_told(
    capsys: Capture, damaged: Path, name: str, text: str
) -> None:
    (damaged / name).write_text(text)
    for words in (
        ["train", "--resume", str(damaged)],
        ["export", str(damaged), "--name", "protonet.x", "--out", str(damaged / "x")],
    ):
        error, hint = failure(capsys, 1, *words)
        assert name in error
        assert hint


def test_a_run_in_a_folder_whose_name_is_not_text(fresh_python: Forks, tmp_path: Path) -> None:
    """Printed to a stdout that accepts UTF-8 only."""
    parent = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sum\xe9")
    quick = "--ways 3 --queries 3 --train-ways 3 --train-queries 2 --steps 2 --validate-every 1"
    quick += " --validation-episodes 2 --test-episodes 4 --device cpu --backbone-width 4"
    words = ["train", "protonet", *quick.split(), "--out", f"{parent}/run"]
    code = (
        "import sys\nfrom metazoo.cli import run\n"
        "sys.stdout.reconfigure(encoding='utf-8', errors='strict')\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    done = fresh_python.run(code, *words)
    assert done.returncode == 0, done.stderr
    assert r"r\udce9sum\udce9/run: 3-way 1-shot test accuracy" in done.stdout
    assert "run folder: " in done.stderr
    names = os.listdir(f"{parent}/run")
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {run_folder.RESULT, run_folder.BEST, run_folder.CURVE} <= set(names)


def test_damaged_metrics_cost_the_curve_only(capsys: Capture, damaged: Path) -> None:
    path = damaged / run_folder.METRICS
    whole = path.read_text()
    path.write_text("nonsense\n" + whole + '{"step": 1e400}\n{"step": 1, "loss": NaN}\n')
    told = f"warning: 3 damaged lines of {path} are left out"
    for words in (["train", "--resume"], ["eval", "--episodes", "2"]):
        _, err = output(capsys, words[0], *words[1:], str(damaged))
        assert (told in err) == (words[0] == "train")
    assert path.read_text() == whole
    (damaged / run_folder.CURVE).unlink()
    path.write_text(whole + "nonsense\n")
    _, err = output(capsys, "train", "--resume", str(damaged), "--progress", "bar")
    assert "1 damaged lines" in err
    assert "validation accuracy" in err


def test_a_damaged_checkpoint_is_told(capsys: Capture, damaged: Path, protonet_run: Path) -> None:
    last = damaged / run_folder.LAST
    whole = last.read_bytes()
    for data in (b"", whole[:100], whole[:-1], b"\x00" * 100):
        last.write_bytes(data)
        assert run_folder.LAST in failure(capsys, 1, "train", "--resume", str(damaged))[0]
    last.write_bytes((protonet_run / run_folder.BEST).read_bytes())  # a checkpoint, but no state
    assert "does not fit this run" in failure(capsys, 1, "train", "--resume", str(damaged))[0]
    last.write_bytes(whole)
    tensors, state = load_tensors(last)
    save_tensors(last, {name: t[..., :1] for name, t in tensors.items() if t.dim()}, state)
    assert "does not fit this run" in failure(capsys, 1, "train", "--resume", str(damaged))[0]
    (damaged / run_folder.BEST).write_bytes(b"")
    assert run_folder.BEST in failure(capsys, 1, "eval", str(damaged))[0]
