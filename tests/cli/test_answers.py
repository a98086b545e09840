"""Answers as tables, CSV and JSON, and in a file that a later call continues."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from metazoo.cli.answers import Answer, AnswerFile, Csv, Json, Table, batched
from metazoo.errors import OptionError

ANSWERS = [
    Answer("a,b\n.txt", "x", {"x": 0.75, "y": 0.25}),
    Answer("c", None, {"x": 0.5, "y": 0.5}),
    Answer("d", "y", {"x": 0.1, "y": 0.9}),
]
NEAR = Answer("e", "x", {"x": 1.0}, [("first", "x", 0.876)])


def test_a_table_is_aligned_and_an_unknown_label_empty(capsys: pytest.CaptureFixture[str]) -> None:
    output = Table("text", explained=False)
    output.write(ANSWERS[1:])
    output.write([Answer("longer than the column", "y", {"x": 0.2, "y": 0.8})])
    output.close()
    assert capsys.readouterr().out.splitlines() == [
        "text  label  probability",
        "c            50.0%",
        "d     y      90.0%",
        "longer than the column  y      80.0%",
    ]


def test_a_table_of_nothing_has_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    Table("file", explained=True).close()
    assert capsys.readouterr().out == "file  label  probability  nearest\n"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_is_one_array(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    output = Json("file")
    for answer in ANSWERS[:count]:
        output.write([answer])
    output.close()
    found = json.loads(capsys.readouterr().out)
    assert found == [
        {"file": each.query, "label": each.label, "probabilities": each.probabilities}
        for each in ANSWERS[:count]
    ]


def test_the_nearest_examples_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    output = Csv("text", explained=True)
    output.write([NEAR])
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows == [
        ["text", "label", "probability", "nearest"],
        ["e", "x", "1.0000", "first (x, 0.88)"],
    ]
    assert NEAR.as_dict("text")["nearest"] == [
        {"example": "first", "label": "x", "similarity": 0.876}
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("torn", [0, 7])
def test_a_file_is_continued_after_the_last_complete_batch(
    suffix: str, torn: int, tmp_path: Path
) -> None:
    whole = AnswerFile(tmp_path / f"whole{suffix}", "text", False, "these")
    whole.write(ANSWERS)
    whole.close()
    path = tmp_path / f"part{suffix}"
    first = AnswerFile(path, "text", False, "these")
    first.write(ANSWERS[:1])
    # A kill in the middle of the next batch leaves bytes of it behind.
    with path.open("ab") as file:
        file.write(b"x" * torn)
    second = AnswerFile(path, "text", False, "these")
    assert second.done == 1
    second.write(ANSWERS[1:])
    second.close()
    assert path.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / f"whole{suffix}"])


def test_answers_to_something_else_are_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    AnswerFile(path, "text", False, "these").write(ANSWERS[:1])
    before = path.read_bytes()
    with pytest.raises(OptionError, match="answers of another classifier"):
        AnswerFile(path, "text", False, "those")
    (tmp_path / ".a.csv.progress").write_text('{"for": "these"}')
    with pytest.raises(OptionError, match="is damaged"):
        AnswerFile(path, "text", False, "these")
    (tmp_path / ".a.csv.progress").unlink()
    with pytest.raises(OptionError, match="exists already"):
        AnswerFile(path, "text", False, "these")
    assert path.read_bytes() == before


def test_batches_are_filled() -> None:
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []
