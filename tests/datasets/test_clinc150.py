"""CLINC150: a made-up file of its layout, downloads, and the published file if METAZOO_DATA has it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import Server

from metazoo import DataError
from metazoo.datasets import clinc150
from metazoo.datasets.clinc150 import CLINC150, FOLDS, read
from metazoo.texts import ngrams

SIZES = {"train": 3, "val": 1, "test": 2}
SPLITS = {"t": "train", "v": "val", "s": "test"}


def published() -> dict[str, list[list[str]]]:
    """Return what the published file holds, but with fewer texts."""
    found = {
        part: [[f"{part} {i} of {intent}", intent] for intent in FOLDS for i in range(count)]
        for part, count in SIZES.items()
    }
    return found | {f"oos_{part}": [[f"odd {part}", "oos"]] for part in SIZES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "clinc150"
    folder.mkdir()
    (folder / "data_full.json").write_text(json.dumps(published()))
    return tmp_path


def load(root: Path, **config: Any) -> CLINC150:
    return CLINC150(CLINC150.Config(root=str(root), **config))


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_the_classes_are_those_of_the_published_folds(root: Path, fold: int) -> None:
    splits = load(root, fold=fold).splits
    assert [len(splits[name].names) for name in ("train", "val", "test")] == [50, 50, 50]
    for name, split in splits.items():
        assert split.names == tuple(sorted(split.names))
        assert {SPLITS[FOLDS[intent][fold - 1]] for intent in split.names} == {name}
        assert split.counts == (6,) * 50


def test_the_five_folds_are_five() -> None:
    columns = {tuple(letters[fold] for letters in FOLDS.values()) for fold in range(5)}
    assert len(columns) == 5
    assert all(Counter(column) == {"t": 50, "v": 50, "s": 50} for column in columns)


def test_a_class_has_its_texts_of_all_parts(root: Path) -> None:
    data = load(root, length=24)
    split = data.split("val")
    texts = [f"{part} {i} of {split.names[0]}" for part in SIZES for i in range(SIZES[part])]
    assert torch.equal(split.x[:6], ngrams(texts, 24))
    assert data.input_format == {"tokenizer": "ngrams", "length": 24}
    options = CLINC150.reading_options({"tokenizer": "minilm", "length": 64})
    assert options == {"tokenizer": "minilm", "length": 64}


def test_read_returns_the_published_parts(root: Path) -> None:
    parts = read(str(root))
    assert {part: len(rows) for part, rows in parts.items()} == {
        "train": 450,
        "val": 150,
        "test": 300,
        "oos_train": 1,
        "oos_val": 1,
        "oos_test": 1,
    }
    assert parts["oos_test"] == [("odd test", "oos")]


@pytest.mark.parametrize(
    "place", ["data_full.json", "data/data_full.json", "text/clinc150.json.gz"]
)
def test_the_file_may_lie_elsewhere(root: Path, place: str) -> None:
    expected = read(str(root))
    path = root / "clinc150" / "data_full.json"
    contents = path.read_bytes()
    path.unlink()
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_bytes(gzip.compress(contents) if place.endswith(".gz") else contents)
    assert read(str(root)) == expected


def without(key: str) -> dict[str, Any]:
    return {name: rows for name, rows in published().items() if name != key}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is not the file of CLINC150"),
        (json.dumps(published()).encode()[:-9], "is not the file of CLINC150"),
        (b"[1, 2]", "is not the file of CLINC150"),
        (b"\xff\xfe", "is not the file of CLINC150"),
        (b"[" * 10**5, "is not the file of CLINC150"),
        (json.dumps(without("oos_val")).encode(), "CLINC150: KeyError.'oos_val'"),
        (json.dumps({**published(), "val": [["a"]]}).encode(), "is not the file"),
        (json.dumps({**published(), "val": [["a", 3]]}).encode(), "is not a text and an intent"),
        (json.dumps({**published(), "val": None}).encode(), "is not the file"),
        (
            json.dumps({**published(), "train": published()["train"][3:]}).encode(),
            "has no text of 'accept_reservations'",
        ),
        (
            json.dumps({**published(), "test": [*published()["test"], ["a", "zzz\x1b"]]}).encode(),
            r"has texts of the unknown intent 'zzz\\x1b'",
        ),
    ],
)
def test_a_damaged_file_is_named(root: Path, contents: bytes, message: str) -> None:
    (root / "clinc150" / "data_full.json").write_bytes(contents)
    with pytest.raises(DataError, match=f"data_full.json .*{message}") as caught:
        load(root).load()
    assert caught.value.hint


def test_it_is_downloaded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]
) -> None:
    contents = json.dumps(published()).encode()
    server = serve({"/data/data_full.json": contents})
    monkeypatch.delenv("METAZOO_DATA", raising=False)
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    config = CLINC150.Config(url=f"{server.url}/data")
    with pytest.raises(DataError, match=f"but should have {clinc150.SHA256}") as caught:
        CLINC150(config).load()
    assert f"SHA256 {clinc150.SHA256}" in (caught.value.hint or "")
    monkeypatch.setattr(clinc150, "SHA256", hashlib.sha256(contents).hexdigest())
    assert CLINC150(config).split("test").counts == (6,) * 50
    asked = len(server.asked)
    assert CLINC150(config).split("val").counts == (6,) * 50
    assert len(server.asked) == asked


def test_the_published_file() -> None:
    path = Path(os.environ.get("METAZOO_DATA", ""), "text", "clinc150.json.gz")
    if "METAZOO_DATA" not in os.environ or not path.is_file():
        pytest.skip("METAZOO_DATA names no data root with CLINC150")
    assert hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() == clinc150.SHA256
    parts = read()
    assert [len(rows) for rows in parts.values()] == [15000, 100, 3000, 100, 4500, 1000]
    assert {split.counts for split in CLINC150().splits.values()} == {(150,) * 50}
