"""`metazoo predict` on images on disk."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import failure
from pictures import picture
from PIL import Image

from metazoo.classifier import FewShotClassifier
from metazoo.cli import run

CLASSES = ("bar", "dot", "ring")


@pytest.fixture
def support(tmp_path: Path) -> Path:
    """One to three images a class."""
    for count, label in enumerate(CLASSES, start=1):
        (tmp_path / "support" / label).mkdir(parents=True)
        for i in range(count):
            picture(label, i).save(tmp_path / "support" / label / f"{i}.png")
    return tmp_path / "support"


@pytest.fixture
def query(tmp_path: Path) -> Path:
    folder = tmp_path / "query"
    (folder / "deeper").mkdir(parents=True)
    picture("ring", 1).save(folder / "a.png")
    picture("bar", 0).convert("RGB").resize((90, 90)).save(folder / "b.JPG")
    picture("dot", 1).save(folder / "deeper" / "c.gif")
    (folder / "notes.txt").write_text("no image")
    return folder


def words(support: Path, query: Path, model: Path, *more: str) -> list[str]:
    return [
        "predict",
        "--model",
        str(model),
        "--support",
        str(support),
        "--query",
        str(query),
        "--device",
        "cpu",
        *more,
    ]


def test_a_table_of_file_label_and_probability(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(support, query, protonet_run)) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["file", "label", "probability"]
    files = [query / "a.png", query / "b.JPG", query / "deeper" / "c.gif"]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        (str(f), x) for f, x in zip(files, ("ring", "bar", "dot"))
    ]
    assert all(row[2].endswith("%") and 33 < float(row[2][:-1]) <= 100 for row in rows[1:])
    told = err.splitlines()
    assert told[0] == f"note: the model is {protonet_run}"
    assert told[1].startswith("note: by leave-one-out, ")
    assert len(told) == 2


def test_json_holds_the_probability_of_every_class(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(support, query, protonet_run, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    shots = [(p, label) for label in CLASSES for p in sorted((support / label).iterdir())]
    classifier = FewShotClassifier(protonet_run, device="cpu").fit(
        [p for p, _ in shots], [label for _, label in shots]
    )
    wanted = classifier.predict_proba([item["file"] for item in found])
    assert [item["label"] for item in found] == ["ring", "bar", "dot"]
    for item, row in zip(found, wanted):
        assert list(item["probabilities"]) == list(CLASSES)
        assert np.allclose(list(item["probabilities"].values()), row)


def test_csv_can_be_read_back_whatever_the_names(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (query / "a.png").rename(query / 'a, "odd" näme.png')
    assert run(words(support, query, protonet_run, "--csv")) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["label"] for row in rows] == ["ring", "bar", "dot"]
    assert rows[0]["file"] == str(query / 'a, "odd" näme.png')
    assert all(1 / 3 < float(row["probability"]) <= 1 for row in rows)


def test_options_of_the_algorithm(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for more in ([], ["-o", "tta=shifted"]):
        assert run(words(support, query, protonet_run, "--json", *more)) == 0
        found.append(
            [list(item["probabilities"].values()) for item in json.loads(capsys.readouterr().out)]
        )
    shots = [(p, label) for label in CLASSES for p in sorted((support / label).iterdir())]
    classifier = FewShotClassifier(protonet_run, device="cpu", options={"tta": "shifted"})
    classifier.fit([p for p, _ in shots], [label for _, label in shots])
    assert np.allclose(
        found[1],
        classifier.predict_proba([query / "a.png", query / "b.JPG", query / "deeper" / "c.gif"]),
    )
    assert not np.allclose(found[0], found[1])
    error, hint = failure(capsys, 2, *words(support, query, protonet_run, "-o", "ttaa=shifted"))
    assert error == "error: algorithm 'protonet' has no option 'ttaa'"
    assert "did you mean 'tta'" in hint


def test_a_single_file(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(support, query / "b.JPG", protonet_run, "--json")) == 0
    assert [(i["file"], i["label"]) for i in json.loads(capsys.readouterr().out)] == [
        (str(query / "b.JPG"), "bar")
    ]


def test_white_ink_on_black(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(support, query / "a.png", protonet_run, "--json")) == 0
    usual = json.loads(capsys.readouterr().out)
    for path in [*support.rglob("*.png"), query / "a.png"]:
        with Image.open(path) as image:
            swapped = Image.eval(image, lambda value: 255 - value)
        swapped.save(path)
    assert run(words(support, query / "a.png", protonet_run, "--json", "--no-invert")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["label"] == usual[0]["label"]
    assert found[0]["probabilities"] == pytest.approx(usual[0]["probabilities"], abs=0.02)


def test_a_transductive_model_says_so(
    support: Path, query: Path, maml_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transductive = words(support, query, maml_run, "--csv", "-o", "batch_norm=batch")
    assert run(transductive) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "warning: " in err
    assert "is transductive: each answer depends on all 3 queries\n" in err
    assert run([*transductive, "--query", str(query / "a.png")]) == 0
    assert "is transductive: its answer to a single query" in capsys.readouterr().err


def test_each_image_gets_the_same_answer_alone(
    support: Path, query: Path, maml_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in CLASSES[1:]:
        for path in list((support / label).iterdir())[1:]:
            path.unlink()
    assert run(words(support, query, maml_run, "--json")) == 0
    out, err = capsys.readouterr()
    assert "warning" not in err
    for one in json.loads(out):
        assert run(words(support, Path(one["file"]), maml_run, "--json")) == 0
        alone, err = capsys.readouterr()
        assert "warning" not in err
        assert json.loads(alone)[0]["probabilities"] == pytest.approx(
            one["probabilities"], abs=1e-5
        )


def test_mistakes_are_told(
    support: Path,
    query: Path,
    protonet_run: Path,
    sinusoid_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "one" / "bar").mkdir(parents=True)
    picture("bar", 0).save(tmp_path / "one" / "bar" / "0.png")
    for arguments, status, what in (
        (words(tmp_path / "nothing", query, protonet_run), 1, "nothing"),
        (words(support, tmp_path / "nothing", protonet_run), 1, "nothing"),
        (words(support, empty, protonet_run), 1, "is empty"),
        (words(empty, query, protonet_run), 1, "is empty"),
        (
            words(support, query / "notes.txt", protonet_run),
            1,
            "notes.txt holds texts, and",
        ),
        (words(query / "a.png", query, protonet_run), 1, "a.png is a file"),
        (words(support, query, sinusoid_run), 2, "is a regression model"),
        (words(support, query, tmp_path / "x" / "nothing"), 2, "no run folder or model file"),
        (
            words(support, query, protonet_run, "--json", "--csv"),
            2,
            "choose one of --json, --csv and --out",
        ),
        (words(support, query, protonet_run, "--device", "abacus"), 2, "device 'abacus'"),
        (words(tmp_path / "one", query, protonet_run), 1, "only one class"),
        (["predict", "--query", str(query)], 2, "--support"),
    ):
        error, _ = failure(capsys, status, *arguments)
        assert what in error, arguments


def test_a_damaged_image_is_named(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (support / "dot" / "0.png", query / "a.png"):
        whole = path.read_bytes()
        for damaged in (b"", b"no image", whole[: len(whole) // 2]):
            path.write_bytes(damaged)
            assert str(path) in failure(capsys, 1, *words(support, query, protonet_run))[0]
        path.write_bytes(whole)


def test_a_class_without_images_is_named(
    support: Path, query: Path, protonet_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (support / "square").mkdir()
    error, hint = failure(capsys, 1, *words(support, query, protonet_run))
    assert "square has no images" in error
    assert hint


def test_too_many_classes_for_a_head_are_told(
    support: Path, query: Path, maml_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (support / "square").mkdir()
    picture("bar", 1).rotate(90).save(support / "square" / "0.png")
    for path in support.glob("*/[12].png"):
        path.unlink()  # unequal classes would be warned of
    error, hint = failure(capsys, 2, *words(support, query, maml_run))
    assert "head has 3 outputs, but the task has 4 classes" in error
    assert "--ways 4" in hint


@pytest.mark.slow
def test_files_that_are_left_out_are_named_on_stderr(
    support: Path, query: Path, protonet_run: Path
) -> None:
    (query / "a.png").rename(query / "photo.jfif")
    (query / "b.JPG").rename(query / "phone.heic")
    arguments = words(support, query, protonet_run, "--csv")
    done = subprocess.run(
        [sys.executable, "-m", "metazoo", *arguments], capture_output=True, text=True
    )
    files = [row["file"] for row in csv.DictReader(io.StringIO(done.stdout))]
    assert [Path(file).name for file in files] == ["c.gif", "photo.jfif"]
    warning, hint = (line for line in done.stderr.splitlines() if not line.startswith("note: "))
    assert warning == f"warning: 1 file in {query} left out: phone.heic"
    assert "heif-convert" in hint


@pytest.mark.slow
def test_a_file_name_that_is_no_text_is_printed_all_the_same(
    support: Path, query: Path, protonet_run: Path
) -> None:
    (query / "a.png").rename(os.fsdecode(os.fsencode(query) + b"/a\xff.png"))
    for more in ((), ("--csv",), ("--json",)):
        arguments = words(support, query, protonet_run, *more)
        code = f"from metazoo.cli import main; main({arguments!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert b"ring" in done.stdout


def test_the_default_model_works_offline(
    support: Path, query: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "--support", str(support), "--query", str(query), "--json"]) == 0
    assert [item["label"] for item in json.loads(capsys.readouterr().out)] == ["ring", "bar", "dot"]
