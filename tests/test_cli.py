"""The command line: what it prints where, and that no mistake of a user's ends in a traceback."""

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

import metazoo.blame
from metazoo import registrable, runs
from metazoo.checkpoint import load_tensors, save_tensors
from metazoo.cli import BUILT_IN, run
from metazoo.datasets.glyphs import Glyphs
from metazoo.plugins import Plugin

Capture = pytest.CaptureFixture[str]
QUICK = shlex.split(
    "--ways 3 --queries 3 --train-ways 3 --train-queries 2 --steps 2 --validate-every 1 --validation-episodes 2 "
    "--test-episodes 4 --device cpu --data-alphabets 6 --backbone-width 4"
)


def output(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """Run a command that must succeed; return stdout and stderr."""
    status = run(list(arguments))
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out, captured.err


def failure(capsys: Capture, status: int, *arguments: str) -> tuple[str, str]:
    """Run a command that must fail in words, with nothing on stdout; return its error and its hint."""
    assert run(list(arguments)) == status, arguments
    out, err = capsys.readouterr()
    assert out == "", arguments
    lines = err.splitlines()
    assert lines[0].startswith("error: "), err
    assert "Traceback" not in err
    assert len(lines) <= 3, err
    hints = [line for line in lines[1:] if line.startswith("hint: ")]
    return lines[0], hints[0] if hints else ""


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which $M is the program."""
    main = f"'{sys.executable}' -c 'from metazoo.cli import main; main()'"
    variables = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line.replace("$M", main)], cwd=cwd, capture_output=True, text=True, env=variables)


@pytest.mark.parametrize("command", [[], *[[name] for name in BUILT_IN], ["train", "maml"], ["eval", "x"]])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(capsys: Capture, command: list[str], flag: str) -> None:
    out, err = output(capsys, *command, flag)
    assert out.startswith("Usage: metazoo")
    assert all(len(line) <= 110 for line in out.splitlines())
    assert "--help" in out
    assert err == ""


def meets(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every command end in this exception."""

    def main(**words: Any) -> None:
        raise error

    monkeypatch.setattr(metazoo.cli.cli, "main", main)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory\nand more")])
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train", "--meta-batch"),
        *((name, "--device") for name in ("eval", "predict", "export")),
        *((name, "") for name in ("list", "push", "data", "plugins", "info", "of-a-plugin")),
    ],
)
def test_too_little_memory_is_told_with_what_the_command_can_do(
    command: str, flag: str, error: Exception, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flag:
        assert flag in output(capsys, command, "--help")[0]
    meets(error, monkeypatch)
    said, hint = failure(capsys, 1, command, "x")
    assert said.startswith(f"error: out of memory: {type(error).__name__}: ")
    assert re.findall(r"--[a-z-]+", hint) == ([flag] if flag else [])
    assert bool(hint) == bool(flag)


def test_the_traceback_is_there_whatever_asking_for_the_plugin_does(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    meets(KeyError("\n what"), monkeypatch)
    monkeypatch.setattr(metazoo.blame, "registry", lambda: 1 / 0)
    assert run(["list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "\nKeyError: " in err
    assert "ZeroDivisionError" not in err
    assert err.splitlines()[-2].startswith(
        f"error: metazoo {metazoo.__version__} met an error that it did not foresee: KeyError"
    )


def test_a_message_that_begins_with_an_empty_line_is_shown(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    meets(ArithmeticError("\n\n  the sum is wrong\nby one"), monkeypatch)
    assert run(["list"]) == 1
    assert capsys.readouterr().err.splitlines()[-2].endswith(": ArithmeticError: the sum is wrong")


def test_an_os_error_is_a_plugins_bug_where_it_is_and_a_full_disk_nobodys(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Plugin("near", "near", "near", "1.0")
    monkeypatch.setattr(metazoo.blame, "at_fault", lambda error: metazoo.blame.Fault(owner, "File x"))
    meets(FileNotFoundError(2, "No such file", "tasks.txt"), monkeypatch)
    assert run(["list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "error: plugin 'near' of near 1.0 has a bug: FileNotFoundError: [Errno 2] No such file: 'tasks.txt'\n" in err
    meets(OSError(28, "No space left on device"), monkeypatch)
    assert failure(capsys, 1, "list")[0] == "error: No space left on device"
    monkeypatch.setattr(metazoo.blame, "at_fault", lambda error: None)
    meets(FileNotFoundError(2, "No such file", "tasks.txt"), monkeypatch)
    assert failure(capsys, 1, "list")[0] == "error: No such file: tasks.txt"


def test_sizes_beyond_numbers_are_told(capsys: Capture, tmp_path: Path) -> None:
    for steps in (10**30, 2**62):
        words = ["train", "maml", *QUICK, "--inner-steps", str(steps), "--out", str(tmp_path / "run")]
        error, hint = failure(capsys, 2, *words)
        assert error.startswith("error: the network cannot be made: ")
        assert hint == "hint: make it smaller"
    error, hint = failure(capsys, 2, "train", "protonet", *QUICK, "--backbone-width", str(10**30))
    assert error.startswith("error: the network cannot be made: ")


def test_data_whose_model_could_not_be_read_again_are_not_trained_on(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Glyphs, "input_format", property(lambda self: {"size": 28}))
    error, _ = failure(capsys, 1, "train", "protonet", *QUICK, "--out", str(tmp_path / "run"))
    assert "data set 'glyphs' cannot be used: 'input_format' is not" in error
    assert not (tmp_path / "run").exists()


def test_the_version(capsys: Capture) -> None:
    assert metazoo.__version__ in output(capsys, "--version")[0]


def test_help_shows_the_options_of_algorithm_data_set_and_backbone(capsys: Capture) -> None:
    out = output(capsys, "train", "maml", "--dataset", "omniglot", "--backbone=resnet12", "-h")[0]
    for part in ("Options of maml", "--inner-lr", "Options of data set omniglot", "--data-rotations / --no-data-rotations",
                 "Options of backbone resnet12", "--backbone-scale", "Training:", "--meta-batch", "--resume"):  # fmt: skip
        assert part in out, part
    assert re.search(r"--meta-batch INTEGER[^\[]*\[default:\s+8\]", out)  # maml's own, not the recipe's 1
    out = output(capsys, "train", "-h")[0]
    assert "Options of data set glyphs" in out
    assert "--inner-lr" not in out
    assert "--data-low" in output(capsys, "train", "maml", "--dataset=sinusoid", "-h")[0]


def test_the_help_of_eval_shows_what_the_model_was_trained_on(capsys: Capture, protonet_run: Path) -> None:
    out = output(capsys, "eval", str(protonet_run), "-h")[0]
    assert re.search(r"--data-alphabets INTEGER[^\[]*\[default:\s+6\]", out)


def test_a_program_without_a_command_explains_itself_on_stderr(capsys: Capture) -> None:
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: metazoo")


def test_plugins_may_not_take_the_name_of_a_built_in_command() -> None:
    assert set(BUILT_IN) == registrable.COMMANDS


def test_list_shows_all_that_is_built_in(capsys: Capture) -> None:
    found = json.loads(output(capsys, "list", "--json")[0])
    names = {kind: {item["name"] for item in items} for kind, items in found.items()}
    assert {"maml", "protonet", "matching", "baseline"} <= names["algorithms"]
    assert {"conv4", "resnet12", "mlp"} <= names["backbones"]
    assert {"glyphs", "omniglot", "mnist", "folder", "packed", "sinusoid"} <= names["datasets"]
    assert all(item["summary"] and item["from"] for kind in found for item in found[kind])
    own = [item for kind in found for item in found[kind] if item["from"] == f"metazoo {metazoo.__version__}"]
    assert len(own) >= 12
    table, _ = output(capsys, "list")
    assert all(item["name"] in table and item["summary"] in table for kind in found for item in found[kind])
    only = json.loads(output(capsys, "list", "datasets", "--json")[0])
    assert only == {"datasets": found["datasets"]}


def test_plugins_and_info(capsys: Capture) -> None:
    found = json.loads(output(capsys, "plugins", "--json")[0])
    own = {p["name"]: p for p in found["plugins"] if p["distribution"] == "metazoo"}
    assert own["maml"]["provides"] == {"algorithms": ["maml"]}
    assert all(p["problem"] is None for p in own.values())
    table = output(capsys, "plugins")[0]
    assert "works" in table
    assert "algorithms: maml" in table
    facts = json.loads(output(capsys, "info", "--json")[0])
    assert facts["metazoo"] == metazoo.__version__
    assert facts["devices"][0] == "cpu"
    assert f"metazoo:        {metazoo.__version__}" in output(capsys, "info")[0]


def test_train_prints_its_result_alone(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    out, err = output(capsys, "train", "protonet", *QUICK, "--out", str(folder))
    assert re.fullmatch(
        rf"{folder}: 3-way 1-shot test accuracy \d+\.\d\d ± \d+\.\d\d % \(95 % interval, 4 tasks, inductive, chance 33\.3%\)\n",
        out,
    )
    assert f"run folder: {folder}" in err
    assert (folder / runs.CURVE).stat().st_size > 1000
    # A run that is finished is not begun again.
    again, err = output(capsys, "train", "--resume", str(folder), "--json")
    assert json.loads(again) == {"run": str(folder), **json.loads((folder / runs.RESULT).read_text())}
    assert "is finished already" in err


def test_train_in_any_order_of_words(capsys: Capture, tmp_path: Path) -> None:
    orders = (
        ["protonet", *QUICK, "--distance", "cosine", "--dataset=glyphs"],
        [*QUICK, "--distance=cosine", "protonet"],
        ["--dataset", "glyphs", "--distance", "cosine", "protonet", *QUICK],
        [*QUICK, "--backbone", "conv4", "protonet", "--distance", "cosine"],
    )
    results = []
    for number, words in enumerate(orders):
        out, _ = output(capsys, "train", *words, "--json", f"--out={tmp_path / str(number)}")
        result = json.loads(out)
        results.append({k: v for k, v in result.items() if k not in ("run", "seconds")})
        assert runs.read_blueprint(tmp_path / str(number)).algorithm_options["distance"] == "cosine"
    assert all(result == results[0] for result in results)


def test_train_of_a_regression(capsys: Capture, tmp_path: Path) -> None:
    words = "train maml --dataset sinusoid --steps 2 --validation-episodes 2 --test-episodes 4 --progress lines"
    out, err = output(capsys, *shlex.split(words), "--out", str(tmp_path / "run"))
    assert re.search(r"10-shot test mse \d+\.\d{4} ± \d+\.\d{4} \(95 % interval, 4 tasks, inductive\)$", out.strip())
    assert "step      2/2" in err
    assert "validation mse:" in err


@pytest.mark.parametrize("progress", ["bar", "lines", "none"])
def test_progress_is_shown_on_stderr_as_asked(capsys: Capture, tmp_path: Path, progress: str) -> None:
    out, err = output(capsys, "train", "protonet", *QUICK, "--out", str(tmp_path / "run"), "--progress", progress)
    assert len(out.splitlines()) == 1
    assert ("validation" in err) == (progress != "none")
    assert ("chance 33.3%" in err) == (progress != "none")


def test_without_out_runs_are_numbered(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert json.loads(output(capsys, "train", "protonet", *QUICK, "--json")[0])["run"] == f"runs/protonet-glyphs-{number}"


def test_none_is_none_and_not_the_recipe_of_the_algorithm(capsys: Capture, tmp_path: Path) -> None:
    for words, wanted in ((["--clip-grad", "none"], None), (["--clip-grad", "3"], 3.0), ([], 10.0)):
        folder = tmp_path / str(wanted)
        output(capsys, "train", "maml", *QUICK, *words, "--out", str(folder))
        assert runs.read_blueprint(folder).recipe["clip_grad"] == wanted


MISTAKES: dict[str, tuple[int, str, str]] = {
    "nonsense": (2, "No such command 'nonsense'", "metazoo --help"),
    "list nonsense": (2, "'nonsense' is not one of", "metazoo list --help"),
    "list --nonsense": (2, "No such option '--nonsense'", "metazoo list --help"),
    "info nonsense": (2, "unexpected extra argument", "metazoo info --help"),
    "train": (2, "Missing argument 'ALGORITHM'", "metazoo train --help"),
    "train mamel": (2, "no algorithm named 'mamel'", "did you mean 'maml'"),
    "train --steps 5 mamel": (2, "no algorithm named 'mamel'", "did you mean 'maml'"),
    "train maml --dataset omniglott": (2, "no data set named 'omniglott'", "did you mean 'omniglot'"),
    "train maml --backbone conv5": (2, "no backbone named 'conv5'", "did you mean 'conv4'"),
    "train maml --steps x": (2, "--steps cannot be 'x'", "a whole number of at least 1"),
    "train maml --steps 0": (2, "--steps cannot be '0'", "a whole number of at least 1"),
    "train maml --steps 1.5": (2, "--steps cannot be '1.5'", "a whole number"),
    "train maml --lr nan": (2, "--lr cannot be 'nan'", "a number of at least 0"),
    "train maml --lr -1": (2, "--lr cannot be '-1'", "a number of at least 0"),
    "train maml --seed 99999999999999999999": (2, "--seed cannot be", "a whole number"),
    "train maml --optimizer adamm": (2, "--optimizer cannot be 'adamm'", "one of adam, adamw, sgd, nesterov"),
    "train maml --inner-lr fast": (2, "--inner-lr cannot be 'fast'", "a number"),
    "train protonet --inner-lr 1": (2, "No such option '--inner-lr'", "metazoo train --help"),
    "train maml --data-alphabets 1": (2, "--data-alphabets cannot be '1'", "a whole number from 6"),
    "train maml --backbone-width 0": (2, "--backbone-width cannot be '0'", "a whole number"),
    "train maml --steps": (2, "'--steps' requires an argument", "--help"),
    "train maml protonet": (2, "unexpected extra argument", "metazoo train --help"),
    "train maml --device abacus": (2, "device 'abacus' cannot be used", "use cpu"),
    "train maml --data-alphabets 6 --ways 50 --train-ways 5": (1, "20 classes, but a task needs 50", "fewer ways"),
    "train maml --data-alphabets 6 --shots 50": (1, "20 examples, but a task needs 50", "fewer shots"),
    "train maml --dataset folder": (2, "needs to know which folder", "--data-root"),
    "train maml --dataset folder --data-root nowhere": (1, "nowhere", "check the path"),
    "train baseline --dataset sinusoid": (2, "algorithm 'baseline'", ""),
    "train maml --dataset sinusoid --backbone conv4": (2, "backbone 'conv4' takes images", "mlp"),
    "train --resume nowhere": (1, "there is no run folder nowhere", "metazoo train"),
    "train --resume RUN --steps 9": (2, "--steps cannot be given", "metazoo train --resume"),
    "train protonet --resume RUN": (2, "algorithm cannot be given", "metazoo train --resume"),
    "train --resume RUN --lr 0.1": (2, "--lr cannot be given", "metazoo train --resume"),
    "train protonet --data-alphabets 6 --out RUN": (2, "exists already", "--resume"),
    "train protonet --data-alphabets 6 --out RUN/config.json/x": (1, "cannot be made", "another --out"),
    "train protonet --data-alphabets 6 --out /proc/nothing/x": (1, "cannot be made", "another --out"),
    "train protonet --progress loud": (2, "'loud' is not one of", "metazoo train --help"),
    "eval": (2, "Missing argument 'MODEL...'", "metazoo eval --help"),
    "eval protonet.nothing": (2, "no pretrained model named 'protonet.nothing'", "metazoo list"),
    "eval nowhere/nothing": (2, "no run folder or model file nowhere/nothing", "metazoo list"),
    "eval RUN/metrics.jsonl": (1, "damaged or no checkpoint of metazoo", "fetch it again"),
    "eval RUN/..": (1, "is not a run folder", "metazoo train"),
    "eval RUN --ways 1": (2, "--ways cannot be '1'", "at least 2"),
    "eval RUN --ways 5,": (2, "--ways cannot be '5,'", "separated by commas"),
    "eval RUN --shots 0": (2, "--shots cannot be '0'", "at least 1"),
    "eval RUN --episodes 1": (2, "'--episodes'", "metazoo eval --help"),
    "eval RUN --seed -1": (2, "'--seed'", "metazoo eval --help"),
    "eval RUN --seed 99999999999999999999": (2, "'--seed'", "metazoo eval --help"),
    "eval RUN --split dev": (1, "has no split 'dev'", "train, val, test"),
    "eval RUN --ways 500": (1, "20 classes, but a task needs 500", "fewer ways"),
    "eval RUN --shots 500": (1, "20 examples, but a task needs 500", "fewer shots"),
    "eval RUN --protocol official": (2, "has no protocol 'official'", "it has none"),
    "eval RUN --protocol official --ways 5": (2, "--protocol brings tasks of its own", "leave out"),
    "eval RUN --dataset nothing": (2, "no data set named 'nothing'", "metazoo list"),
    "eval RUN --dataset sinusoid": (2, "is a classification model", "another --dataset"),
    "eval RUN --data-rotations": (2, "No such option '--data-rotations'", "metazoo eval --help"),
    "eval RUN -o distance": (2, "not of the form NAME=VALUE", ""),
    "eval RUN -o distance=far": (2, "'distance' cannot be 'far'", "euclidean, cosine"),
    "eval RUN -o distanc=cosine": (2, "no option 'distanc'", "did you mean 'distance'"),
    "eval RUN -o distance=cosine": (1, "they have no 'log_scale'", "cannot be changed after training"),
    "eval RUN --device abacus": (2, "device 'abacus'", "use cpu"),
    "eval SINE --ways 5": (2, "--ways means nothing here", "leave it out"),
    "export RUN": (2, "Missing option '--name'", "metazoo export --help"),
    "export RUN --name protonet.x": (2, "Missing option '--out'", "metazoo export --help"),
    "export RUN --name maml.x --out OUT": (2, "'maml.x' is no name for this model", "protonet.TAG"),
    "export RUN --name protonet.a/b --out OUT": (2, "is no name for this model", "protonet.TAG"),
    "export RUN --name protonet --out OUT": (2, "is no name for this model", "protonet.TAG"),
    "export nowhere --name protonet.x --out OUT": (1, "there is no run folder nowhere", "metazoo train"),
    "export RUN --name protonet.x --episodes 2 --out RUN/config.json": (1, "config.json", ""),
    "predict": (2, "Missing option '--support'", "metazoo predict --help"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_words(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, protonet_run: Path, sinusoid_run: Path
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
    (folder / runs.RESULT).unlink()
    return folder


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9}', "\x00"])
def test_a_damaged_config_is_told(capsys: Capture, damaged: Path, text: str) -> None:
    (damaged / runs.CONFIG).write_text(text)
    for words in (["train", "--resume", str(damaged)], ["eval", str(damaged)], ["export", str(damaged), "--name", "protonet.x",
                  "--out", str(damaged / "x")]):  # fmt: skip
        assert runs.CONFIG in failure(capsys, 1, *words)[0]


def test_a_config_of_wrong_values_is_told(capsys: Capture, damaged: Path) -> None:
    config = json.loads((damaged / runs.CONFIG).read_text())
    changes: list[dict[str, Any]] = [
        {"recipe": {"ways": "x"}}, {"dataset_options": []}, {"dataset_options": {"alphabets": "x"}}, {"spec": None},
        {"algorithm": "nothing"}, {"recipe": None}, {"backbone": None}, {"dataset": "nothing"},
    ]  # fmt: skip
    for change in changes:
        (damaged / runs.CONFIG).write_text(json.dumps({**config, **change}))
        for words in (["train", "--resume", str(damaged)], ["eval", str(damaged), "--episodes", "2"]):
            if run(words) == 0:  # a model file has a config of its own
                assert words[0] == "eval"
                assert "algorithm" in change or "backbone" in change
            assert "Traceback" not in capsys.readouterr().err


def test_damaged_metrics_are_told(capsys: Capture, damaged: Path) -> None:
    path = damaged / runs.METRICS
    path.write_text("nonsense\n" + path.read_text())
    error, hint = failure(capsys, 1, "train", "--resume", str(damaged))
    assert f"line 1 of {path} is damaged" in error
    assert hint


def test_a_damaged_checkpoint_is_told(capsys: Capture, damaged: Path, protonet_run: Path) -> None:
    last = damaged / runs.LAST
    whole = last.read_bytes()
    for data in (b"", whole[:100], whole[:-1], b"\x00" * 100):
        last.write_bytes(data)
        assert runs.LAST in failure(capsys, 1, "train", "--resume", str(damaged))[0]
    last.write_bytes((protonet_run / runs.BEST).read_bytes())  # a checkpoint, but no state
    assert "does not fit this run" in failure(capsys, 1, "train", "--resume", str(damaged))[0]
    last.write_bytes(whole)
    tensors, state = load_tensors(last)
    save_tensors(last, {name: t[..., :1] for name, t in tensors.items() if t.dim()}, state)
    assert "does not fit this run" in failure(capsys, 1, "train", "--resume", str(damaged))[0]
    (damaged / runs.BEST).write_bytes(b"")
    assert runs.BEST in failure(capsys, 1, "eval", str(damaged))[0]


def test_eval_gives_a_row_for_every_task(capsys: Capture, protonet_run: Path) -> None:
    words = ["eval", str(protonet_run), "--ways", "2,3", "--shots", "1, 2", "--episodes", "10"]
    out, err = output(capsys, *words, "--json")
    found = json.loads(out)
    assert err == ""
    assert [(r["ways"], r["shots"]) for r in found["results"]] == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert all(r["tasks"] == 10 and r["queries"] == 3 and r["split"] == "test" for r in found["results"])
    assert found["differences"] == []
    table = output(capsys, *words)[0].splitlines()
    assert len(table) == 5
    assert re.search(r"glyphs +2-way 1-shot +accuracy +\d+\.\d\d ± \d+\.\d\d % +10 +inductive$", table[1])


def test_eval_by_default_draws_the_tasks_that_training_was_tested_on(capsys: Capture, protonet_run: Path) -> None:
    out, _ = output(capsys, "eval", str(protonet_run), "--episodes", "4", "--json")
    row = json.loads(out)["results"][0]
    tested = json.loads((protonet_run / runs.RESULT).read_text())
    assert {key: row[key] for key in ("mean", "interval", "tasks", "seed", "split")} == {
        key: tested[key] for key in ("mean", "interval", "tasks", "seed", "split")
    }
    other = json.loads(output(capsys, "eval", str(protonet_run), "--episodes", "4", "--seed", "5", "--json")[0])["results"][0]
    assert (other["seed"], other["mean"]) != (row["seed"], row["mean"])


def test_a_model_differs_from_itself_by_nothing(capsys: Capture, protonet_run: Path) -> None:
    best = str(protonet_run / runs.BEST)
    out, _ = output(capsys, "eval", str(protonet_run), best, "--shots", "1,2", "--episodes", "20", "--json")
    found = json.loads(out)
    assert [r["mean"] for r in found["results"][:2]] == [r["mean"] for r in found["results"][2:]]
    assert [(d["mean"], d["interval"], d["shots"], d["tasks"]) for d in found["differences"]] == [(0, 0, 1, 20), (0, 0, 2, 20)]
    assert all((d["model"], d["minus"]) == (best, str(protonet_run)) for d in found["differences"])
    table = output(capsys, "eval", str(protonet_run), best, "--episodes", "20")[0]
    assert re.search(r"paired difference.*\n.* 0\.00 ± 0\.00 % ", table)


def test_paired_differences_know_more_than_two_intervals(
    capsys: Capture, protonet_run: Path, other_run: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(other_run, again)
    config = json.loads((again / runs.CONFIG).read_text())
    config["recipe"]["seed"] = 1  # of its training; the tasks are those of the first model
    (again / runs.CONFIG).write_text(json.dumps(config))
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
    out, _ = output(capsys, *words, "-o", "views=shifted", "-o", "distance=euclidean")
    assert "inductive, views=shifted, distance=euclidean" in " ".join(out.split())
    out, _ = output(capsys, *words, "-o", "views=shifted", "--json")
    assert json.loads(out)["results"][0]["options"] == {"views": "shifted"}
    out, _ = output(capsys, *words, "--json")
    assert "options" not in json.loads(out)["results"][0]


def test_models_of_different_data_are_not_paired(
    capsys: Capture, protonet_run: Path, sinusoid_run: Path, damaged: Path
) -> None:
    words = ["eval", str(protonet_run), str(sinusoid_run), "--shots", "1,2", "--episodes", "4", "--json"]
    out, err = output(capsys, *words)
    found = json.loads(out)
    assert [r["metric"] for r in found["results"]] == ["accuracy", "accuracy", "mse", "mse"]
    assert found["differences"] == []
    assert "different data" in err
    # Without --shots each is given what it was trained for.
    out, _ = output(capsys, "eval", str(protonet_run), str(sinusoid_run), "--episodes", "4", "--json")
    assert [r["shots"] for r in json.loads(out)["results"]] == [
        runs.read_blueprint(run_folder).recipe["shots"] for run_folder in (protonet_run, sinusoid_run)
    ]
    config = json.loads((damaged / runs.CONFIG).read_text())
    config["dataset_options"]["seed"] = 1  # the same names of classes, other classes
    (damaged / runs.CONFIG).write_text(json.dumps(config))
    out, err = output(capsys, "eval", str(protonet_run), str(damaged), "--episodes", "4", "--json")
    assert json.loads(out)["differences"] == []
    assert "different data" in err
    out, err = output(capsys, "eval", str(protonet_run), str(damaged), "--episodes", "4", "--data-seed", "1", "--json")
    assert len(json.loads(out)["differences"]) == 1
    assert err == ""


def test_eval_on_other_data(capsys: Capture, protonet_run: Path) -> None:
    words = ["eval", str(protonet_run), "--dataset", "glyphs", "--episodes", "10", "--split", "val", "--json"]
    same = json.loads(output(capsys, *words)[0])["results"][0]
    other = json.loads(output(capsys, *words, "--data-seed", "3")[0])["results"][0]
    assert same["split"] == "val"
    assert same["mean"] != other["mean"]


def test_eval_with_other_options_of_the_algorithm(capsys: Capture, maml_run: Path) -> None:
    words = ["eval", str(maml_run), "--episodes", "20", "--json"]
    means = [json.loads(output(capsys, *words, "-o", f"eval-inner-steps={n}")[0])["results"][0]["mean"] for n in (0, 3)]
    assert means[0] != means[1]


def test_export_prints_the_card(capsys: Capture, protonet_run: Path, tmp_path: Path) -> None:
    words = ["export", str(protonet_run), "--name", "protonet.tiny-1_a", "--episodes", "4", "--shots", "1,2"]
    out, _ = output(capsys, *words, "--summary", "tiny", "--out", str(tmp_path / "a"), "--json")
    card = json.loads(out)
    assert card == json.loads((tmp_path / "a" / "protonet.tiny-1_a.json").read_text())
    assert [r["shots"] for r in card["results"]] == [1, 2]
    out, _ = output(capsys, *words, "--out", str(tmp_path / "b"))
    assert out.count("protonet.tiny-1_a") == 2


def test_the_reader_of_stdout_may_go(tmp_path: Path) -> None:
    done = shell("$M list | head -1; exit ${PIPESTATUS[1]}", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("algorithms")
    assert done.stderr == ""


@pytest.mark.slow
def test_a_closed_stdout_is_no_crash_and_a_full_one_is_told(tmp_path: Path) -> None:
    closed = shell("$M info >&-", tmp_path)
    assert (closed.returncode, closed.stderr) == (0, "")
    if Path("/dev/full").exists():
        full = shell("$M info >/dev/full", tmp_path)
        assert full.returncode == 1
        assert full.stderr == "error: No space left on device\n"


def test_an_ascii_terminal_gets_a_table_too(tmp_path: Path, protonet_run: Path) -> None:
    done = shell(f"$M eval '{protonet_run}' --episodes 2", tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "3-way 1-shot" in done.stdout


def test_a_measurement_shows_on_a_terminal_how_far_it_is(protonet_run: Path) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "metazoo", "eval", str(protonet_run), "--episodes", "40", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}) as process:
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
