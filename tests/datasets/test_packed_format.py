"""Folders that are not packed data, or are damaged, are refused; damaged shards are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packs import Vectors, packed

from metazoo import DataError, OptionError
from metazoo.cli import run
from metazoo.datasets.packed.dataset import Packed
from metazoo.datasets.packed.writer import pack

Capture = pytest.CaptureFixture[str]


def refused(root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        packed(root).split("train")
    assert caught.value.hint


def test_folders_with_missing_or_damaged_files_are_refused(
    tmp_path: Path, packed_vectors: Path
) -> None:
    refused(tmp_path / "gone", "gone does not exist")
    refused(tmp_path, "has no index.json")
    with pytest.raises(OptionError, match="needs a folder") as caught:
        Packed().split("train")
    assert "--data-root" in (caught.value.hint or "")
    file = packed_vectors / "train.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    refused(packed_vectors, r"train\.bin is truncated: it has 479 bytes instead of 480")
    file.write_bytes(data + b"x")
    refused(packed_vectors, r"train\.bin is too long")
    file.unlink()
    refused(packed_vectors, r"has no file train\.bin")
    file.mkdir()
    refused(packed_vectors, r"has no file train\.bin")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shape": [5.0]}, "'shape'"),
        ({"shape": [0]}, "'shape'"),
        ({"shape": 5}, "'shape'"),
        ({"counts": [4, 6, 5, -9]}, "'counts'"),
        ({"counts": [4, 6, 5, True]}, "'counts'"),
        ({"counts": [4, 6, 5]}, "4 names of classes but 3 counts"),
        ({"counts": [4, 6, 5, 10**30]}, "checksums"),
        ({"names": ["a", "b", "c", 1]}, "'names'"),
        ({"names": "abcd"}, "'names'"),
        ({"dtype": "object"}, "'dtype'"),
        ({"dtype": ["uint8"]}, "'dtype'"),
        ({"dtype": "float64"}, "truncated"),
        ({"shard": 0}, "'shard'"),
        ({"sha256": ["0"] * 11}, "11 checksums for 12 shards"),
        ({"sha256": [0] * 12}, "'sha256'"),
    ],
)
def test_an_index_with_wrong_values_is_refused(
    packed_vectors: Path, change: dict[str, Any], match: str
) -> None:
    index = json.loads((packed_vectors / "index.json").read_text())
    index["splits"]["train"] |= change
    (packed_vectors / "index.json").write_text(json.dumps(index))
    refused(packed_vectors, match)


@pytest.mark.parametrize("shape", [[2**62, 2**62], [2**63], [2**33], [1] * 100])
def test_an_empty_split_with_an_absurd_shape_is_refused(
    packed_vectors: Path, shape: list[int]
) -> None:
    index = json.loads((packed_vectors / "index.json").read_text())
    index["splits"]["train"] |= {"shape": shape, "counts": [0] * 4, "sha256": []}
    (packed_vectors / "index.json").write_text(json.dumps(index))
    (packed_vectors / "train.bin").write_bytes(b"")
    refused(packed_vectors, "'shape' has more than 16 dimensions or 4294967296 bytes")


def test_images_of_another_size_than_models_will_be_given_are_refused(packed_vectors: Path) -> None:
    index = json.loads((packed_vectors / "index.json").read_text())
    index["input_format"] = {"size": 28, "channels": 1, "invert": False}
    (packed_vectors / "index.json").write_text(json.dumps(index))
    refused(packed_vectors, "'input_format' and 'shape' do not agree")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"x"',
        "[" * 100_000,
        "\x00",
        '{"format": 1}',
        '{"format": 1, "licence": "", "splits": 1}',
        '{"format": 1, "licence": "", "splits": {"../../etc/passwd": {}}, "input_format": {}}',
        '{"format": 1, "licence": "", "splits": {"train": {}}, "input_format": {}}',
        '{"format": 1, "licence": "", "splits": {"train": []}, "input_format": {}}',
        '{"format": 1, "licence": "", "splits": {}, "input_format": {"size": "28", "channels": 1, "invert": true}}',
        '{"format": 1, "licence": "", "splits": {}, "input_format": {"size": 99999999, "channels": 1, "invert": true}}',
        '{"format": 1, "licence": "", "splits": {}, "input_format": [1]}',
        '{"format": 1, "licence": 1, "splits": {}}',
        '{"format": 99}',
    ],
)
def test_a_file_that_is_not_an_index_is_refused(
    packed_vectors: Path, text: str, capsys: Capture
) -> None:
    (packed_vectors / "index.json").write_text(text)
    refused(
        packed_vectors, r"index\.json (cannot be read|does not describe packed data|has format 99)"
    )
    assert run(["data", "verify", str(packed_vectors)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    # Packing does not overwrite it.
    with pytest.raises(DataError):
        pack(Vectors(), "vectors", packed_vectors)
    assert (packed_vectors / "index.json").read_text() == text


def test_verify_names_the_damaged_shards(packed_vectors: Path, capsys: Capture) -> None:
    assert run(["data", "verify", str(packed_vectors)]) == 0
    assert capsys.readouterr() == ("19 of 19 shards are intact\n", "")
    for name, place in (("train", 479), ("test", 41)):
        data = bytearray((packed_vectors / f"{name}.bin").read_bytes())
        data[place] ^= 1
        (packed_vectors / f"{name}.bin").write_bytes(data)
    assert run(["data", "verify", str(packed_vectors)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "train.bin: shard 11 (bytes 440 to 479, examples 22 to 23) is damaged",
        "test.bin: shard 1 (bytes 40 to 79, examples 2 to 3) is damaged",
        "17 of 19 shards are intact",
    ]
    assert err.startswith(f"error: 2 of 19 shards in {packed_vectors} are damaged\nhint: ")
    assert run(["data", "verify", str(packed_vectors), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["shards"] == 19
    assert found["damaged"][1] == {
        "file": "test.bin",
        "shard": 1,
        "examples": [2, 4],
        "bytes": [40, 80],
    }
