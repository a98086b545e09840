"""Glyphs are reproducible, disjoint, learnable, and hard for an untrained network."""

from __future__ import annotations

import pytest
import torch

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.conv4 import Conv4
from metazoo.datasets import glyphs
from metazoo.datasets.glyphs import CHARACTERS, DRAWERS, Glyphs, draw_alphabet
from metazoo.tasks.sampler import EpisodeSampler


@pytest.fixture(scope="module")
def dataset() -> Glyphs:
    return Glyphs()


def accuracy(model: ProtoNet, examples: metazoo.Examples, episodes: int) -> float:
    """5-way 1-shot accuracy in eval mode, each example embedded once."""
    model.eval()
    with torch.no_grad():
        z = torch.cat(
            [model.embed(examples.take(rows)) for rows in torch.arange(len(examples.x)).split(400)]
        )
        task = EpisodeSampler(examples.with_values(z), ways=5, shots=1, queries=15, seed=7).draw(
            0, episodes
        )
        right = (
            model.classify(task.support_x, task.support_y, task.query_x).argmax(-1) == task.query_y
        )
    model.train()
    return right.double().mean().item()


def untrained() -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), 20))


def test_same_seed_same_bytes() -> None:
    first = draw_alphabet(3, 5)
    assert torch.equal(first, draw_alphabet(3, 5))
    assert not torch.equal(first, draw_alphabet(4, 5))
    assert not torch.equal(first, draw_alphabet(3, 6))


def test_does_not_depend_on_the_number_of_threads() -> None:
    threads, expected = torch.get_num_threads(), draw_alphabet(0, 0)
    try:
        torch.set_num_threads(1)
        assert torch.equal(draw_alphabet(0, 0), expected)
    finally:
        torch.set_num_threads(threads)


def test_the_drawings_are_the_same_in_every_release() -> None:
    """Models trained on glyphs need the same glyphs later; machines may round differently."""
    x = draw_alphabet(0, 0).double()
    assert x.mean().item() == pytest.approx(101.500, abs=0.01)
    assert x[123].std().item() == pytest.approx(49.39, abs=0.1)


def test_splits(dataset: Glyphs) -> None:
    alphabets = {
        name: {n.split("/")[0] for n in examples.names} for name, examples in dataset.splits.items()
    }
    assert {name: len(found) for name, found in alphabets.items()} == {
        "train": 34,
        "val": 7,
        "test": 7,
    }
    assert len(set().union(*alphabets.values())) == 48
    for examples in dataset.splits.values():
        assert examples.x.dtype == torch.uint8
        assert examples.x.shape[1:] == (1, 28, 28)
        assert set(examples.counts) == {DRAWERS}
        assert len(set(examples.names)) == len(examples.names)
        assert len(examples.x) == DRAWERS * len(examples.names)


def test_alphabets_do_not_depend_on_how_many_there_are(dataset: Glyphs) -> None:
    few = Glyphs(Glyphs.Config(alphabets=6)).splits
    assert [len(few[split].names) for split in ("train", "val", "test")] == [
        4 * CHARACTERS,
        CHARACTERS,
        CHARACTERS,
    ]
    assert torch.equal(few["train"].x, dataset.split("train").x[: len(few["train"].x)])


def test_no_two_drawings_are_equal(dataset: Glyphs) -> None:
    x = torch.cat([examples.x for examples in dataset.splits.values()]).flatten(1)
    assert len(torch.unique(x, dim=0)) == len(x)


def test_every_drawing_shows_ink_on_paper(dataset: Glyphs) -> None:
    x = dataset.split("train").x.flatten(1).float()
    assert (x.amax(1) - x.amin(1)).min() > 25
    assert (
        x.median(1).values - x.amin(1) < x.amax(1) - x.median(1).values
    ).float().mean() > 0.8  # ink is 1


def test_drawn_when_first_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def draw(seed: int, alphabet: int) -> torch.Tensor:
        drawn.append(alphabet)
        return draw_alphabet(seed, alphabet)

    monkeypatch.setattr(glyphs, "draw_alphabet", draw)
    small = Glyphs(Glyphs.Config(alphabets=6))
    assert drawn == []
    small.tasks("val", 5, 1, 5, 0)
    small.tasks("test", 5, 1, 5, 0)
    assert drawn == list(range(6))


def test_unknown_split_is_an_error(dataset: Glyphs) -> None:
    with pytest.raises(metazoo.DataError, match="no split 'tests'"):
        dataset.tasks("tests", 5, 1, 15, 0)


def test_an_untrained_network_is_near_chance(dataset: Glyphs) -> None:
    assert 0.2 < accuracy(untrained(), dataset.split("test"), 100) < 0.33


@pytest.mark.slow
def test_training_lifts_accuracy_on_new_alphabets(dataset: Glyphs) -> None:
    model = untrained()
    before = accuracy(model, dataset.split("test"), 300)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tasks = dataset.tasks("train", 20, 1, 5, 1)
    for i in range(60):
        optimizer.zero_grad()
        model.loss(tasks.draw(i, 1)).backward()
        optimizer.step()
    assert accuracy(model, dataset.split("test"), 300) > before + 0.1
