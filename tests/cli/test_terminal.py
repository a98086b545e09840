"""What commands print: names from outside cannot steer a terminal, and every encoding holds them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from commands import Capture, output
from hostile import HOSTILE, commanding, install

from metazoo.cli import progress, run
from metazoo.quoting import printable

CLASSES = ("\x1b[2J\u202eevil", "[red]日本[bold]", "a\nb\t\x9bc")
FILES = ("query\nforged  [red]  99.9%.png", "\x1b]0;title\x07.png", os.fsdecode(b"\xff\xfe.png"))


@pytest.fixture(scope="module")
def pictures(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A support folder and a query folder with hostile names."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "query").mkdir()
    for i, (name, file) in enumerate(zip(CLASSES, FILES)):
        shutil.copytree(tree / f"c{i:02}", root / "support" / name)
        shutil.copy(tree / f"c{i:02}" / "0.png", root / "query" / file)
    return str(root / "support"), str(root / "query")


def predicted(pictures: tuple[str, str], *more: str) -> list[str]:
    return ["predict", "--support", pictures[0], "--query", pictures[1], "--device", "cpu", *more]


def is_printable(text: str) -> bool:
    return printable(text, keep="\n") == text


def test_a_table_has_a_row_for_each_file(pictures: tuple[str, str], capsys: Capture) -> None:
    out, err = output(capsys, *predicted(pictures))
    assert is_printable(out + err)
    rows = out.splitlines()
    assert len(rows) == 1 + len(FILES)
    for file in FILES:
        assert any(printable(file) in row for row in rows)
    assert all(any(printable(name) in row for name in CLASSES) for row in rows[1:])


def test_json_holds_the_names_as_they_are(pictures: tuple[str, str], capsys: Capture) -> None:
    out, _ = output(capsys, *predicted(pictures, "--json"))
    assert is_printable(out)
    found = json.loads(out)
    assert {Path(item["file"]).name for item in found} == set(FILES)
    assert set(found[0]["probabilities"]) == set(CLASSES)


def test_csv_has_a_line_for_each_file(pictures: tuple[str, str], capsys: Capture) -> None:
    out, _ = output(capsys, *predicted(pictures, "--csv"))
    assert is_printable(out)
    rows = list(csv.DictReader(out.splitlines()))
    assert {Path(row["file"]).name for row in rows} == set(map(printable, FILES))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("form", ["", "--csv", "--json"])
def test_every_encoding_holds_every_name(
    pictures: tuple[str, str], monkeypatch: pytest.MonkeyPatch, encoding: str, form: str
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run(predicted(pictures, *filter(None, [form]))) == 0
    assert len(stdout.buffer.getvalue().decode(encoding).splitlines()) > len(FILES)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "\x1b[2J/x\nhint: forged"],
        ["predict", "--support", "\x1b[2J\nerror: forged", "--query", "x"],
        ["train", "protonet", "--resume", "\u202e\nhint: `forged`"],
        ["\x1b[2J\nhint: forged"],
        ["train", "protonet", "--\x1b[2J\nhint: forged"],
        ["eval", "https://me:secret@localhost:1/a.x.json"],
        ["eval", "https://localhost:1/a.x.json?token=secret"],
        ["eval", "https://localhost:1/a?token=secret"],
        ["eval", "http://u s:secret@localhost:1/a.x.json?token=secret"],
    ],
)
def test_an_error_has_two_lines_whatever_it_names(words: list[str], capsys: Capture) -> None:
    assert run(words) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"], err
    assert is_printable(err)
    assert "secret" not in err


def test_a_long_name_does_not_fill_the_screen(capsys: Capture) -> None:
    assert run(["predict", "--model", "x/" * 20_000, "--support", ".", "--query", "."]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: File name too long: x/x/")
    assert len(error) < 1100


def test_an_empty_argument_is_not_the_current_folder(capsys: Capture) -> None:
    assert run(["predict", "--support", "", "--query", "."]) == 2
    assert capsys.readouterr().err.startswith("error: an argument is empty\nhint: ")


def test_a_command_in_a_hint_can_be_copied(
    protonet_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    run_folder = tmp_path / "it's a; run\x1b"
    shutil.copytree(protonet_run, run_folder)
    _, err = output(capsys, "train", "--resume", str(run_folder))
    assert f"`metazoo eval $'{tmp_path}/it\\x27s a; run\\x1b'`" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_shows_names_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with progress.measurement_progress("[red]x[/red] :smile: \x1b[2J") as watch:
        watch(1, 2)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "[red]x[/red] :smile: \\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[" in shown  # the bar's own


def test_a_command_of_a_plugin_may_use_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    before = "@click.command()\ndef red(): click.secho('red', fg='red', color=True)"
    case = commanding("red", "", before=before)
    monkeypatch.setitem(HOSTILE, "coloured", case)
    monkeypatch.syspath_prepend(install(tmp_path, "coloured"))
    assert run(["coloured"]) == 0
    assert capfd.readouterr().out == "\x1b[31mred\x1b[0m\n"
