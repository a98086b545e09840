"""The cache of embeddings: nothing is computed twice, and no damage to it changes an answer."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metazoo.errors import OptionError
from metazoo.io import embedding_cache
from metazoo.io.embedding_cache import remembered


class Double:
    """Doubles examples, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return 2 * x.float()


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the test, which is empty."""
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    return tmp_path / "embeddings"


@pytest.fixture
def embed(folder: Path, double: Double) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        z = remembered("double", x, double, x.shape[1])
        assert torch.equal(z, 2 * x.float())
        assert z.dtype == torch.float32
        return z

    return call


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.sqlite")
    return path


def test_only_new_examples_are_computed(
    embed: Callable[[Tensor], Tensor], double: Double, folder: Path
) -> None:
    x = torch.randn(1200, 3, generator=torch.Generator().manual_seed(0))
    embed(x[:1000])
    embed(x[:1000].flip(0))
    assert double.count == 1000
    embed(x[torch.arange(1199, -1, -2)])  # of which 100 are new
    assert double.count == 1100
    embed(x[:0])
    assert double.count == 1100
    # What is stored is not the examples.
    assert x[0].numpy().tobytes() not in only(folder).read_bytes()
    assert (2 * x[0]).numpy().tobytes() in only(folder).read_bytes()


def test_an_embedding_belongs_to_its_encoder_and_to_the_type_and_shape_of_the_example(
    folder: Path, double: Double
) -> None:
    ones = torch.ones(1, 4)
    for identity, x in (
        ("a", ones),
        ("b", ones),
        ("a", ones.view(torch.int32)),
        ("a", ones.view(1, 2, 2)),
        ("a", -ones),
    ):
        remembered(identity, x, lambda x: double(x).flatten(1), 4)
    assert double.count == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"not a database" * 100,
        lambda data: data[: len(data) // 2],
        lambda data: data[:100] + bytes(len(data) - 100),
        lambda data: b"",
    ],
    ids=["other", "cut", "zeros", "empty"],
)
def test_a_damaged_file_is_replaced(
    damage: Callable[[bytes], bytes],
    embed: Callable[[Tensor], Tensor],
    double: Double,
    folder: Path,
) -> None:
    x = torch.randn(300, 3)
    embed(x)
    only(folder).write_bytes(damage(only(folder).read_bytes()))
    embed(x)
    embed(x)
    assert double.count == 600


def test_a_damaged_value_is_computed_again(
    embed: Callable[[Tensor], Tensor], double: Double, folder: Path
) -> None:
    x = torch.randn(3, 3)
    embed(x)
    with sqlite3.connect(only(folder)) as database:
        rows = database.execute("SELECT key, value FROM embeddings").fetchall()
        wrong = [(rows[0][1], rows[1][0]), (b"", rows[2][0])]
        database.executemany("UPDATE embeddings SET value = ? WHERE key = ?", wrong)
    database.close()
    embed(x)
    assert double.count == 5


def test_off_stores_nothing(
    embed: Callable[[Tensor], Tensor],
    double: Double,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    embed(torch.ones(2, 3))
    embed(torch.ones(2, 3))
    assert double.count == 4
    assert not folder.exists()
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "on")
    with pytest.raises(OptionError, match="METAZOO_EMBEDDINGS cannot be 'on'"):
        embed(torch.ones(2, 3))


def test_a_cache_that_cannot_be_used_changes_nothing(
    embed: Callable[[Tensor], Tensor],
    double: Double,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder.touch()  # where the folder should be
    embed(torch.ones(2, 3))
    os.remove(folder)
    embed(torch.ones(1, 3))
    monkeypatch.setattr(embedding_cache, "LARGEST", 0)
    embed(torch.zeros(1, 3))  # not added
    embed(torch.zeros(1, 3))
    embed(torch.ones(1, 3))
    assert double.count == 5


def test_another_process_that_writes_does_not_stop_it(
    embed: Callable[[Tensor], Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(torch.ones(1, 3))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0))
    other = connect(only(folder))
    other.execute("BEGIN EXCLUSIVE")
    embed(torch.ones(2, 3))
    other.rollback()
    other.close()
    embed(torch.ones(2, 3))
