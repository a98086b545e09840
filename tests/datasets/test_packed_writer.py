"""Packing continues after interruptions, refuses what cannot be packed, and needs little memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packs import RESIDENT, Vectors, answer, folder, images, linux, packed, script

from metazoo import ClassDataset, DataError, Examples, OptionError, Stream
from metazoo.cli import run
from metazoo.datasets.omniglot import Omniglot
from metazoo.datasets.packed import format, writer
from metazoo.datasets.packed.writer import pack
from metazoo.datasets.sinusoid import Sinusoid
from metazoo.io.files import locked

Capture = pytest.CaptureFixture[str]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != ".lock"}


def test_packing_again_does_nothing(packed_vectors: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in packed_vectors.iterdir() if path.name != ".lock"
    }
    assert pack(Vectors(), "vectors", packed_vectors).found == 37
    assert {
        path: path.stat().st_mtime_ns for path in packed_vectors.iterdir() if path.name != ".lock"
    } == before
    # As after a kill between writing the index and removing the journal.
    (packed_vectors / format.JOURNAL).write_text("{")
    assert pack(Vectors(), "vectors", packed_vectors).found == 37
    assert not (packed_vectors / format.JOURNAL).exists()


def test_a_journal_that_nests_without_end(tmp_path: Path) -> None:
    (tmp_path / format.JOURNAL).write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match=r"journal\.jsonl is damaged"):
        pack(Vectors(), "vectors", tmp_path)


@linux
def test_names_that_are_not_utf8_come_through(tmp_path: Path) -> None:
    source, out = (tmp_path / os.fsdecode(name) for name in (b"in\xff", b"out\xff"))
    images(source, classes=5, each=2)
    (source / "c00").rename(source / os.fsdecode(b"c\xe9"))
    loose = folder(source).splits
    pack(folder(source), "folder", out)
    json.loads((out / format.INDEX).read_text(encoding="utf-8"))
    read = packed(out).splits
    assert {name: split.names for name, split in read.items()} == {
        name: split.names for name, split in loose.items()
    }
    assert "c\udce9" in loose["train"].names + loose["val"].names + loose["test"].names


# For every K, a child process kills itself before its K-th piece, sync or removal, and another one
# continues.
EVERY_KILL = """
    import os, signal, sys
    from pathlib import Path
    from metazoo.datasets.folder import Folder
    from metazoo.datasets.packed import writer

    writer.SHARD, writer.PIECE = 9000, 5000
    data = Folder(Folder.Config(root=sys.argv[1], size=16))
    real, unlink, as_bytes = os.fsync, Path.unlink, writer.as_bytes

    def work(out, last):
        calls = 0
        def step(what, *words, **more):
            nonlocal calls
            calls += 1
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return what(*words, **more)
        os.fsync = lambda fd: step(real, fd)
        writer.as_bytes = lambda x: step(as_bytes, x)
        Path.unlink = lambda path, missing_ok=False: step(unlink, path, missing_ok)
        found = writer.pack(data, "folder", out).found
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
    # The later the kill, the more examples the next child found.
    assert found[:-1] == sorted(found[:-1])
    assert found[-2] == 72
    assert len(set(found)) > 8
    x = folder(tree).split("train").x
    assert whole["train.bin"] == x.numpy().tobytes()


# The slow disk leaves time for a signal on a busy machine. SIGINT is reset, because a shell lets
# its background processes ignore it.
COMMAND = """
    import os, signal, sys, time
    from metazoo.cli import run
    from metazoo.datasets.packed import writer
    signal.signal(signal.SIGINT, signal.default_int_handler)
    writer.SHARD = 1
    fsync = os.fsync
    os.fsync = lambda file: (time.sleep(0.05), fsync(file))
    sys.exit(run(sys.argv[1:]))
"""


@contextlib.contextmanager
def midway(tree: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and wait until some of the shards are on disk."""
    process = script(COMMAND, "data", "pack", "folder", out, "--data-root", tree, "--data-size", 64)
    journal = out / format.JOURNAL
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    yield process
    assert not (out / format.INDEX).exists()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("many"), classes=20, each=10)


@pytest.mark.slow
def test_packing_continues_after_kill_9(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(writer, "SHARD", 1)
    with midway(many, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for command in (
        ["data", "verify", str(tmp_path / "out")],
        ["train", "protonet", "--dataset", "packed"],
    ):
        words = [*command, "--data-root", str(tmp_path / "out")] if "train" in command else command
        assert run(words) == 1
        assert (
            "is not finished\nhint: run the same `metazoo data pack` again"
            in capsys.readouterr().err
        )
    words = f"data pack folder {tmp_path / 'out'} --data-root {many} --data-size 64"
    assert run(words.split()) == 0
    assert "of 200 examples were already there" in capsys.readouterr().err
    pack(folder(many, 64), "folder", tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue(many: Path, tmp_path: Path) -> None:
    with midway(many, tmp_path / "out") as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == (
        "error: interrupted\n"
        "hint: run the same command again: it continues after the last complete shard\n"
    )


def test_a_second_process_is_refused(packed_vectors: Path) -> None:
    with (
        locked(packed_vectors, wait=False),
        pytest.raises(DataError, match="another process is packing"),
    ):
        pack(Vectors(), "vectors", packed_vectors)


@pytest.mark.slow
def test_a_full_disk_is_reported_with_a_hint(many: Path, tmp_path: Path) -> None:
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
    assert "run the same command again to continue\n" in err
    assert "Traceback" not in err


def unfinished(
    out: Path, monkeypatch: pytest.MonkeyPatch, data: ClassDataset, after: int = 5
) -> None:
    """Leave a packing with `after` finished shards."""

    def stop(done: int, total: int) -> None:
        if len((out / format.JOURNAL).read_bytes().splitlines()) > after:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "SHARD", 40)
    with pytest.raises(KeyboardInterrupt):
        pack(data, "data", out, stop)


def test_bytes_on_disk_are_verified_before_packing_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(tmp_path / "out", monkeypatch, Vectors())
    file = tmp_path / "out" / "train.bin"
    file.write_bytes(file.read_bytes()[:100] + b"changed" + file.read_bytes()[107:])
    # The third shard of two examples is damaged.
    assert pack(Vectors(), "data", tmp_path / "out").found == 4
    pack(Vectors(), "data", tmp_path / "undisturbed")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("finished", [False, True])
def test_a_source_that_has_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
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
    # The same length, another time.
    changed.write_bytes(picture[:-20] + b"x" + picture[-19:])
    with pytest.raises(DataError, match="the data have changed since"):
        pack(folder(root), "data", out)
    assert contents(out) == before


def test_changed_values_in_memory_are_refused(packed_vectors: Path) -> None:
    class Changed(Vectors):
        def load(self) -> dict[str, Examples]:
            found = super().load()
            found["test"].x[-1, -1] += 1
            return found

    with pytest.raises(DataError, match="the data have changed since"):
        pack(Changed(), "vectors", packed_vectors)


def test_data_that_cannot_be_packed_are_refused(tmp_path: Path) -> None:
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
            yield {
                "test": Stream(
                    lambda first, last: torch.zeros(last - first, last), (9,), ("a",), "uneven", str
                )
            }

    with pytest.raises(OptionError, match="has a split 'dev'"):
        pack(Split(), "data", out)
    with pytest.raises(OptionError, match="complex64"):
        pack(Complex(), "data", out)
    assert not out.exists()
    with pytest.raises(DataError, match="examples 0 to 8 of uneven are unlike the first"):
        pack(Uneven(), "data", out)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(OptionError, match=r"holds something else \(letter.txt\)"):
        pack(Vectors(), "vectors", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(OptionError, match="is a file"):
        pack(Vectors(), "vectors", tmp_path / "letter.txt")


def test_the_command_prints_what_was_packed(tree: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    words = ["data", "pack", "--data-size=16", "folder", str(out), "--data-root", str(tree)]
    assert run(words) == 0
    shown, err = capsys.readouterr()
    assert shown.splitlines()[1].split() == ["train", "8", "48", "36864", "1"]
    assert err == ""
    assert run([*words, "--json"]) == 0
    shown, err = capsys.readouterr()
    assert json.loads(shown)["splits"]["test"] == {
        "classes": 2,
        "examples": 12,
        "bytes": 9216,
        "shards": 1,
    }
    assert err == f"{out} is already packed\n"
    assert run(["data", "pack", "folder", "-h"]) == 0
    assert "--data-val-fraction" in capsys.readouterr().out
    assert run(["data"]) == 2
    assert capsys.readouterr().err.startswith("Usage: metazoo data")


MISTAKES = {
    # Mistakes in the command: a name, an option, an output that exists.
    "data pack": (2, "Missing argument 'SOURCE'"),
    "data pack glyphs": (2, "Missing argument 'OUT'"),
    "data pack foldr {out}": (2, "no data set named 'foldr'\nhint: did you mean 'folder'?"),
    "data pack glyphs {out} --data-alphabets 1": (2, "--data-alphabets cannot be '1'"),
    "data pack glyphs {out} --size 3": (2, "No such option '--size'"),
    "data pack folder {out}": (2, "the data set 'folder' needs a folder of images"),
    "data pack packed {out}": (2, "the data set 'packed' needs a folder of packed data"),
    "data pack sinusoid {out}": (2, "data set 'sinusoid' has no examples to pack"),
    "data pack glyphs {tree}": (2, "{tree} holds something else (c00)"),
    "data pack glyphs {file}": (2, "{file} is a file"),
    "data pack glyphs {packed}": (
        2,
        "{packed} holds packed data of 'glyphs' alphabets=6 seed=0, not of",
    ),
    "data pack folder {packed} --data-root {tree}": (2, "{packed} holds packed data of 'glyphs'"),
    "data verify": (2, "Missing argument 'FOLDER'"),
    # Failures: missing or damaged data, a folder that cannot be written.
    "data pack folder {out} --data-root nowhere": (
        1,
        "there is no directory or zip archive nowhere",
    ),
    "data pack folder {out} --data-root {bad}": (
        1,
        "{bad}/train/a/0.png is not an image that can be read",
    ),
    "data pack folder {out} --data-root {bad}/train/a": (
        1,
        "{bad}/train/a/0.png is not in the folder of a class",
    ),
    "data pack packed {out} --data-root {tree}": (1, "{tree} has no index.json"),
    "data pack glyphs {file}/new --data-alphabets 6": (
        1,
        "cannot write {file}/new: Not a directory",
    ),
    "data verify nowhere": (1, "nowhere does not exist"),
    "data verify {file}": (1, "{file} is a file"),
    "data verify {tree}": (1, "{tree} has no index.json"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_exit_with_2_and_failures_with_1(
    line: str,
    tree: Path,
    packed_glyphs: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("train/a", "val/b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "0.png").write_text("no image")
    places = {name: tmp_path / name for name in ("out", "file", "bad")} | {
        "tree": tree,
        "packed": packed_glyphs,
    }
    status, message = MISTAKES[line]
    assert run(line.format(**places).split()) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: " + message.format(**places))
    assert "\nhint: " in err
    assert not (tmp_path / "out").exists()


@linux
def test_packing_a_folder_holds_few_images_in_memory(tmp_path: Path) -> None:
    root = images(tmp_path / "tree", classes=10, each=1)
    for path in root.glob("*/0.png"):
        for i in range(1, 100):
            (path.parent / f"{i}.png").write_bytes(path.read_bytes())
    text = (
        RESIDENT
        + """
    from metazoo.datasets.folder import Folder
    from metazoo.datasets.packed.writer import pack
    data = Folder(Folder.Config(root=sys.argv[1], size=128))
    before = memory("VmRSS")
    index = pack(data, "folder", Path(sys.argv[2])).index
    print(sum(split.bytes for split in index.splits.values()), memory("VmHWM") - before)
    """
    )
    size, growth = map(int, answer(script(text, root, tmp_path / "out")).split())
    assert size == 1000 * 3 * 128 * 128
    assert growth < size / 2
