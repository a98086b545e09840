"""Packed data give the same tasks as their source, with little memory."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_run
from packs import RESIDENT, Vectors, answer, folder, linux, packed, script

from metazoo import ClassDataset, DataError, Episode, Examples
from metazoo.datasets.glyphs import Glyphs
from metazoo.datasets.packed.dataset import Packed
from metazoo.datasets.packed.writer import pack
from metazoo.tasks.sampler import BatchSampler
from metazoo.zoo import run_folder
from metazoo.zoo.weights import load_tensors


def same(a: Episode, b: Episode) -> bool:
    names = ("support_x", "support_y", "query_x", "query_y")
    return all(
        torch.equal(getattr(a, n), getattr(b, n)) and getattr(a, n).dtype == getattr(b, n).dtype
        for n in names
    )


def vectors(tree: Path) -> ClassDataset:
    return Vectors()


def made(tree: Path) -> ClassDataset:
    return Glyphs(Glyphs.Config(alphabets=6))


@pytest.mark.parametrize("source", [vectors, made, folder])
def test_packed_data_give_the_tasks_of_their_source(
    source: Callable[[Path], ClassDataset], tree: Path, tmp_path: Path
) -> None:
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


def test_a_split_without_examples_can_be_packed(tmp_path: Path) -> None:
    class Empty(Vectors):
        def load(self) -> dict[str, Examples]:
            return {**super().load(), "val": Examples(torch.zeros(0, 5), (), ())}

    pack(Empty(), "empty", tmp_path / "out")
    assert packed(tmp_path / "out").split("val").x.shape == (0, 5)
    assert packed(tmp_path / "out").split_sha256() == Empty().split_sha256()


def test_training_on_packed_data_gives_the_same_model(tmp_path: Path, packed_glyphs: Path) -> None:
    one = make_run(tmp_path / "one", "protonet")
    two = make_run(tmp_path / "two", "protonet", "packed", {"root": str(packed_glyphs)})
    losses = [[line.get("loss") for line in run_folder.read_metrics(run)] for run in (one, two)]
    assert losses[0] == losses[1]
    weights = [load_tensors(run / run_folder.LAST)[0] for run in (one, two)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # The model keeps how images become examples, but not the folder of the data.
    metadata = load_tensors(two / run_folder.BEST)[1]
    assert metadata["dataset_options"] == {}
    assert metadata["input_format"] == Glyphs().input_format


def test_moving_to_a_device_loads_nothing(packed_glyphs: Path) -> None:
    data = packed(packed_glyphs)
    before = data.split("train")
    data.move("cpu")
    data.move("meta")
    assert data.split("train") is before
    assert before.to("cpu") is before
    assert type(before.with_values(torch.zeros(len(before.x), 3))) is Examples
    assert before.to("meta").x.device.type == "meta"


class Tasks(torch.utils.data.Dataset):
    """Tasks and batches for a DataLoader."""

    def __init__(self, data: Packed):
        self.sampler = data.tasks("train", 5, 1, 2, seed=3)
        self.batches = BatchSampler(data.split("train"), 8, seed=1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[int, Episode, torch.Tensor]:
        return os.getpid(), self.sampler.draw(i, 1), self.batches.draw(i, 1).x


@pytest.mark.slow
def test_spawned_workers_draw_the_same_tasks(packed_glyphs: Path) -> None:
    here = Tasks(packed(packed_glyphs))
    here.sampler.draw(0, 1)
    there = list(
        torch.utils.data.DataLoader(
            here, batch_size=None, num_workers=2, multiprocessing_context="spawn"
        )
    )
    assert len({pid for pid, _, _ in there} | {os.getpid()}) == 3
    for i, (_, episode, x) in enumerate(there):
        assert same(episode, here[i][1])
        assert torch.equal(x, here[i][2])


def test_another_process_opens_and_checks_the_file_again(
    packed_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed_vectors.parent)
    sent = pickle.dumps(packed(Path(packed_vectors.name)).split("train"))
    monkeypatch.chdir("/")
    again, source = pickle.loads(sent), Vectors().split("train")
    assert torch.equal(again.x, source.x)
    assert (again.counts, again.names, again.title) == (
        source.counts,
        source.names,
        "small (train)",
    )
    index, file = packed_vectors / "index.json", packed_vectors / "train.bin"
    data, text = file.read_bytes(), index.read_text()
    for damage, match in (
        (lambda: file.write_bytes(data[:-1]), "is truncated"),
        (lambda: index.write_text("{"), "cannot be read"),
        (
            lambda: index.write_text(text.replace("train0", "train9")),
            r"small \(train\) has changed since it was opened",
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


def sparse(out: Path, size: int, classes: int, side: int) -> Path:
    """Make a sparse file of `size` bytes of packed zero images (1, side, side)."""
    pack(Vectors(), "vectors", out)
    examples = size // side**2
    split = {
        "dtype": "uint8",
        "shape": [1, side, side],
        "names": list(map(str, range(classes))),
        "shard": examples,
        "counts": [examples // classes] * classes,
        "sha256": ["0"],
    }
    index = {**json.loads((out / "index.json").read_text()), "splits": {"train": split}}
    (out / "index.json").write_text(json.dumps(index))
    os.truncate(out / "train.bin", 0)
    try:
        os.truncate(out / "train.bin", size)
    except OSError:
        pytest.skip("the file system does not allow a file of this size")
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
def test_drawing_holds_few_pages_in_memory(tmp_path: Path) -> None:
    out = sparse(tmp_path / "out", 2**30, 512, 256)
    text = (
        RESIDENT
        + """
    from metazoo.datasets.packed.dataset import RESIDENT, Packed
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
