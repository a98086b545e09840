"""MNIST: small made-up IDX files, and the real ones if METAZOO_DATA has them."""

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metazoo import DataError
from metazoo.datasets.mnist import MD5, MNIST, read_idx
from metazoo.images import decode


def idx(array):
    return (
        struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def made_up(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = rng.integers(0, 256, (count, 28, 28))
    images[:, 0, 0] = labels  # the first pixel tells the label
    return images, labels


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for seed, (part, count) in enumerate({"train": 60, "t10k": 40}.items()):
        images, labels = made_up(count, seed)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def load(root, **config):
    return MNIST(MNIST.Config(root=str(root), **config)).splits


def test_splits_have_the_digits_they_should(root):
    splits = load(root)
    assert {name: (s.names, s.counts) for name, s in splits.items()} == {
        "train": (tuple("01234"), (6,) * 5),
        "val": (tuple("01234"), (4,) * 5),
        "test": (tuple("56789"), (10,) * 5),
    }
    for split in splits.values():
        digits = [int(name) for name, count in zip(split.names, split.counts) for _ in range(count)]
        assert split.x[:, 0, 0, 0].tolist() == digits
        assert split.x.shape[1:] == (1, 28, 28)


def test_no_example_is_in_two_splits(root):
    seen = [x.numpy().tobytes() for split in load(root).values() for x in split.x]
    assert len(set(seen)) == len(seen) == 30 + 20 + 50


def test_with_all_digits_there_is_only_a_test_split(root):
    data = MNIST(MNIST.Config(root=str(root), digits="all"))
    assert list(data.splits) == ["test"]
    assert data.split("test").counts == (4,) * 10
    with pytest.raises(DataError, match="no split 'train'"):
        data.split("train")


def test_input_format_makes_the_same_example(root):
    data = MNIST(MNIST.Config(root=str(root), digits="all", size=20))
    image = Image.fromarray(made_up(40, 1)[0][7].astype(np.uint8))
    assert torch.equal(data.split("test").x[4 * 7], decode(image, **data.input_format))
    assert data.split("test").x.shape[1:] == (1, 20, 20)
    plain = MNIST(MNIST.Config(root=str(root), digits="all"))
    assert torch.equal(plain.split("test").x[4 * 7], decode(image, **plain.input_format))


def test_files_may_lie_in_the_root_and_unpacked(root):
    packed = load(root)
    for path in (root / "mnist").iterdir():
        (root / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert torch.equal(load(root)["test"].x, packed["test"].x)


GOOD = idx(np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (GOOD[:9], "not an IDX file"),
        (b"\x01" + GOOD[1:], "not an IDX file"),
        (idx(np.zeros(3)), "not an IDX file of bytes in 2 dimensions"),
        (GOOD[:4] + b"\0" * 4 + b"\xff" * 4, r"is empty: its shape is \(0, 4294967295\)"),
        (GOOD[:4] + b"\xff" * 8, r"0 bytes of data, but \(4294967295, 4294967295\) needs"),
        (GOOD[:-1], r"11 bytes of data, but \(3, 4\) needs 12"),
        (GOOD + b"x", r"13 bytes of data, but \(3, 4\) needs 12"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_is_not_idx_is_named(tmp_path, data, message, suffix):
    path = tmp_path / f"file-idx2-ubyte{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(DataError, match=f"{path.name}.*{message}"):
        read_idx(path, 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d[:-9],
        lambda d: d[: len(d) // 2],
        lambda d: d[:30] + b"\xff" * 20 + d[50:],
        lambda d: b"no",
    ],
)
def test_a_damaged_gzip_is_named(tmp_path, damage):
    path = tmp_path / "x.gz"
    path.write_bytes(
        damage(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (30, 40)))))
    )
    with pytest.raises(DataError, match=r"x\.gz is damaged") as caught:
        read_idx(path, 2)
    assert caught.value.hint


def test_labels_that_do_not_fit_the_images_are_refused(root):
    (root / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(39))))
    with pytest.raises(DataError, match=r"t10k-labels.*not the images and labels"):
        load(root)


def test_a_missing_file_is_named(root):
    (root / "mnist" / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is not in the data root"):
        load(root)


def test_the_published_files():
    folder = Path(os.environ.get("METAZOO_DATA", ""), "mnist")
    if "METAZOO_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("METAZOO_DATA names no data root with MNIST")
    assert {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in MD5} == MD5
    splits = load(folder.parent)
    assert [sum(splits[name].counts) for name in ("train", "val", "test")] == [30596, 5139, 34265]
    assert 0.1 < splits["train"].x.float().mean() / 255 < 0.16
