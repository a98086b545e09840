"""Omniglot: small made-up archives, and the published ones if METAZOO_DATA has them."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from metazoo import DataError, cli, zoo
from metazoo.datasets import omniglot, omniglot_splits
from metazoo.datasets.omniglot import ALPHABETS, MD5, Omniglot
from metazoo.datasets.omniglot_splits import (
    BACKGROUND,
    EVALUATION,
    character_names,
    part_of,
    random_order,
)
from metazoo.evaluation.protocol import Protocol
from metazoo.images import decode

BACK = {"Balinese": 2, "Greek": 3, "Latin": 1, "Tifinagh": 1}
EVAL = {"Angelic": 2, "ULOG": 1}


def drawing(*key):
    """Return a 105x105 1-bit PNG, ink 0, that differs with the key."""
    image = Image.frombytes("L", (7, 7), hashlib.sha512(repr(key).encode()).digest()[:49])
    file = io.BytesIO()
    image.resize((105, 105), Image.Resampling.BOX).convert("1", dither=Image.Dither.NONE).save(
        file, "PNG"
    )
    return file.getvalue()


def characters(alphabets):
    return {
        f"{alphabet}/character{c:02}/0001_{d:02}.png": drawing(alphabet, c, d)
        for alphabet, count in alphabets.items()
        for c in range(1, count + 1)
        for d in range(1, 21)
    }


def runs():
    files = {}
    for run in range(1, 21):
        answers = [(item * 7 + run) % 20 + 1 for item in range(1, 21)]
        lines = [
            f"run{run:02}/test/item{i:02}.png run{run:02}/training/class{a:02}.png"
            for i, a in enumerate(answers, 1)
        ]
        files[f"run{run:02}/class_labels.txt"] = "\n".join(lines).encode() + b"\n"
        for i, answer in enumerate(answers, 1):
            files[f"run{run:02}/test/item{i:02}.png"] = drawing(run, answer)
            files[f"run{run:02}/training/class{i:02}.png"] = drawing(run, i)
    return files


def pack(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with a small Omniglot that replaces the official one."""
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        omniglot,
        "ALPHABETS",
        {
            "images_background": BACK,
            "images_background_small1": {"Greek": 3, "Latin": 1},
            "images_background_small2": {"Greek": 3, "Latin": 1},
            "images_evaluation": EVAL,
        },
    )
    folder = tmp_path / "root" / "omniglot"
    folder.mkdir(parents=True)
    for archive, alphabets in omniglot.ALPHABETS.items():
        pack(
            folder / f"{archive}.zip",
            {f"{archive}/{name}": data for name, data in characters(alphabets).items()},
        )
    pack(folder / "all_runs.zip", runs())
    return tmp_path / "root"


def load(root, **config):
    return Omniglot(Omniglot.Config(root=str(root), **config)).splits


def test_lake_split_by_alphabet(root):
    splits = load(root, rotations=False)
    assert splits["train"].names == (
        "Greek/character01",
        "Greek/character02",
        "Greek/character03",
        "Latin/character01",
    )
    assert splits["val"].names == (
        "Balinese/character01",
        "Balinese/character02",
        "Tifinagh/character01",
    )
    assert splits["test"].names == (
        "Angelic/character01",
        "Angelic/character02",
        "ULOG/character01",
    )
    assert splits["test"].x.shape == (60, 1, 28, 28)
    assert set(splits["test"].counts) == {20}


def test_small_sets_validate_on_one_alphabet(root):
    splits = load(root, rotations=False, split="small1")
    assert {name.split("/")[0] for name in splits["train"].names} == {"Greek"}
    assert splits["val"].names == ("Latin/character01",)
    assert len(splits["test"].names) == 3


@pytest.mark.parametrize("size", [28, 20])
def test_drawings_are_in_order_with_ink_one(root, size):
    test = load(root, rotations=False, size=size)["test"]
    for row, key in ((0, ("Angelic", 1, 1)), (39, ("Angelic", 2, 20)), (40, ("ULOG", 1, 1))):
        assert torch.equal(test.x[row], decode(drawing(*key), size=size, channels=1, invert=True))


def test_rotations_are_classes_of_their_own(root):
    plain, turned = (load(root, rotations=r)["test"] for r in (False, True))
    assert len(turned.names) == 4 * len(plain.names)
    assert turned.names[4:8] == tuple(
        f"Angelic/character02{r}" for r in ("", "/rot090", "/rot180", "/rot270")
    )
    assert torch.equal(turned.x[80:100], plain.x[20:40])
    image = Image.open(io.BytesIO(drawing("Angelic", 2, 1))).convert("L")
    for turns, row in ((1, 100), (2, 120), (3, 140)):
        first_turned = decode(image.rotate(90 * turns), size=28, channels=1, invert=True)
        assert (turned.x[row].int() - first_turned.int()).abs().max() <= 8


def test_only_training_classes_are_mirrored(root):
    plain, mirrored = load(root), load(root, mirrored=True)
    assert mirrored["train"].names[:4] == (
        "Greek/character01",
        "Greek/character01/mirrored",
        "Greek/character01/rot090",
        "Greek/character01/rot090/mirrored",
    )
    assert torch.equal(mirrored["train"].x[0:20], plain["train"].x[:20])
    assert torch.equal(mirrored["train"].x[60:80], plain["train"].x[20:40].flip(-1))
    assert (
        len(mirrored["train"].names)
        == 2 * len(plain["train"].names)
        == len(mirrored["train"].counts)
    )
    assert [mirrored[part].names for part in ("val", "test")] == [
        plain[part].names for part in ("val", "test")
    ]


def test_tasks_within_an_alphabet_are_mirrored_as_a_whole(root):
    data = Omniglot(Omniglot.Config(root=str(root), mirrored=True, within_alphabet=True))
    tasks = data.tasks("train", 3, 1, 1, 0)
    names = data.split("train").names
    for classes in tasks.choose(0, 50)[0]:
        assert {names[c].partition("/")[0] for c in classes} == {"Greek"}
        assert len({names[c].partition("/")[2].partition("/")[2] for c in classes}) == 1
    assert {
        names[c].endswith("mirrored") for classes in tasks.choose(0, 50)[0] for c in classes
    } == {True, False}


def test_the_validation_characters_can_be_trained_on(root):
    apart, together = load(root, rotations=False), load(root, rotations=False, train_on_val=True)
    assert set(together["train"].names) == {*apart["train"].names, *apart["val"].names}
    assert [together[part].names for part in ("val", "test")] == [
        apart[part].names for part in ("val", "test")
    ]


def test_input_format_makes_the_same_example(root):
    data = Omniglot(Omniglot.Config(root=str(root), rotations=False))
    assert torch.equal(
        decode(drawing("Angelic", 1, 1), **data.input_format), data.split("test").x[0]
    )
    assert data.split("test").x.shape[1:] == (1, data.config.size, data.config.size)


def test_unpacked_folders_give_the_same(root, tmp_path):
    packed = load(root)
    loose = tmp_path / "loose"
    for path in (root / "omniglot").glob("images_*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(loose)
    unpacked = load(loose)
    for split in packed:
        assert packed[split].names == unpacked[split].names
        assert torch.equal(packed[split].x, unpacked[split].x)


def test_the_second_time_comes_from_the_cache(root, monkeypatch):
    first = load(root)
    monkeypatch.setattr(omniglot, "decode", None)
    second = load(root)
    assert all(
        torch.equal(first[split].x, second[split].x) and first[split].names == second[split].names
        for split in first
    )
    with pytest.raises(TypeError):
        load(root, size=20)


def changed(root, change, archive="images_evaluation"):
    path = root / "omniglot" / f"{archive}.zip"
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    pack(path, files)


def first(files, part):
    return next(name for name in files if part in name)


def drop(part):
    return lambda files: files.pop(first(files, part))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("Angelic/character02"), r"has 19 drawings of Angelic/character02 instead of 20"),
        (
            lambda f: [f.pop(n) for n in list(f) if "ULOG" in n],
            "has 0 drawings of ULOG/character01",
        ),
        (
            lambda f: f.update({"x/Klingon/character01/0001_01.png": drawing(1)}),
            "Klingon/character01, which is not a character",
        ),
        (
            lambda f: f.update({first(f, "ULOG"): b"damaged"}),
            r"ULOG/character01/.*png' is not an image",
        ),
    ],
)
def test_an_error_names_what_is_wrong_with_an_archive(root, tmp_path, change, message):
    changed(root, change)
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert "images_evaluation.zip" in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.rglob("*.part"))


def test_a_truncated_archive_is_named(root):
    path = root / "omniglot" / "images_background.zip"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(
        DataError, match=r"images_background\.zip is not a zip archive, or a truncated one"
    ):
        load(root)


def test_the_constructor_reads_nothing(tmp_path):
    data = Omniglot(Omniglot.Config(root=str(tmp_path / "gone")))
    assert data.input_format["size"] == 28
    with pytest.raises(DataError, match=r"images_background\.zip is not in the data root"):
        data.split("train")


def challenge(root):
    return Omniglot(Omniglot.Config(root=str(root))).protocols()["one-shot-challenge"]()


def test_challenge_has_twenty_runs_with_matching_labels(root):
    source, count = challenge(root)
    tasks = source.draw(0, count)
    assert count == 20
    assert tasks.support_x.shape == tasks.query_x.shape == (20, 20, 1, 28, 28)
    assert tasks.support_x.min() == 0
    assert tasks.support_x.max() == 1
    for run in range(20):
        # The made-up queries equal the training images of their answers.
        assert torch.equal(tasks.query_x[run], tasks.support_x[run][tasks.query_y[run]])
        assert tasks.support_y[run].tolist() == list(range(20))
        assert tasks.query_y[run].tolist() == [(item * 7 + run + 1) % 20 for item in range(1, 21)]
    assert torch.equal(source.draw(3, 2).query_y, tasks.query_y[3:5])
    with pytest.raises(DataError, match="has 20 tasks"):
        source.draw(19, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("run07/training/class03.png"), r"no file run07/training/class03\.png"),
        (drop("run20/class_labels"), r"no file run20/class_labels\.txt"),
        (
            lambda f: f.update({"run01/class_labels.txt": b"run01/test/item01.png"}),
            "run01/class_labels.txt' has an invalid line",
        ),
        (
            lambda f: f.update({"run01/class_labels.txt": b"run01/test/item01.png class21.png"}),
            "class_labels.txt' has an invalid line",
        ),
        (
            lambda f: f.update({"run01/class_labels.txt": b"run01/test/item01.png class20.png"}),
            "lists 1 queries, not 20",
        ),
    ],
)
def test_a_damaged_challenge_is_named(root, change, message):
    changed(root, change, "all_runs")
    with pytest.raises(DataError, match=message):
        challenge(root)


def test_the_splits_have_the_published_sizes():
    assert (len(BACKGROUND), sum(BACKGROUND.values())) == (30, 964)
    assert (len(EVALUATION), sum(EVALUATION.values())) == (20, 659)
    assert [sum(ALPHABETS[f"images_background_small{i}"].values()) for i in (1, 2)] == [136, 156]
    everyone = character_names(BACKGROUND | EVALUATION)
    vinyals, random = (
        [part_of(split, name) for name in everyone] for split in ("vinyals", "random")
    )
    assert Counter(vinyals) == {"train": 1028, "val": 172, "test": 423}
    assert Counter(random) == {"train": 1100, "val": 100, "test": 423}
    # Training and test both have all alphabets, and the order is the same on every machine.
    for part in ("train", "test"):
        alphabets = {name.partition("/")[0] for name, its in zip(everyone, random) if its == part}
        assert len(alphabets) == 50
    assert list(random_order())[:2] == [
        "Malayalam/character06",
        "Japanese_(katakana)/character22",
    ]


def test_validation_alphabets_follow_their_rule():
    assert list(omniglot_splits.VALIDATION["lake"]) == sorted(BACKGROUND)[5::6]
    assert list(omniglot_splits.VALIDATION["small1"]) == sorted(omniglot_splits.SMALL1)[-1:]
    assert list(omniglot_splits.VALIDATION["small2"]) == sorted(omniglot_splits.SMALL2)[-1:]


@pytest.fixture(scope="module")
def real():
    folder = Path(os.environ.get("METAZOO_DATA", ""), "omniglot")
    if "METAZOO_DATA" not in os.environ or not (folder / "images_background.zip").exists():
        pytest.skip("METAZOO_DATA names no data root with Omniglot")
    return folder


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_vinyals_split_is_the_published_one(real):
    if not (real / "vinyals_split.csv").exists():
        pytest.skip("the data root has no vinyals_split.csv")
    with (real / "vinyals_split.csv").open() as file:
        for row in csv.DictReader(file):
            name = f"{row['alphabet']}/character{row['character'][-2:]}"
            assert part_of("vinyals", name) == row["split"]


def test_published_md5_of_the_unchanged_archives(real):
    for name in ("all_runs", "images_background_small1", "images_background_small2"):
        if not (real / f"{name}.zip").exists():
            pytest.skip(f"the data root has no {name}.zip")
        assert hashlib.md5((real / f"{name}.zip").read_bytes()).hexdigest() == MD5[name]


@pytest.mark.slow
def test_the_published_archives(real, real_cache, monkeypatch):
    monkeypatch.setenv("METAZOO_CACHE", str(real_cache))
    lake, vinyals = load(real), load(real, split="vinyals")
    assert {s: len(e.names) for s, e in lake.items()} == {
        "train": 4 * 806,
        "val": 4 * 158,
        "test": 4 * 659,
    }
    assert {s: len(e.names) for s, e in vinyals.items()} == {
        "train": 4 * 1028,
        "val": 4 * 172,
        "test": 4 * 423,
    }
    monkeypatch.setattr(omniglot, "decode", lambda *_, **__: pytest.fail("decoded again"))
    load(real)
    # Ink is 1, and most of the image is background.
    assert 0.05 < lake["train"].x.float().mean() / 255 < 0.15


def test_the_real_challenge_is_above_chance_by_pixels(real):
    source, count = challenge(real)
    tasks = source.draw(0, count)
    nearest = torch.cdist(tasks.query_x.flatten(2), tasks.support_x.flatten(2)).argmin(-1)
    accuracy = (nearest == tasks.query_y).float().mean()
    assert 0.15 < accuracy < 0.6  # chance, or labels shifted by one, would give 0.05


def test_tasks_within_an_alphabet(root):
    data = Omniglot(Omniglot.Config(root=str(root), within_alphabet=True))
    names = data.split("train").names
    tasks = data.tasks("train", 2, 1, 2, 0)
    seen = Counter()
    for classes, rows in zip(*(part.tolist() for part in tasks.choose(0, 60))):
        assert [[names[c]] * 3 for c in classes] == [
            [names[row // 20] for row in each] for each in rows
        ]
        assert len({row for each in rows for row in each}) == 6
        (group,) = {(names[c].partition("/")[0], names[c].partition("rot")[2]) for c in classes}
        seen[group] += 1
    # Greek is the only training alphabet with more than one character; it has four rotations.
    assert set(seen) == {("Greek", turn) for turn in ("", "090", "180", "270")}
    assert tasks.draw(0, 2).support_x.shape == (2, 2, 1, 28, 28)
    with pytest.raises(DataError, match=r"no alphabet of .* has 4 characters; the largest has 3"):
        data.tasks("train", 4, 1, 2, 0)


def test_options_of_training_leave_evaluations_comparable(root, tmp_path, capsys):
    common = (
        f"train protonet --dataset omniglot --data-root {root} --ways 3 --queries 2 --steps 1 "
        "--validation-episodes 2 --test-episodes 2 --train-ways 3 --train-queries 1 "
        "--backbone-width 4"
    ).split()
    plain, other = tmp_path / "plain", tmp_path / "other"
    assert cli.run([*common, "--out", str(plain)]) == 0
    options = ["--data-mirrored", "--data-train-on-val"]
    assert cli.run([*common, *options, "--out", str(other)]) == 0
    both = f"eval {plain} {other} --data-root {root} --episodes 3 --json".split()
    for split, differences in (("test", 1), ("train", 0)):
        capsys.readouterr()
        assert cli.run([*both, "--split", split]) == 0
        out, err = capsys.readouterr()
        assert len(json.loads(out)["differences"]) == differences
        assert ("different data" in err) == (split == "train")
    capsys.readouterr()
    assert cli.run([*both, "--split", "val"]) == 0
    err = capsys.readouterr().err
    # Three characters with four rotations each.
    assert f"12 of the 12 classes have names of classes that '{other}' was trained on" in err
    assert err.count("was trained on") == 1


def test_a_model_knows_which_classes_of_a_protocol_it_was_trained_on(root, tmp_path):
    words = f"train protonet --dataset omniglot --data-root {root} --ways 3 --queries 2 --steps 1"
    few = "--validation-episodes 2 --test-episodes 2 --backbone-width 4 --out"
    assert cli.run([*words.split(), *few.split(), str(tmp_path / "lake")]) == 0
    lake = zoo.find(tmp_path / "lake")
    options = {**lake.blueprint.dataset_options, "split": "vinyals"}
    theirs = Omniglot(Omniglot.Config(**options)).split("train")
    spec = dataclasses.replace(lake.blueprint.spec, classes=len(theirs.names))
    vinyals = dataclasses.replace(
        lake, blueprint=dataclasses.replace(lake.blueprint, dataset_options=options, spec=spec)
    )
    data = Omniglot(Omniglot.Config(root=str(root)))
    behind = Protocol(name="one-shot-challenge").classes(data)
    assert len(behind) == 3
    # Vinyals' split trains on Angelic, which has two of the three characters.
    assert vinyals.trained_on(data).intersection(behind) == {
        "Angelic/character01",
        "Angelic/character02",
    }
    assert lake.trained_on(data).isdisjoint(behind)
