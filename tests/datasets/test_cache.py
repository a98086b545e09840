"""Decoded examples that come back from the cache, and caches that are damaged or cannot be written."""

import os

import pytest
import torch

from metazoo import Examples
from metazoo.datasets.cache import remember

EXAMPLES = Examples(
    torch.arange(60, dtype=torch.uint8).view(5, 1, 3, 4), (2, 3), ("a", "ü/b"), "some data"
)


@pytest.fixture
def recall(tmp_path, monkeypatch):
    """Recalls EXAMPLES under a key and returns them, and whether they had to be built."""
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "cache"))

    def call(key="key"):
        built = []
        examples = remember("set", key, lambda: built.append(1) or EXAMPLES)
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


def test_built_once_for_each_key(recall, tmp_path):
    assert recall()
    assert not recall()
    assert recall("other key")
    assert not recall("other key")
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
def test_a_damaged_file_is_built_again(recall, tmp_path, damage):
    recall()
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert recall()
    assert not recall()
    assert files(tmp_path) == [path]


def test_a_cache_that_cannot_be_written_is_passed_over(recall, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert recall()
    assert recall()
    assert os.listdir(tmp_path) == ["cache"]
