"""The data set `csv`: texts, images and numbers from tables, their splits, and what trains on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import picture

from metazoo import DataError, DataWarning, OptionError
from metazoo.cli import run
from metazoo.datasets.csv_file import Csv
from metazoo.datasets.folder import Folder
from metazoo.datasets.packed.writer import pack
from metazoo.texts import ngrams
from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan
from metazoo.zoo import run_folder

TOPICS = ("weather", "music", "travel", "money", "sports", "health", "food", "news")
SMALL = {"ways": 2, "shots": 1, "queries": 2, "train_queries": 2, "steps": 1, "device": "cpu"}


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def sentences(count: int = 6, topics: tuple[str, ...] = TOPICS) -> list[dict[str, Any]]:
    return [
        {"utterance": f"please tell me about {topic}, number {i}", "intent": topic}
        for i in range(count)
        for topic in topics
    ]


def data(root: Path, **config: Any) -> Csv:
    return Csv(Csv.Config(root=str(root), **config))


def test_texts_become_token_ids_of_every_class(tmp_path: Path) -> None:
    made = data(table(tmp_path / "a.csv", sentences()), length=16)
    assert made.input_format == {"tokenizer": "ngrams", "length": 16}
    assert {name: len(split.names) for name, split in made.splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }
    assert sorted(name for split in made.splits.values() for name in split.names) == sorted(TOPICS)
    for split in made.splits.values():
        texts = [f"please tell me about {n}, number {i}" for n in split.names for i in range(6)]
        assert split.counts == (6,) * len(split.names)
        assert torch.equal(split.x, ngrams(texts, 16))
    (note,) = made.notes
    assert "texts in 'utterance' and labels in 'intent'" in note


def test_classes_are_divided_as_those_of_a_folder(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", sentences())
    for topic in TOPICS:
        (tmp_path / "tree" / topic).mkdir(parents=True)
        picture("dot", 0).save(tmp_path / "tree" / topic / "a.png")
    options = {"val_fraction": 0.3, "test_fraction": 0.1, "seed": 4}
    folder = Folder(Folder.Config(root=str(tmp_path / "tree"), **options))
    assert [(n, s.names) for n, s in data(path, **options).splits.items()] == [
        (n, s.names) for n, s in folder.splits.items()
    ]


def test_a_column_may_hold_the_splits(tmp_path: Path) -> None:
    part = dict(zip(TOPICS, ["train"] * 4 + ["Validation"] * 2 + ["TEST"] * 2))
    rows = [{**row, "part": part[row["intent"]]} for row in sentences()]
    made = data(table(tmp_path / "a.csv", rows), split="part")
    assert made.split("val").names == tuple(sorted(TOPICS[4:6]))
    assert made.split("test").names == tuple(sorted(TOPICS[6:]))
    rows[9]["part"] = "test"
    with pytest.raises(DataError, match="line 11: class 'music' is in 'train' and in 'test'"):
        data(table(tmp_path / "a.csv", rows), split="part").load()
    rows[9]["part"] = ""
    with pytest.raises(DataError, match="line 11: '' is not a split"):
        data(table(tmp_path / "a.csv", rows), split="part").load()


def test_rows_without_a_label_are_left_out_with_a_warning(tmp_path: Path) -> None:
    rows = sentences()
    rows[3]["intent"] = ""
    made = data(table(tmp_path / "a.csv", rows))
    with pytest.warns(DataWarning, match="1 row of .* without a label left out"):
        assert sum(sum(split.counts) for split in made.splits.values()) == 47
    with pytest.raises(DataError, match="no labelled rows"):
        data(table(tmp_path / "a.csv", [{**row, "intent": " "} for row in rows])).load()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rows = []
    for seed in range(32):
        name = f"{seed}.png"
        picture(("bar", "dot")[seed % 2], seed).save(tmp_path / name)
        rows.append({"file": name, "label": f"class{seed % 8}"})
    return table(tmp_path / "pictures.csv", rows)


def test_images_are_those_of_a_folder(pictures: Path, tmp_path: Path) -> None:
    made = data(pictures, size=16, channels="grey", invert=True, test_fraction=1.0)
    assert made.input_format == {"size": 16, "channels": 1, "invert": True}
    for seed in range(32):
        inner = tmp_path / "tree" / f"class{seed % 8}" / f"{seed:02}.png"
        inner.parent.mkdir(parents=True, exist_ok=True)
        inner.write_bytes((tmp_path / f"{seed}.png").read_bytes())
    config = Folder.Config(str(tmp_path / "tree"), 16, "grey", True, test_fraction=1.0)
    assert torch.equal(made.split("test").x, Folder(config).split("test").x)
    assert made.training_defaults() == {"backbone": "conv4"}
    assert Csv.reading_options(made.input_format) == {
        "size": 16,
        "channels": "grey",
        "invert": True,
    }


def test_numbers_are_examples_as_they_are(tmp_path: Path) -> None:
    rows = [{"x": i / 4, "z": -i, "class": f"c{i % 3}"} for i in range(9)]
    made = data(table(tmp_path / "a.csv", rows), val_fraction=0.0, test_fraction=1.0)
    assert made.input_format == {}
    assert made.training_defaults() == {"backbone": "mlp"}
    assert made.split("test").x.tolist()[:3] == [[0.0, 0.0], [0.75, -3.0], [1.5, -6.0]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 32}, "are texts, and the option 'size' is for images"),
        ({"label": "topic"}, "has no column 'topic'"),
        ({"text": "utterance", "path": "intent"}, "are texts, files or numbers"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        data(table(tmp_path / "a.csv", sentences()), **config).load()
    with pytest.raises(OptionError, match="needs a table"):
        Csv().load()


def test_the_backbone_suits_the_examples(tmp_path: Path, pictures: Path) -> None:
    numbers = [{"x": i % 8, "z": i, "class": f"c{i % 8}"} for i in range(48)]
    for path, backbone in {
        table(tmp_path / "a.csv", sentences()): "bag",
        table(tmp_path / "n.csv", numbers): "mlp",
        pictures: "conv4",
    }.items():
        blueprint, _ = plan("protonet", "csv", {}, {"root": str(path)}, {}, SMALL)
        assert blueprint.backbone == backbone


def test_packed_texts_are_the_same_examples(tmp_path: Path) -> None:
    made = data(table(tmp_path / "a.csv", sentences()))
    pack(made, "csv", tmp_path / "packed")
    with made.streams() as streams:
        first = {name: stream.digest() for name, stream in streams.items()}
        assert torch.equal(streams["val"].read(3, 9), made.split("val").x[3:9])
    table(tmp_path / "a.csv", [{**row, "intent": row["intent"].upper()} for row in sentences()])
    with data(tmp_path / "a.csv").streams() as streams:
        assert {name: stream.digest() for name, stream in streams.items()} != first


def test_training_on_a_table_of_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "intents.csv", sentences(count=8))
    sizes = "--ways 2 --queries 3 --steps 3 --validate-every 3 --validation-episodes 4"
    command = f"train protonet --dataset csv --data-root intents.csv {sizes} --test-episodes 4"
    more = "--backbone-width 16 --backbone-buckets 512 --json --out run"
    assert run([*command.split(), *more.split()]) == 0
    said = capsys.readouterr()
    assert "intents.csv has texts in 'utterance' and labels in 'intent'" in said.err
    assert json.loads(said.out)["mean"] > 0.5
    assert run(["eval", "run", "--episodes", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["data"] == "csv"
    table(tmp_path / "other.csv", sentences(8, ("lunch", "dinner", "breakfast")))
    elsewhere = "eval run --dataset csv --data-root other.csv --ways 3 --episodes 4 --json"
    assert run(elsewhere.split()) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["mean"] > 0.5


def test_a_model_of_texts_takes_no_images(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blueprint, source = plan(
        *("protonet", "csv", {}, {"root": str(table(tmp_path / "a.csv", sentences()))}),
        *({"width": 8, "buckets": 64}, {**SMALL, "validation_episodes": 2, "test_episodes": 2}),
    )
    run_folder.create(tmp_path / "run", blueprint)
    train(blueprint, source, tmp_path / "run", Watcher())
    words = ["eval", str(tmp_path / "run"), "--dataset", "csv", "--data-root", str(pictures)]
    assert run(words) == 2
    assert "takes texts, and the examples of Csv are images or numbers" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images", "no.csv", "odd.csv"])
def test_a_mistake_is_an_error_in_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    assert run(["train", "protonet", "--dataset", "csv", "--data-root", name]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "\nhint: " in said
