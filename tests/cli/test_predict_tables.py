"""`metazoo predict` on tables of numbers and texts, on stdin, and into a file."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import failure

from metazoo.cli import run

CENTRES = {"low": (0.0, 0.0, 9.0), "mid": (5.0, 0.0, 0.0), "high": (9.0, 9.0, 0.0)}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def write(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def numbers(count: int, seed: int) -> tuple[list[list[Any]], list[str]]:
    """Return rows of three numbers around the centres, and their labels."""
    noise = np.random.default_rng(seed)
    labels = [list(CENTRES)[i % 3] for i in range(count)]
    return [[*(np.add(CENTRES[label], noise.normal(size=3)).round(3))] for label in labels], labels


@pytest.fixture(scope="module")
def support(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, labels = numbers(15, 0)
    lines = [[*row, label] for row, label in zip(rows, labels)]
    folder = tmp_path_factory.mktemp("tables")
    return write(folder / "labelled.csv", ["a", "b", "c", "label"], lines)


@pytest.fixture(scope="module")
def query(support: Path) -> Path:
    return write(support.with_name("new.csv"), ["a", "b", "c"], numbers(12, 1)[0])


def words(support: Path, query: Path | str, *more: str) -> list[str]:
    return ["predict", "--support", str(support), "--query", str(query), "--device", "cpu", *more]


def test_rows_of_numbers(support: Path, query: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(support, query, "--csv")) == 0
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["row"] for row in rows] == [str(i) for i in range(1, 13)]
    assert [row["label"] for row in rows] == numbers(12, 1)[1]
    assert "labels in 'label'" in err
    assert "note: the model is " in err
    assert "100% of the labelled examples are classified correctly (chance 33%)" in err


def test_a_query_of_no_class_has_an_empty_label(
    support: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = write(tmp_path / "far.csv", ["a", "b", "c"], [[0, 0, 9], [-90, 95, -80]])
    assert run(words(support, far, "--reject", "--csv")) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    assert [row[1] for row in rows] == ["low", ""]
    assert run(words(support, far, "--reject", "--json")) == 0
    assert [each["label"] for each in json.loads(capsys.readouterr().out)] == ["low", None]


def test_the_nearest_examples_explain_an_answer(
    support: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(support, query, "--explain", "2", "--json")) == 0
    for each in json.loads(capsys.readouterr().out):
        assert [near["label"] for near in each["nearest"]] == [each["label"]] * 2
        assert each["nearest"][0]["similarity"] >= each["nearest"][1]["similarity"]


def test_a_saved_classifier_needs_no_support(
    support: Path, query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "fitted.safetensors"
    assert run(words(support, query, "--csv", "--save", str(saved))) == 0
    first = capsys.readouterr().out
    again = ["predict", "--model", str(saved), "--query", str(query), "--csv", "--device", "cpu"]
    assert run(again) == 0
    assert capsys.readouterr().out == first
    assert (
        run(["predict", "--support", str(support), "--save", str(tmp_path / "b.safetensors")]) == 0
    )
    assert (tmp_path / "b.safetensors").is_file()


TEXTS = {
    "refund": ["when will I get my money back", "I want a refund", "the refund is missing"],
    "card": ["my new card has not arrived", "where is my card", "track the card you sent"],
    "pin": ["I forgot my PIN", "how do I change my PIN", "reset the pin code please"],
}
ASKED = ["the card is still in the mail", "my pin does not work", "please refund me"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers", reason="the extra text is not installed")
    lines = [[text, label] for label, found in TEXTS.items() for text in found]
    return write(tmp_path_factory.mktemp("texts") / "t.csv", ["utterance", "intent"], lines)


@pytest.mark.slow
def test_texts_from_stdin(texts: Path) -> None:
    command = [sys.executable, "-m", "metazoo", *words(texts, "-", "--csv")]
    done = subprocess.run(
        command, input="\n".join(ASKED), env=os.environ | ONE_THREAD, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader(io.StringIO(done.stdout)))
    assert [row[:2] for row in rows] == [
        ["text", "label"],
        *([text, label] for text, label in zip(ASKED, ("card", "pin", "refund"))),
    ]


@pytest.mark.slow
def test_a_killed_prediction_goes_on_where_it_was(support: Path, tmp_path: Path) -> None:
    query = write(tmp_path / "many.csv", ["a", "b", "c"], numbers(40_000, 2)[0])
    command = [sys.executable, "-m", "metazoo", *words(support, query)]
    whole, part = tmp_path / "whole.csv", tmp_path / "part.csv"
    environment = os.environ | ONE_THREAD
    subprocess.run([*command, "--out", str(whole)], env=environment, check=True)
    process = subprocess.Popen([*command, "--out", str(part)], env=environment)
    state = tmp_path / ".part.csv.progress"
    until = time.monotonic() + 120
    while not (state.exists() and json.loads(state.read_bytes())["done"]):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < json.loads(state.read_bytes())["done"] < 40_000
    done = subprocess.run(
        [*command, "--out", str(part)], env=environment, check=True, capture_output=True, text=True
    )
    assert "answers are there already" in done.stderr
    assert part.read_bytes() == whole.read_bytes()
    assert not state.exists()


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(
    support: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = write(tmp_path / "some.csv", ["a", "b", "c"], numbers(1300, 3)[0])
    assert run(words(support, query, "--csv")) == 0
    one = capsys.readouterr().out
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, "-m", "metazoo", *words(support, query, "--csv")],
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == one
    assert done.stderr.count("the model is ") == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--json", "--csv"], "choose one of --json, --csv and --out"),
        (["--json", "--out", "a.csv"], "choose one of --json, --csv and --out"),
        (["--text-column", "no"], "no column 'no'"),
        (["-o", "penalty=1"], "-o needs a model"),
        (["--out", "answers.txt"], "neither .csv nor .jsonl"),
    ],
)
def test_mistakes_are_explained(
    more: list[str], said: str, support: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error, hint = failure(capsys, 2, *words(support, query, *more))
    assert said in error
    assert hint


def test_an_example_without_a_label_is_named(
    query: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    support = write(tmp_path / "s.csv", ["a", "b", "c", "label"], [[1, 2, 3, "x"], [1, 2, 4, ""]])
    error, _ = failure(capsys, 1, *words(support, query))
    assert f"{support}, line 3: the example has no label" in error


@pytest.mark.parametrize("missing", ["--support", "--query"])
def test_support_or_a_saved_model_and_a_query_are_needed(
    missing: str, support: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--support": str(support), "--query": str(query)}
    del given[missing]
    error, _ = failure(capsys, 2, "predict", *(word for pair in given.items() for word in pair))
    assert f"Missing option '{missing}'" in error
