"""Folders of images in every supported layout, and in many that are refused."""

import itertools
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from metazoo import DataError, OptionError
from metazoo.datasets.class_splits import divide
from metazoo.datasets.folder import Folder
from metazoo.errors import DataWarning
from metazoo.image_folders import query_images, support_images
from metazoo.images import decode


def make(root, *files):
    """Write an image of a new colour to each path, or a text if the suffix is not an image's."""
    for i, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".db", ""):
            path.write_text("not an image")
        else:
            Image.new("RGB", (20 + i, 30), (i, 2 * i % 256, 255 - i)).save(path)
    return root


def classes(*names, count=2, split="."):
    return [f"{split}/{name}/{i}.png" for name in names for i in range(count)]


def folder(root, **config):
    return Folder(Folder.Config(root=str(root), **config))


def names(root, **config):
    return {
        split: list(examples.names)
        for split, examples in folder(root, size=8, **config).splits.items()
    }


def refused(root, match, **config):
    with pytest.raises(DataError, match=match) as caught:
        folder(root, **config).load()
    assert caught.value.hint


TEN = tuple("abcdefghij")


def test_a_tree_with_splits(tmp_path):
    make(
        tmp_path,
        *classes("a", "b", split="train"),
        *classes("c", split="val"),
        *classes("d", "e", split="test"),
    )
    assert names(tmp_path) == {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]}


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_names_of_val(tmp_path, name):
    make(tmp_path, *classes("a", "b", split="TRAIN"), *classes("c", split=name))
    assert names(tmp_path) == {"train": ["a", "b"], "val": ["c"]}


def test_classes_of_train_become_val_if_val_is_missing(tmp_path):
    make(tmp_path, *classes(*TEN, split="train"), *classes("x", split="test"))
    found = names(tmp_path)
    assert {split: len(n) for split, n in found.items()} == {"train": 8, "val": 2, "test": 1}
    assert sorted(found["train"] + found["val"]) == list(TEN)
    assert names(tmp_path, val_fraction=0.0) == {"train": list(TEN), "test": ["x"]}


def test_only_a_test_split(tmp_path):
    assert names(make(tmp_path, *classes("a", "b", split="test"))) == {"test": ["a", "b"]}


def test_a_tree_without_splits_is_divided_by_class(tmp_path):
    make(tmp_path, *classes(*TEN))
    found = names(tmp_path)
    assert {split: len(n) for split, n in found.items()} == {"train": 6, "val": 2, "test": 2}
    assert sorted(itertools.chain(*found.values())) == list(TEN)
    assert names(tmp_path) == found
    assert len({str(names(tmp_path, seed=seed)) for seed in range(5)}) > 1
    assert {s: len(n) for s, n in names(tmp_path, val_fraction=0.0, test_fraction=0.5).items()} == {
        "train": 5,
        "test": 5,
    }


def test_the_division_depends_only_on_names_and_seed():
    assert divide(TEN, (0.2, 0.2), 0) == divide(reversed(TEN), (0.2, 0.2), 0)
    assert divide(TEN, (0.2, 0.3), 0) == [["f", "h"], ["d", "g", "j"], ["a", "b", "c", "e", "i"]]
    assert [len(group) for group in divide(TEN, (0.01, 0.0), 0)] == [1, 0, 9]


def test_too_few_classes_to_divide(tmp_path):
    make(tmp_path, *classes("a", "b"))
    refused(tmp_path, "has only 2 classes, which leaves none for training")


def test_examples_lie_class_by_class(tmp_path):
    make(tmp_path, *classes("a", count=3, split="test"), *classes("b", count=2, split="test"))
    data = folder(tmp_path, size=12)
    test = data.split("test")
    assert test.counts == (3, 2)
    assert test.x.shape == (5, 3, 12, 12)
    for row, file in enumerate(["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png"]):
        assert torch.equal(test.x[row], decode(tmp_path / "test" / file, **data.input_format))


def test_grey_and_inverted(tmp_path):
    make(tmp_path, *classes("a", split="test"))
    plain, inverted = (folder(tmp_path, channels="grey", invert=i, size=9) for i in (False, True))
    assert plain.input_format == {"size": 9, "channels": 1, "invert": False}
    assert plain.split("test").x.shape[1:] == (1, 9, 9)
    assert torch.equal(plain.split("test").x, 255 - inverted.split("test").x)


@pytest.mark.parametrize("around", ["", "data/", "my/data/"])
@pytest.mark.parametrize(
    "files",
    [classes(*TEN), classes(*TEN, split="train") + classes("x", split="test")],
    ids=["flat", "splits"],
)
def test_a_zip_gives_the_same_as_the_folder(tmp_path, files, around):
    root = make(tmp_path / "tree", *files)
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        for path in root.rglob("*.png"):
            archive.write(path, around + str(path.relative_to(root)))
        archive.writestr(f"__MACOSX/{around}a/._0.png", b"resource fork")
    loose, packed = folder(root, size=8).splits, folder(tmp_path / "t.zip", size=8).splits
    assert loose.keys() == packed.keys()
    for split in loose:
        assert loose[split].names == packed[split].names
        assert torch.equal(loose[split].x, packed[split].x)


def test_other_files_are_ignored(tmp_path):
    make(
        tmp_path,
        *classes(*TEN),
        "a/notes.txt",
        "a/Thumbs.db",
        "b/.DS_Store",
        "README",
        ".git/x/y.png",
        "c/deep/notes.txt",
    )
    assert sorted(itertools.chain(*names(tmp_path).values())) == list(TEN)


def test_suffixes_in_capitals(tmp_path):
    make(tmp_path, "test/a/0.PNG", "test/a/1.JPG")
    assert folder(tmp_path).split("test").counts == (2,)


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    make(tmp_path, *classes("bus", "train", "tram", "ship", "plane"))
    assert sorted(itertools.chain(*names(tmp_path).values())) == [
        "bus",
        "plane",
        "ship",
        "train",
        "tram",
    ]


def test_linked_classes_are_followed(tmp_path):
    make(tmp_path / "elsewhere", *classes("a"))
    (tmp_path / "root" / "test").mkdir(parents=True)
    (tmp_path / "root" / "test" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    assert names(tmp_path / "root") == {"test": ["a"]}


def test_no_root_given():
    with pytest.raises(OptionError, match="needs a folder") as caught:
        Folder().load()
    assert "--data-root" in caught.value.hint


def test_a_root_that_is_missing_or_has_no_images_is_refused(tmp_path):
    refused(tmp_path / "gone", "no directory or zip archive .*gone")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "file is not a zip archive")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty is empty")
    refused(
        make(tmp_path / "texts", "a/1.txt", "a/2.txt"), "none of the 2 files in .*texts is an image"
    )


def test_images_outside_of_class_folders_are_refused(tmp_path):
    refused(
        make(tmp_path / "1", *classes("a", "b"), "lost.png"),
        r"lost\.png is not in the folder of a class",
    )
    refused(make(tmp_path / "2", *classes("a", "b"), "a/deep/lost.png"), r"lost\.png is not in")
    refused(
        make(tmp_path / "3", *classes("a", split="train"), *classes("b", split="other")),
        "other/b/0.png is not in",
    )
    refused(
        make(tmp_path / "4", *classes("a", split="train"), "test/lost.png"),
        r"test/lost\.png is not in",
    )
    refused(make(tmp_path / "5", "lost.png", "found.png"), "is not in")


def test_a_class_without_images_is_named(tmp_path):
    make(tmp_path, *classes(*TEN), "k/notes.txt")
    refused(tmp_path, "/k has no images")
    (tmp_path / "k" / "notes.txt").unlink()
    refused(tmp_path, "/k has no images")
    make(tmp_path / "s", *classes("a", split="train"), *classes("b", split="test"))
    (tmp_path / "s" / "test" / "c").mkdir()
    refused(tmp_path / "s", "/test/c has no images")
    (tmp_path / "s" / "test" / "c").rmdir()
    (tmp_path / "s" / "val").mkdir()
    refused(tmp_path / "s", "/val has no images")


def test_classes_that_differ_only_in_case_are_two_and_this_is_said(tmp_path):
    make(tmp_path, *classes("A", "a", "b", "c", "d"))
    for read in (support_images, lambda root: folder(root).load()):
        with pytest.warns(DataWarning, match="differ only in case: 'A' and 'a'\n  hint: "):
            read(tmp_path)
    with pytest.warns(DataWarning):
        assert [name for name, _ in support_images(tmp_path)] == ["A", "a", "b", "c", "d"]


def test_classes_that_look_the_same(tmp_path):
    # One accented letter, and a letter with an accent after it.
    refused(make(tmp_path, *classes("caf\u00e9", "cafe\u0301", "dog")), "different Unicode forms")


def test_a_file_that_may_be_an_image_is_not_left_out_in_silence(tmp_path):
    make(tmp_path, *classes("a", "b"), "a/notes.txt", "README", "labels.db")
    for name in ("1.heic", "2.cr2", "3.zip", "4"):
        (tmp_path / "a" / name).write_bytes(b"?")
    for read in (support_images, query_images):
        with pytest.warns(DataWarning) as caught:
            read(tmp_path)
        (warning,) = caught
        message, hint = str(warning.message).split("\n  hint: ")
        assert message == f"4 files in {tmp_path} left out: a/1.heic, a/2.cr2, a/3.zip, ..."
        assert "heif-convert" in hint
        assert "unpack" in hint
    with pytest.raises(DataError) as raised:
        query_images(tmp_path / "a" / "1.heic")
    assert "heif-convert" in raised.value.hint


def test_a_class_in_two_splits(tmp_path):
    for name in ("cat", "Cat"):
        make(tmp_path / name, *classes("cat", "dog", split="train"), *classes(name, split="test"))
        refused(tmp_path / name, r"class '[cC]at' .* is in '(test|train)' and in '(test|train)'")


def test_one_split_under_two_names(tmp_path):
    refused(
        make(tmp_path, *classes("a", split="val"), *classes("b", split="valid")),
        "'val' and 'valid' in .* are the same split",
    )


def test_a_damaged_image_is_named(tmp_path):
    make(tmp_path, *classes("a", "b", split="test"))
    good = tmp_path / "test" / "b" / "1.png"
    good.write_bytes(good.read_bytes()[:60])
    refused(tmp_path, r"test/b/1\.png cannot be read as an image")


def test_a_damaged_image_in_a_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("test/a/0.png", b"no image")
    refused(tmp_path / "t.zip", r"t\.zip: member 'test/a/0\.png' is not an image")


def test_the_constructor_reads_nothing(tmp_path):
    assert folder(tmp_path / "gone").input_format["size"] == 64


def test_support_images(tmp_path):
    make(tmp_path, "cat/2.png", "cat/1.jpg", "dog/x.gif", "dog/notes.txt")
    assert support_images(tmp_path) == [
        ("cat", [tmp_path / "cat" / "1.jpg", tmp_path / "cat" / "2.png"]),
        ("dog", [tmp_path / "dog" / "x.gif"]),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([*classes("a"), "b/notes.txt"], "/b has no images"),
        (["1.png", "2.png"], "is not in the folder of a class"),
        (
            classes("a", split="train") + classes("b", split="test"),
            "holds the splits of a data set",
        ),
        (["a/notes.txt"], "none of the 1 files"),
    ],
)
def test_support_folders_in_another_layout_are_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message) as caught:
        support_images(make(tmp_path, *files))
    assert caught.value.hint


def test_support_that_is_a_file_or_missing_is_refused(tmp_path):
    make(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"a\.png is a file"):
        support_images(tmp_path / "a.png")
    with pytest.raises(DataError, match="no directory"):
        support_images(tmp_path / "gone")


def test_query_images(tmp_path):
    make(tmp_path, "b.png", "a/2.png", "a/1.png", "a/notes.txt")
    assert query_images(tmp_path) == [tmp_path / file for file in ("a/1.png", "a/2.png", "b.png")]
    assert query_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    with pytest.raises(DataError, match=r"notes\.txt does not have the suffix of an image"):
        query_images(tmp_path / "a" / "notes.txt")
    with pytest.raises(DataError, match="no directory"):
        query_images(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is empty"):
        query_images(tmp_path / "empty")


def test_caltech101():
    path = Path(os.environ.get("METAZOO_DATA", ""), "caltech101_32px.zip")
    if "METAZOO_DATA" not in os.environ or not path.exists():
        pytest.skip("METAZOO_DATA names no data root with caltech101_32px.zip")
    splits = folder(path, size=32).splits
    assert {split: len(e.names) for split, e in splits.items()} == {
        "train": 61,
        "val": 16,
        "test": 20,
    }
    assert sum(len(e.x) for e in splits.values()) == 3820
