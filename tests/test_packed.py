"""Packed data: the same tasks as the data they were made of, whatever stops the packing, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_run
from PIL import Image

from metazoo import ClassDataset, DataError, Episode, Examples, OptionError, Stream, runs
from metazoo.checkpoint import load_tensors
from metazoo.cli import run
from metazoo.datasets import packing, shards
from metazoo.datasets.folder import Folder
from metazoo.datasets.glyphs import Glyphs
from metazoo.datasets.omniglot import Omniglot
from metazoo.datasets.packed import Packed
from metazoo.datasets.packing import pack
from metazoo.datasets.sinusoid import Sinusoid
from metazoo.episodes import BatchSampler
from metazoo.files import locked

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]


class Vectors(ClassDataset):
    """Numbers, in classes of different sizes."""

    licence = "none"

    def load(self) -> dict[str, Examples]:
        counts = {"train": (4, 6, 5, 9), "test": (3, 7, 3)}
        noise = torch.Generator().manual_seed(0)
        return {
            split: Examples(torch.randn(sum(c), 5, generator=noise), c, tuple(f"{split}{i}" for i in range(len(c))), split)
            for split, c in counts.items()
        }


def images(root: Path, classes: int = 12, each: int = 6) -> Path:
    """Make a tree of images of noise, `classes` folders of them."""
    noise = np.random.default_rng(0)
    for c in range(classes):
        (root / f"c{c:02}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noise.integers(0, 256, (12, 12, 3), np.uint8)).save(root / f"c{c:02}" / f"{i}.png")
    return root


def folder(root: Path, size: int = 16) -> Folder:
    return Folder(Folder.Config(root=str(root), size=size))


def packed(root: Path) -> Packed:
    return Packed(Packed.Config(root=str(root)))


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != ".lock"}


def same(a: Episode, b: Episode) -> bool:
    names = ("support_x", "support_y", "query_x", "query_y")
    return all(torch.equal(getattr(a, n), getattr(b, n)) and getattr(a, n).dtype == getattr(b, n).dtype for n in names)


def script(text: str, *words: Any, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program; `words` are its arguments."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


def answer(process: subprocess.Popen[str]) -> str:
    """Return what a program that must succeed prints."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packed glyphs; never changed."""
    out = tmp_path_factory.mktemp("packed") / "glyphs"
    pack(Glyphs(Glyphs.Config(alphabets=6)), "glyphs", out)
    return out


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packed vectors, two to a shard, that may be damaged."""
    monkeypatch.setattr(packing, "SHARD", 40)
    pack(Vectors(), "vectors", tmp_path / "small")
    return tmp_path / "small"


def vectors(tree: Path) -> ClassDataset:
    return Vectors()


def made(tree: Path) -> ClassDataset:
    return Glyphs(Glyphs.Config(alphabets=6))


@pytest.mark.parametrize("source", [vectors, made, folder])
def test_the_same_tasks_as_the_source(source: Callable[[Path], ClassDataset], tree: Path, tmp_path: Path) -> None:
    data = source(tree)
    pack(data, "source", tmp_path / "out")
    ours = packed(tmp_path / "out")
    assert ours.split_sha256() == data.split_sha256()
    assert (ours.input_format, ours.licence) == (data.input_format, data.licence)
    assert list(ours.splits) == list(data.splits)
    for split in data.splits:
        a, b = (d.tasks(split, 2, 1, 2, seed=3) for d in (ours, data))
        assert same(a.draw(0, 70), b.draw(0, 70))
        assert same(a.draw(1000, 1), b.draw(1000, 1))
    batches = [BatchSampler(d.split("train"), 8, seed=1) for d in (ours, data)]
    assert all(torch.equal(batches[0].draw(i, 1).x, batches[1].draw(i, 1).x) for i in range(5))
    x = data.split("train").x
    assert (tmp_path / "out" / "train.bin").read_bytes() == x.numpy().tobytes()


def test_training_on_packed_data_gives_the_same_model(tmp_path: Path, glyphs: Path) -> None:
    one = make_run(tmp_path / "one", "protonet")
    two = make_run(tmp_path / "two", "protonet", "packed", {"root": str(glyphs)})
    losses = [[line.get("loss") for line in runs.read_metrics(run)] for run in (one, two)]
    assert losses[0] == losses[1]
    weights = [load_tensors(run / runs.LAST)[0] for run in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Where the data lie is not kept with the model; how images become examples is.
    metadata = load_tensors(two / runs.BEST)[1]
    assert metadata["dataset_options"] == {}
    assert metadata["input_format"] == Glyphs().input_format


def test_moving_loads_nothing(glyphs: Path) -> None:
    data = packed(glyphs)
    before = data.split("train")
    data.move("cpu")
    data.move("meta")
    assert data.split("train") is before
    assert before.to("cpu") is before
    assert type(before.over(torch.zeros(len(before.x), 3))) is Examples
    assert before.to("meta").x.device.type == "meta"


class Tasks(torch.utils.data.Dataset):
    """What a DataLoader takes."""

    def __init__(self, data: Packed):
        self.sampler, self.batches = data.tasks("train", 5, 1, 2, seed=3), BatchSampler(data.split("train"), 8, seed=1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[int, Episode, torch.Tensor]:
        return os.getpid(), self.sampler.draw(i, 1), self.batches.draw(i, 1).x


@pytest.mark.slow
def test_spawned_workers_draw_the_same_tasks(glyphs: Path) -> None:
    here = Tasks(packed(glyphs))
    here.sampler.draw(0, 1)
    there = list(torch.utils.data.DataLoader(here, batch_size=None, num_workers=2, multiprocessing_context="spawn"))
    assert len({pid for pid, _, _ in there} | {os.getpid()}) == 3
    for i, (_, episode, x) in enumerate(there):
        assert same(episode, here[i][1])
        assert torch.equal(x, here[i][2])


def test_another_process_opens_the_file_as_the_first_did(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    sent = pickle.dumps(packed(Path(small.name)).split("train"))
    monkeypatch.chdir("/")
    again, source = pickle.loads(sent), Vectors().split("train")
    assert torch.equal(again.x, source.x)
    assert (again.counts, again.names, again.title) == (source.counts, source.names, "small (train)")
    index, file = small / "index.json", small / "train.bin"
    data, text = file.read_bytes(), index.read_text()
    for damage, match in (
        (lambda: file.write_bytes(data[:-1]), "is truncated"),
        (lambda: index.write_text("{"), "cannot be read"),
        (
            lambda: index.write_text(text.replace("train0", "train9")),
            r"small \(train\) holds other data than when it was",
        ),
        (lambda: index.write_text(text.replace('"train"', '"val"', 1)), "has no file val.bin"),
        (file.unlink, r"has no file train\.bin"),
        (index.unlink, "has no index.json"),
    ):
        damage()
        with pytest.raises(DataError, match=match):
            pickle.loads(sent)
        file.write_bytes(data)
        index.write_text(text)
    pickle.loads(sent)


def test_packing_again_does_nothing(small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.iterdir() if path.name != ".lock"}
    assert pack(Vectors(), "vectors", small).found == 37
    assert {path: path.stat().st_mtime_ns for path in small.iterdir() if path.name != ".lock"} == before
    # A kill between the index and the end of the journal.
    (small / shards.JOURNAL).write_text("{")
    assert pack(Vectors(), "vectors", small).found == 37
    assert not (small / shards.JOURNAL).exists()


def test_a_split_without_examples(tmp_path: Path) -> None:
    class Empty(Vectors):
        def load(self) -> dict[str, Examples]:
            return {**super().load(), "val": Examples(torch.zeros(0, 5), (), ())}

    pack(Empty(), "empty", tmp_path / "out")
    assert packed(tmp_path / "out").split("val").x.shape == (0, 5)
    assert packed(tmp_path / "out").split_sha256() == Empty().split_sha256()


# Packs in children that kill themselves before the K-th piece, sync or removal, for every K in turn, and goes on from there.
EVERY_KILL = """
    import os, signal, sys
    from pathlib import Path
    from metazoo.datasets import packing
    from metazoo.datasets.folder import Folder

    packing.SHARD, packing.PIECE = 9000, 5000
    data = Folder(Folder.Config(root=sys.argv[1], size=16))
    real, unlink, as_bytes = os.fsync, Path.unlink, packing.as_bytes

    def work(out, last):
        calls = 0
        def step(what, *words, **more):
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return what(*words, **more)
        os.fsync = lambda fd: step(real, fd)
        packing.as_bytes = lambda x: step(as_bytes, x)
        Path.unlink = lambda path, missing_ok=False: step(unlink, path, missing_ok)
        found = packing.pack(data, "folder", out).found
        print(found, flush=True)

    def child(out, last):
        pid = os.fork()
        if pid == 0:
            try:
                work(out, last)
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    base = Path(sys.argv[2])
    for last in range(1, 1000):
        out = base / f"{last:03}"
        status = child(out, last)
        if status == 0:
            break
        assert status == -signal.SIGKILL, (last, status)
        assert child(out, 0) == 0, last
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_kill_at_any_time_loses_nothing(tree: Path, tmp_path: Path) -> None:
    found = [int(line) for line in answer(script(EVERY_KILL, tree, tmp_path)).split()]
    outs = sorted(tmp_path.iterdir())
    assert len(outs) > 35
    whole = contents(outs[-1])
    assert set(whole) == {"index.json", "train.bin", "val.bin", "test.bin"}
    for out in outs[:-1]:
        assert contents(out) == whole, out.name
    # Every child but the last went on from where it was killed: with more and more, and never with nothing but at first.
    assert found[:-1] == sorted(found[:-1])
    assert found[-2] == 72
    assert len(set(found)) > 8
    x = folder(tree).split("train").x
    assert whole["train.bin"] == x.numpy().tobytes()


# Its disk is slow, so that a signal comes in between on a busy machine, too.
COMMAND = """
    import os, sys, time
    from metazoo.cli import run
    from metazoo.datasets import packing
    packing.SHARD = 1
    fsync = os.fsync
    os.fsync = lambda file: (time.sleep(0.05), fsync(file))
    sys.exit(run(sys.argv[1:]))
"""


@contextlib.contextmanager
def midway(tree: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and wait until some shards, but not all, are on disk."""
    process = script(COMMAND, "data", "pack", "folder", out, "--data-root", tree, "--data-size", 64)
    journal = out / shards.JOURNAL
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    yield process
    assert not (out / shards.INDEX).exists()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("many"), classes=20, each=10)


@pytest.mark.slow
def test_kill_9(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(packing, "SHARD", 1)
    with midway(many, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for command in (["data", "verify", str(tmp_path / "out")], ["train", "protonet", "--dataset", "packed"]):
        words = [*command, "--data-root", str(tmp_path / "out")] if "train" in command else command
        assert run(words) == 1
        assert "is not finished\nhint: give the same `metazoo data pack` again" in capsys.readouterr().err
    assert run(["data", "pack", "folder", str(tmp_path / "out"), "--data-root", str(many), "--data-size", "64"]) == 0
    assert "of 200 examples were there already" in capsys.readouterr().err
    pack(folder(many, 64), "folder", tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(many: Path, tmp_path: Path) -> None:
    with midway(many, tmp_path / "out") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "error: interrupted\nhint: the same command goes on from the last whole shard\n"


def test_two_at_once(small: Path) -> None:
    with locked(small, wait=False), pytest.raises(DataError, match="another process is packing"):
        pack(Vectors(), "vectors", small)


@pytest.mark.slow
def test_a_full_disk(many: Path, tmp_path: Path) -> None:
    limit = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        from metazoo.cli import run
        sys.exit(run(sys.argv[1:]))
    """
    process = script(limit, "data", "pack", "folder", tmp_path / "out", "--data-root", many)
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("error: cannot write ")
    assert "start again: it goes on\n" in err
    assert "Traceback" not in err


def unfinished(out: Path, monkeypatch: pytest.MonkeyPatch, data: ClassDataset, after: int = 5) -> None:
    """Leave a packing of which so many shards are done."""

    def stop(done: int, total: int) -> None:
        if len((out / shards.JOURNAL).read_bytes().splitlines()) > after:
            raise KeyboardInterrupt

    monkeypatch.setattr(packing, "SHARD", 40)
    with pytest.raises(KeyboardInterrupt):
        pack(data, "data", out, stop)


def test_what_is_on_disk_is_verified_before_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(tmp_path / "out", monkeypatch, Vectors())
    file = tmp_path / "out" / "train.bin"
    file.write_bytes(file.read_bytes()[:100] + b"changed" + file.read_bytes()[107:])
    assert pack(Vectors(), "data", tmp_path / "out").found == 4  # of shards of two, the third is damaged
    pack(Vectors(), "data", tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("finished", [False, True])
def test_a_source_that_has_changed(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    root, out = images(tmp_path / "tree"), tmp_path / "out"
    if finished:
        pack(folder(root), "data", out)
    else:
        unfinished(out, monkeypatch, folder(root))
    before = contents(out)
    with pytest.raises(OptionError, match=r"of 'data' size=16.*, not of 'data' size=20") as caught:
        pack(folder(root, 20), "data", out)
    assert "a new folder" in (caught.value.hint or "")
    with pytest.raises(OptionError, match="not of 'vectors'"):
        pack(Vectors(), "vectors", out)
    changed = root / "c03" / "2.png"
    picture = changed.read_bytes()
    changed.unlink()
    with pytest.raises(DataError, match="the data have changed since"):
        pack(folder(root), "data", out)
    # As long as before, and of another time.
    changed.write_bytes(picture[:-20] + b"x" + picture[-19:])
    with pytest.raises(DataError, match="the data have changed since"):
        pack(folder(root), "data", out)
    assert contents(out) == before


def test_values_in_memory_that_have_changed(small: Path) -> None:
    class Changed(Vectors):
        def load(self) -> dict[str, Examples]:
            found = super().load()
            found["test"].x[-1, -1] += 1
            return found

    with pytest.raises(DataError, match="the data have changed since"):
        pack(Changed(), "vectors", small)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="has no examples to pack"):
        pack(Sinusoid(), "sinusoid", out)
    with pytest.raises(OptionError, match="draws its tasks in its own way"):
        pack(Omniglot(Omniglot.Config(within_alphabet=True)), "omniglot", out)

    class Split(Vectors):
        def load(self) -> dict[str, Examples]:
            return {"dev": super().load()["train"]}

    class Complex(Vectors):
        def load(self) -> dict[str, Examples]:
            return {"test": Examples(torch.zeros(2, 3, dtype=torch.complex64), (2,), ("a",))}

    class Uneven(Vectors):
        @contextlib.contextmanager
        def streams(self) -> Iterator[dict[str, Stream]]:
            yield {"test": Stream(lambda first, last: torch.zeros(last - first, last), (9,), ("a",), "uneven", str)}

    with pytest.raises(OptionError, match="has a split 'dev'"):
        pack(Split(), "data", out)
    with pytest.raises(OptionError, match="complex64"):
        pack(Complex(), "data", out)
    assert not out.exists()
    with pytest.raises(DataError, match="examples 0 to 8 of uneven are not like the first"):
        pack(Uneven(), "data", out)


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OptionError, match=r"holds something else \(letter.txt\)"):
        pack(Vectors(), "vectors", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(OptionError, match="is a file"):
        pack(Vectors(), "vectors", tmp_path / "letter.txt")


def refused(root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        packed(root).split("train")
    assert caught.value.hint


def test_folders_that_are_none(tmp_path: Path, small: Path) -> None:
    refused(tmp_path / "gone", "gone does not exist")
    refused(tmp_path, "has no index.json")
    with pytest.raises(OptionError, match="which folder") as caught:
        Packed().split("train")
    assert "--data-root" in (caught.value.hint or "")
    file = small / "train.bin"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    refused(small, r"train\.bin is truncated: it has 479 bytes, and should have 480")
    file.write_bytes(data + b"x")
    refused(small, r"train\.bin is too long")
    file.unlink()
    refused(small, r"has no file train\.bin")
    file.mkdir()
    refused(small, r"has no file train\.bin")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shape": [5.0]}, "'shape'"),
        ({"shape": [0]}, "'shape'"),
        ({"shape": 5}, "'shape'"),
        ({"counts": [4, 6, 5, -9]}, "'counts'"),
        ({"counts": [4, 6, 5, True]}, "'counts'"),
        ({"counts": [4, 6, 5]}, "4 names of classes and 3 counts"),
        ({"counts": [4, 6, 5, 10**30]}, "checksums"),
        ({"names": ["a", "b", "c", 1]}, "'names'"),
        ({"names": "abcd"}, "'names'"),
        ({"dtype": "object"}, "'dtype'"),
        ({"dtype": ["uint8"]}, "'dtype'"),
        ({"dtype": "float64"}, "truncated"),
        ({"shard": 0}, "'shard'"),
        ({"sha256": ["0"] * 11}, "11 checksums of 12 shards"),
        ({"sha256": [0] * 12}, "'sha256'"),
    ],
)
def test_an_index_that_lies(small: Path, change: dict[str, Any], match: str) -> None:
    index = json.loads((small / "index.json").read_text())
    index["splits"]["train"] |= change
    (small / "index.json").write_text(json.dumps(index))
    refused(small, match)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "7", '"x"', "[" * 100_000, "\x00", '{"format": 1}', '{"format": 1, "licence": "", "splits": 1}',
        '{"format": 1, "licence": "", "splits": {"../../etc/passwd": {}}, "input_format": {}}',
        '{"format": 1, "licence": "", "splits": {"train": {}}, "input_format": {}}',
        '{"format": 1, "licence": "", "splits": {"train": []}, "input_format": {}}',
        '{"format": 1, "licence": "", "splits": {}, "input_format": {"size": "28", "channels": 1, "invert": true}}',
        '{"format": 1, "licence": "", "splits": {}, "input_format": {"size": 99999999, "channels": 1, "invert": true}}',
        '{"format": 1, "licence": "", "splits": {}, "input_format": [1]}', '{"format": 1, "licence": 1, "splits": {}}',
        '{"format": 99}',
    ],
)  # fmt: skip
def test_an_index_that_is_none(small: Path, text: str, capsys: Capture) -> None:
    (small / "index.json").write_text(text)
    refused(small, r"index\.json (cannot be read|does not describe packed data|has format 99)")
    assert run(["data", "verify", str(small)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    # Nor is anything put in its place.
    with pytest.raises(DataError):
        pack(Vectors(), "vectors", small)
    assert (small / "index.json").read_text() == text


def test_verify_names_the_shards_that_differ(small: Path, capsys: Capture) -> None:
    assert run(["data", "verify", str(small)]) == 0
    assert capsys.readouterr() == ("19 of 19 shards are whole\n", "")
    for name, place in (("train", 479), ("test", 41)):
        data = bytearray((small / f"{name}.bin").read_bytes())
        data[place] ^= 1
        (small / f"{name}.bin").write_bytes(data)
    assert run(["data", "verify", str(small)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "train.bin: shard 11 (bytes 440 to 479, examples 22 to 23) is damaged",
        "test.bin: shard 1 (bytes 40 to 79, examples 2 to 3) is damaged",
        "17 of 19 shards are whole",
    ]
    assert err.startswith(f"error: 2 of 19 shards in {small} are damaged\nhint: ")
    assert run(["data", "verify", str(small), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["shards"] == 19
    assert found["damaged"][1] == {"file": "test.bin", "shard": 1, "examples": [2, 4], "bytes": [40, 80]}


def test_the_command(tree: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    words = ["data", "pack", "--data-size=16", "folder", str(out), "--data-root", str(tree)]
    assert run(words) == 0
    shown, err = capsys.readouterr()
    assert shown.splitlines()[1].split() == ["train", "8", "48", "36864", "1"]
    assert err == ""
    assert run([*words, "--json"]) == 0
    shown, err = capsys.readouterr()
    assert json.loads(shown)["splits"]["test"] == {"classes": 2, "examples": 12, "bytes": 9216, "shards": 1}
    assert err == f"{out} is packed already\n"
    assert run(["data", "pack", "folder", "-h"]) == 0
    assert "--data-val-fraction" in capsys.readouterr().out
    assert run(["data"]) == 2
    assert capsys.readouterr().err.startswith("Usage: metazoo data")


MISTAKES = {
    # What the call gets wrong: a name, an option, a place that is taken.
    "data pack": (2, "Missing argument 'SOURCE'"),
    "data pack glyphs": (2, "Missing argument 'OUT'"),
    "data pack foldr {out}": (2, "no data set named 'foldr'\nhint: did you mean 'folder'?"),
    "data pack glyphs {out} --data-alphabets 1": (2, "--data-alphabets cannot be '1'"),
    "data pack glyphs {out} --size 3": (2, "No such option '--size'"),
    "data pack folder {out}": (2, "the data set 'folder' needs to know which folder"),
    "data pack packed {out}": (2, "the data set 'packed' needs to know which folder"),
    "data pack sinusoid {out}": (2, "data set 'sinusoid' has no examples to pack"),
    "data pack glyphs {tree}": (2, "{tree} holds something else (c00)"),
    "data pack glyphs {file}": (2, "{file} is a file"),
    "data pack glyphs {packed}": (2, "{packed} holds packed data of 'glyphs' alphabets=6 seed=0, not of"),
    "data pack folder {packed} --data-root {tree}": (2, "{packed} holds packed data of 'glyphs'"),
    "data verify": (2, "Missing argument 'FOLDER'"),
    # What is wrong with what it finds, or on the way.
    "data pack folder {out} --data-root nowhere": (1, "there is no directory or zip archive nowhere"),
    "data pack folder {out} --data-root {bad}": (1, "{bad}/train/a/0.png is not an image that can be read"),
    "data pack folder {out} --data-root {bad}/train/a": (1, "{bad}/train/a/0.png does not lie in the folder of a class"),
    "data pack packed {out} --data-root {tree}": (1, "{tree} has no index.json"),
    "data pack glyphs {file}/new --data-alphabets 6": (1, "cannot write {file}/new: Not a directory"),
    "data verify nowhere": (1, "nowhere does not exist"),
    "data verify {file}": (1, "{file} is a file"),
    "data verify {tree}": (1, "{tree} has no index.json"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_has_the_status_of_its_kind(
    line: str, tree: Path, glyphs: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("train/a", "val/b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "0.png").write_text("no image")
    places = {name: tmp_path / name for name in ("out", "file", "bad")} | {"tree": tree, "packed": glyphs}
    status, message = MISTAKES[line]
    assert run(line.format(**places).split()) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: " + message.format(**places))
    assert "\nhint: " in err
    assert not (tmp_path / "out").exists()


RESIDENT = """
    import sys
    from pathlib import Path
    import torch

    def memory(part):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[part].split()[0]) * 1024
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_packing_a_folder_holds_few_images(tmp_path: Path) -> None:
    root = images(tmp_path / "tree", classes=10, each=1)
    for path in root.glob("*/0.png"):
        for i in range(1, 100):
            (path.parent / f"{i}.png").write_bytes(path.read_bytes())
    text = (
        RESIDENT
        + """
    from metazoo.datasets.folder import Folder
    from metazoo.datasets.packing import pack
    data = Folder(Folder.Config(root=sys.argv[1], size=128))
    before = memory("VmRSS")
    index = pack(data, "folder", Path(sys.argv[2])).index
    print(sum(split.bytes for split in index.splits.values()), memory("VmHWM") - before)
    """
    )
    size, growth = map(int, answer(script(text, root, tmp_path / "out")).split())
    assert size == 1000 * 3 * 128 * 128
    assert growth < size / 2


def sparse(out: Path, size: int, classes: int, side: int) -> Path:
    """Make packed data of zeros that take no room: so many bytes of images (1, side, side)."""
    pack(Vectors(), "vectors", out)
    examples = size // side**2
    split = {"dtype": "uint8", "shape": [1, side, side], "names": list(map(str, range(classes))), "shard": examples,
             "counts": [examples // classes] * classes, "sha256": ["0"]}  # fmt: skip
    index = {**json.loads((out / "index.json").read_text()), "splits": {"train": split}}
    (out / "index.json").write_text(json.dumps(index))
    os.truncate(out / "train.bin", 0)
    try:
        os.truncate(out / "train.bin", size)
    except OSError:
        pytest.skip("this file system has no file of that size")
    return out


@linux
def test_data_larger_than_memory_are_mapped(tmp_path: Path) -> None:
    tasks = packed(sparse(tmp_path / "out", 2**40, 128, 1024)).tasks("train", 5, 1, 1, 0)
    sent = pickle.dumps(tasks)
    assert len(sent) < 2**16
    for task in (tasks.draw(12345, 1), pickle.loads(sent).draw(12345, 1)):
        assert task.query_x.shape == (1, 5, 1, 1024, 1024)
        assert not task.query_x.any()


@linux
@pytest.mark.slow
def test_drawing_holds_few_pages(tmp_path: Path) -> None:
    out = sparse(tmp_path / "out", 2**30, 512, 256)
    text = (
        RESIDENT
        + """
    from metazoo.datasets.packed import RESIDENT, Packed
    torch.set_num_threads(1)
    tasks = Packed(Packed.Config(root=sys.argv[1])).tasks("train", 5, 1, 15, 0)
    tasks.draw(0, 1)
    before, most = memory("VmRSS"), 0
    for i in range(300):
        tasks.draw(i, 1)
        most = max(most, memory("VmRSS"))
    print(most - before, RESIDENT)
    """
    )
    growth, bound = map(int, answer(script(text, out)).split())
    assert growth < 1.5 * bound
