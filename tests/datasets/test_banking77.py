"""BANKING77: made-up files of its layout, downloads, and the published files if METAZOO_DATA has them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import Server

from metazoo import DataError
from metazoo.datasets import banking77
from metazoo.datasets.banking77 import BANKING77, FOLDS, read
from metazoo.texts import ngrams

SIZES = {"train": 3, "test": 2}


def published(part: str) -> bytes:
    """Return what a published file holds, but with fewer texts."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # with \r\n, as published
    writer.writerow(("text", "category"))
    for intent in FOLDS:
        writer.writerows((f"{part} {i} of\n{intent}, please", intent) for i in range(SIZES[part]))
    return text.getvalue().encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "banking77").mkdir()
    for part in SIZES:
        (tmp_path / "banking77" / f"{part}.csv").write_bytes(published(part))
    return tmp_path


def load(root: Path, **config: Any) -> BANKING77:
    return BANKING77(BANKING77.Config(root=str(root), **config))


@pytest.mark.parametrize("fold", [1, 2, 3, 4, 5])
def test_the_classes_are_those_of_the_published_folds(root: Path, fold: int) -> None:
    splits = load(root, fold=fold).splits
    assert {name: len(split.names) for name, split in splits.items()} == {
        "train": 25,
        "val": 25,
        "test": 27,
    }
    assert sorted(name for split in splits.values() for name in split.names) == sorted(FOLDS)
    letters = Counter(FOLDS[name][fold - 1] for name in splits["test"].names)
    assert letters == {"s": 27}


def test_a_class_has_its_texts_of_both_files(root: Path) -> None:
    split = load(root, length=24).split("test")
    name = split.names[0]
    texts = [f"{part} {i} of\n{name}, please" for part in SIZES for i in range(SIZES[part])]
    assert torch.equal(split.x[:5], ngrams(texts, 24))
    assert split.counts == (5,) * 27


@pytest.mark.parametrize("place", ["{}.csv", "banking_data/{}.csv", "text/banking77_{}.csv.gz"])
def test_the_files_may_lie_elsewhere(root: Path, place: str) -> None:
    expected = read(str(root))
    assert {part: len(rows) for part, rows in expected.items()} == {"train": 231, "test": 154}
    for part in SIZES:
        path = root / "banking77" / f"{part}.csv"
        contents = path.read_bytes()
        path.unlink()
        (root / part).mkdir()  # a folder of that name is not the file
        moved = root / place.format(part)
        moved.parent.mkdir(exist_ok=True)
        moved.write_bytes(gzip.compress(contents) if moved.suffix == ".gz" else contents)
    assert read(str(root)) == expected


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "train.csv is empty"),
        (b"text,mood\r\na,age_limit\r\n", "has no column with the name of one for labels"),
        (b"text,category\r\na,age_limit\r\n", "has no text of 'Refund_not_showing_up'"),
        (published("train") + b"a,b\r\n", "has texts of the unknown intent 'b'"),
        (published("train") + b"a\r\n", "line 464: the row has 1 fields"),
        (published("train") + b"a,\r\n", "has texts of the unknown intent ''"),
    ],
)
def test_a_damaged_file_is_named(root: Path, contents: bytes, message: str) -> None:
    (root / "banking77" / "train.csv").write_bytes(contents)
    with pytest.raises(DataError, match=message):
        load(root).load()


def test_they_are_downloaded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]
) -> None:
    files = {f"/{part}.csv": published(part) for part in SIZES}
    server = serve(files)
    monkeypatch.delenv("METAZOO_DATA", raising=False)
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    config = BANKING77.Config(url=server.url)
    with pytest.raises(DataError, match=f"but should have {banking77.SHA256['train']}"):
        BANKING77(config).load()
    for part in SIZES:
        sha256 = hashlib.sha256(files[f"/{part}.csv"]).hexdigest()
        monkeypatch.setitem(banking77.SHA256, part, sha256)
    assert BANKING77(config).split("val").counts == (5,) * 25


def test_the_published_files() -> None:
    folder = Path(os.environ.get("METAZOO_DATA", ""), "text")
    if "METAZOO_DATA" not in os.environ or not (folder / "banking77_train.csv.gz").is_file():
        pytest.skip("METAZOO_DATA names no data root with BANKING77")
    for part, sha256 in banking77.SHA256.items():
        contents = gzip.decompress((folder / f"banking77_{part}.csv.gz").read_bytes())
        assert hashlib.sha256(contents).hexdigest() == sha256
    assert {part: len(rows) for part, rows in read().items()} == {"train": 10003, "test": 3080}
    counts = [n for split in BANKING77().splits.values() for n in split.counts]
    assert (min(counts), max(counts), sum(counts)) == (75, 227, 13083)
