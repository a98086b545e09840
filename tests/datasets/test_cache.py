"""The cache of decoded examples: hits, damaged files, and a cache that cannot be written."""

import os

import pytest
import torch

from metazoo import Examples
from metazoo.datasets.cache import load_or_build

EXAMPLES = Examples(
    torch.arange(60, dtype=torch.uint8).view(5, 1, 3, 4), (2, 3), ("a", "ü/b"), "some data"
)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads EXAMPLES under a key; returns whether they were built."""
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "cache"))

    def call(key="key"):
        built = []
        examples = load_or_build("set", key, lambda: built.append(1) or EXAMPLES)
        assert torch.equal(examples.x, EXAMPLES.x)
        assert (examples.counts, examples.names, examples.title) == (
            EXAMPLES.counts,
            EXAMPLES.names,
            EXAMPLES.title,
        )
        return bool(built)

    return call


def files(tmp_path):
    return sorted((tmp_path / "cache" / "set").iterdir())


def test_built_once_for_each_key(load, tmp_path):
    assert load()
    assert not load()
    assert load("other key")
    assert not load("other key")
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-10],
        lambda data: data[:-1] + b"\xff",
        lambda data: b"\xff" * 100,
    ],
    ids=["empty", "truncated", "one bit", "garbage"],
)
def test_a_damaged_file_is_built_again(load, tmp_path, damage):
    load()
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert load()
    assert not load()
    assert files(tmp_path) == [path]


def test_a_cache_that_cannot_be_written_is_ignored(load, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert load()
    assert load()
    assert os.listdir(tmp_path) == ["cache"]
