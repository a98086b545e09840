"""The command line: what it prints, and whether to stdout or to stderr."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from commands import Capture, failure, output

import metazoo.plugins.error_source
from metazoo import options
from metazoo.base.recipe import Recipe
from metazoo.cli import echo_json, run
from metazoo.cli.commands import BUILT_IN
from metazoo.cli.training import FLAGS, PREFIXES
from metazoo.datasets.glyphs import Glyphs
from metazoo.plugins.registry import Plugin
from metazoo.zoo import run_folder

QUICK = shlex.split(
    "--ways 3 --queries 3 --train-ways 3 --train-queries 2 --steps 2 --validate-every 1 --validation-episodes 2 "
    "--test-episodes 4 --device cpu --data-alphabets 6 --backbone-width 4"
)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_json_never_holds_nan(value: float, capsys: Capture) -> None:
    echo_json({"results": [{"mean": value}]})
    assert json.loads(capsys.readouterr().out) == {"results": [{"mean": None}]}


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which $M is the program."""
    main = f"'{sys.executable}' -c 'from metazoo.cli import main; main()'"
    variables = {**os.environ, **environment}
    return subprocess.run(
        ["bash", "-c", line.replace("$M", main)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=variables,
    )


@pytest.mark.parametrize(
    "command", [[], *[[name] for name in BUILT_IN], ["train", "maml"], ["eval", "x"]]
)
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


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA error: out of memory\nand more")]
)
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


def test_the_traceback_is_there_whatever_asking_for_the_plugin_does(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    meets(KeyError("\n what"), monkeypatch)
    monkeypatch.setattr(metazoo.plugins.error_source, "registry", lambda: 1 / 0)
    assert run(["list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert "\nKeyError: " in err
    assert "ZeroDivisionError" not in err
    assert err.splitlines()[-2].startswith(
        f"error: unexpected error in metazoo {metazoo.__version__}: KeyError"
    )


def test_a_message_that_begins_with_an_empty_line_is_shown(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    meets(ArithmeticError("\n\n  the sum is wrong\nby one"), monkeypatch)
    assert run(["list"]) == 1
    assert capsys.readouterr().err.splitlines()[-2].endswith(": ArithmeticError: the sum is wrong")


def test_an_os_error_is_a_plugins_bug_where_it_is_and_a_full_disk_nobodys(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Plugin("near", "near", "near", "1.0")
    monkeypatch.setattr(
        metazoo.plugins.error_source,
        "at_fault",
        lambda error: metazoo.plugins.error_source.Fault(owner, "File x"),
    )
    meets(FileNotFoundError(2, "No such file", "tasks.txt"), monkeypatch)
    assert run(["list"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert (
        "error: plugin 'near' of near 1.0 has a bug: FileNotFoundError: [Errno 2] No such file: 'tasks.txt'\n"
        in err
    )
    meets(OSError(28, "No space left on device"), monkeypatch)
    assert failure(capsys, 1, "list")[0] == "error: No space left on device"
    monkeypatch.setattr(metazoo.plugins.error_source, "at_fault", lambda error: None)
    meets(FileNotFoundError(2, "No such file", "tasks.txt"), monkeypatch)
    assert failure(capsys, 1, "list")[0] == "error: No such file: tasks.txt"


def test_sizes_beyond_numbers_are_told(capsys: Capture, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    for width in (10**30, 2**62):
        words = ["train", *QUICK, "protonet", "--backbone-width", str(width), *out]
        error, hint = failure(capsys, 2, *words)
        assert error.startswith("error: the network cannot be built: ")
        assert hint == "hint: make it smaller"
        words = ["train", *QUICK, "maml", "--inner-steps", str(width), *out]
        error, hint = failure(capsys, 2, *words)
        assert error == f"error: --inner-steps cannot be '{width}'"
        assert "from 1 to 10,000" in hint


def test_data_whose_model_could_not_be_read_again_are_not_trained_on(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Glyphs, "input_format", property(lambda self: {"size": 28}))
    error, _ = failure(capsys, 1, "train", "protonet", *QUICK, "--out", str(tmp_path / "run"))
    assert "data set 'glyphs' has an invalid input_format: " in error
    assert not (tmp_path / "run").exists()


def test_the_version(capsys: Capture) -> None:
    assert metazoo.__version__ in output(capsys, "--version")[0]


def test_help_shows_the_options_of_algorithm_data_set_and_backbone(capsys: Capture) -> None:
    out = output(capsys, "train", "maml", "--dataset", "omniglot", "--backbone=resnet12", "-h")[0]
    for part in (
        "Options of maml",
        "--inner-lr",
        "Options of data set omniglot",
        "--data-rotations / --no-data-rotations",
        "Options of backbone resnet12",
        "--backbone-scale",
        "Training:",
        "--meta-batch",
        "--resume",
    ):
        assert part in out, part
    assert re.search(
        r"--meta-batch INTEGER[^\[]*\[default:\s+8\]", out
    )  # maml's own, not the recipe's 1
    for words in (["protonet"], ["--dataset", "glyphs"], ["--data-seed=1"], ["--backbone=conv4"]):
        out = output(capsys, "train", *words, "-h")[0]
        assert "Options of data set glyphs" in out
        assert "Options of backbone conv4" in out
        assert "--inner-lr" not in out
    # Without a name it imports no plugin, and shows the options that every run has.
    out = output(capsys, "train", "-h")[0]
    assert "Training:" in out
    assert "Options of" not in out
    assert "--data-low" in output(capsys, "train", "maml", "--dataset=sinusoid", "-h")[0]


def test_the_help_of_eval_shows_what_the_model_was_trained_on(
    capsys: Capture, protonet_run: Path
) -> None:
    out = output(capsys, "eval", str(protonet_run), "-h")[0]
    assert re.search(r"--data-alphabets INTEGER[^\[]*\[default:\s+6\]", out)


def test_a_program_without_a_command_explains_itself_on_stderr(capsys: Capture) -> None:
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: metazoo")


def test_a_shell_that_completes_words_is_told_nothing(capsys: Capture) -> None:
    assert (
        metazoo.cli.cli.get_command(
            click.Context(metazoo.cli.cli, resilient_parsing=True), "nonsense"
        )
        is None
    )
    assert capsys.readouterr() == ("", "")


def test_the_flags_that_algorithms_may_not_take_are_those_of_train() -> None:
    train = metazoo.cli.cli.get_command(click.Context(metazoo.cli.cli), "train")
    assert train is not None
    own = {
        word.lstrip("-").replace("-", "_")
        for parameter in train.get_params(click.Context(train))
        for word in [*parameter.opts, *parameter.secondary_opts]
        if word.startswith("--")
    }
    assert own == set(FLAGS)
    # The others come from Config classes: those of the recipe are checked when a plugin is registered.
    assert not own & {option.name for option in options.read(Recipe)}
    named = ["maml", "--dataset", "folder", "--backbone", "resnet12"]
    context = train.make_context("train", [*named, "-h"], resilient_parsing=True)
    prefixes = {section.prefix for section in context.meta["sections"]} - {""}
    assert {prefix.replace("-", "_") for prefix in prefixes} == set(PREFIXES)


def test_list_shows_all_that_is_built_in(capsys: Capture) -> None:
    found = json.loads(output(capsys, "list", "--json")[0])
    names = {kind: {item["name"] for item in items} for kind, items in found.items()}
    assert {"maml", "protonet", "matching", "baseline"} <= names["algorithms"]
    assert {"conv4", "resnet12", "mlp"} <= names["backbones"]
    assert {"glyphs", "omniglot", "mnist", "folder", "packed", "sinusoid"} <= names["datasets"]
    assert all(item["summary"] and item["from"] for kind in found for item in found[kind])
    own = [
        item
        for kind in found
        for item in found[kind]
        if item["from"] == f"metazoo {metazoo.__version__}"
    ]
    assert len(own) >= 12
    table, _ = output(capsys, "list")
    assert all(
        item["name"] in table and item["summary"] in table for kind in found for item in found[kind]
    )
    (large,) = (item for item in found["pretrained"] if item["name"] == "protonet.omniglot_large")
    assert re.fullmatch(
        r"9\d\.\d\d ± 0\.\d\d %  omniglot, 5-way 1-shot, inductive", large["summary"]
    )
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
    assert (folder / run_folder.CURVE).stat().st_size > 1000
    # A run that is finished is not begun again.
    again, err = output(capsys, "train", "--resume", str(folder), "--json")
    assert json.loads(again) == {
        "run": str(folder),
        **json.loads((folder / run_folder.RESULT).read_text()),
    }
    assert "is already finished" in err


def test_a_training_that_learned_nothing_says_so(capsys: Capture, tmp_path: Path) -> None:
    told = "note: this is no better than guessing"
    words = ["train", "protonet", *QUICK, "--backbone-width", "16", "--steps", "30", "--out"]
    assert (
        told not in output(capsys, *words, str(tmp_path / "learned"), "--test-episodes", "100")[1]
    )
    # A head of zeros without an inner step says the same of every query: the mean is that of guessing, and has no interval.
    words = [
        "train",
        "maml",
        *QUICK,
        "--zero-head",
        "--lr",
        "0",
        "--eval-inner-steps",
        "0",
        "--out",
    ]
    assert told in output(capsys, *words, str(tmp_path / "not"), "--test-episodes", "100")[1]


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
        assert (
            run_folder.read_blueprint(tmp_path / str(number)).algorithm_options["distance"]
            == "cosine"
        )
    assert all(result == results[0] for result in results)


def test_train_of_a_regression(capsys: Capture, tmp_path: Path) -> None:
    words = "train maml --dataset sinusoid --steps 2 --validation-episodes 2 --test-episodes 4"
    shown = ["--progress", "bar", "--out", str(tmp_path / "run")]
    out, err = output(capsys, *shlex.split(words), *shown)
    assert re.search(
        r"10-shot test mse \d+\.\d{4} ± \d+\.\d{4} \(95 % interval, 4 tasks, inductive\)$",
        out.strip(),
    )
    assert "step      2/2" in err
    assert "validation mse:" in err


@pytest.mark.parametrize("progress", ["bar", "lines", "none"])
def test_progress_is_shown_on_stderr_as_asked(
    capsys: Capture, tmp_path: Path, progress: str
) -> None:
    out, err = output(
        capsys, "train", "protonet", *QUICK, "--out", str(tmp_path / "run"), "--progress", progress
    )
    assert len(out.splitlines()) == 1
    assert ("validation" in err) == (progress != "none")
    assert ("chance 33.3%" in err) == (progress != "none")
    assert ("step      2/2  loss" in err) == (progress != "none")
    assert ("\nvalidation accuracy (chance 33.3%):\n" in err) == (progress == "bar")  # the plot


def test_without_out_runs_are_numbered(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert (
            json.loads(output(capsys, "train", "protonet", *QUICK, "--json")[0])["run"]
            == f"runs/protonet-glyphs-{number}"
        )


def test_none_is_none_and_not_the_recipe_of_the_algorithm(capsys: Capture, tmp_path: Path) -> None:
    for words, wanted in ((["--clip-grad", "none"], None), (["--clip-grad", "3"], 3.0), ([], 10.0)):
        folder = tmp_path / str(wanted)
        output(capsys, "train", "maml", *QUICK, *words, "--out", str(folder))
        assert run_folder.read_blueprint(folder).recipe.clip_grad == wanted


def test_export_prints_the_card(capsys: Capture, protonet_run: Path, tmp_path: Path) -> None:
    words = [
        "export",
        str(protonet_run),
        "--name",
        "protonet.tiny-1_a",
        "--episodes",
        "4",
        "--shots",
        "1,2",
    ]
    out, _ = output(capsys, *words, "--summary", "tiny", "--out", str(tmp_path / "a"), "--json")
    card = json.loads(out)
    assert card == json.loads((tmp_path / "a" / "protonet.tiny-1_a.json").read_text())
    assert [r["shots"] for r in card["results"]] == [1, 2]
    out, err = output(capsys, *words, "--out", str(tmp_path / "b"))
    assert out.count("protonet.tiny-1_a") == 2
    assert str(tmp_path / "b" / "protonet.tiny-1_a.json") in err


def test_export_where_a_card_is_damaged_or_stands_alone(
    capsys: Capture, protonet_run: Path, other_run: Path, tmp_path: Path
) -> None:
    words = ["--name", "protonet.tiny", "--episodes", "4", "--out", str(tmp_path)]
    output(capsys, "export", str(protonet_run), *words)
    card, weights = tmp_path / "protonet.tiny.json", tmp_path / "protonet.tiny.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # they may be elsewhere
    assert (
        failure(capsys, 2, "export", str(other_run), *words)[0]
        == f"error: {card} exists and describes another model of that name"
    )
    weights.write_bytes(whole[:-1])  # the way to mend them is to export the model again
    output(capsys, "export", str(protonet_run), *words)
    assert weights.read_bytes() == whole
    card.write_text("my notes")
    assert (
        failure(capsys, 2, "export", str(protonet_run), *words)[0]
        == f"error: {card} exists and is not a model card"
    )
    assert card.read_text() == "my notes"
    card.unlink()
    assert (
        failure(capsys, 2, "export", str(other_run), *words)[0]
        == f"error: {weights} exists and belongs to another model"
    )


def test_export_takes_no_other_models_place(
    capsys: Capture, protonet_run: Path, other_run: Path, tmp_path: Path
) -> None:
    words = ["--name", "protonet.tiny", "--episodes", "4", "--out", str(tmp_path), "--json"]
    first = output(capsys, "export", str(protonet_run), *words)[0]
    assert (
        output(capsys, "export", str(protonet_run), *words)[0] == first
    )  # the same one may be measured again
    weights = tmp_path / "protonet.tiny.safetensors"
    there = weights.read_bytes()
    error, hint = failure(capsys, 2, "export", str(other_run), *words)
    assert (
        error
        == f"error: {tmp_path / 'protonet.tiny.json'} exists and describes another model of that name"
    )
    assert "another --name or --out" in hint
    assert weights.read_bytes() == there
    assert json.loads((tmp_path / "protonet.tiny.json").read_text()) == json.loads(first)


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
    done = shell(
        f"$M eval '{protonet_run}' --episodes 2", tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert done.returncode == 0, done.stderr
    assert "3-way 1-shot" in done.stdout
