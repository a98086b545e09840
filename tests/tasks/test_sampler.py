"""Tasks and batches are pure functions of (seed, i) and have the promised contents."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

from metazoo.base.dataset import ClassDataset
from metazoo.datasets.sinusoid import Sinusoid
from metazoo.errors import DataError
from metazoo.tasks.episode import Episode, ways_of
from metazoo.tasks.examples import Examples
from metazoo.tasks.random import random_words
from metazoo.tasks.sampler import BatchSampler, EpisodeSampler


def numbered(*counts: int) -> Examples:
    """Return examples whose value is their row number."""
    x = torch.arange(sum(counts), dtype=torch.float32).unsqueeze(1)
    return Examples(x, counts, tuple(f"class{c}" for c in range(len(counts))), "numbers")


def sampler(seed: int = 0) -> EpisodeSampler:
    return EpisodeSampler(numbered(4, 9, 5, 7, 4, 6), ways=3, shots=2, queries=2, seed=seed)


def chosen(tasks: EpisodeSampler, i: int) -> tuple[list[int], list[list[int]]]:
    """Return the classes and rows of one task."""
    classes, rows = tasks.choose(i, 1)
    return classes[0].tolist(), rows[0].tolist()


def join(episodes: list[Episode]) -> Episode:
    return Episode(*(torch.cat(parts) for parts in zip(*(vars(e).values() for e in episodes))))


def assert_same(ours: Episode, theirs: Episode) -> None:
    for name, value in vars(ours).items():
        assert torch.equal(value, getattr(theirs, name)), name


def draw_tasks(numbers: list[int]) -> list[list[list[float]]]:
    """Draw tasks in a worker process; plain lists, because they are sent between processes."""
    return [
        [value.flatten().tolist() for value in vars(sampler(3).draw(i, 1)).values()]
        for i in numbers
    ]


@pytest.mark.parametrize(
    ("seed", "i", "classes", "rows"),
    [
        (
            0,
            0,
            [9, 6, 3, 8, 7],
            [[95, 96, 91], [65, 68, 64], [30, 35, 39], [89, 82, 84], [73, 71, 79]],
        ),
        (
            7,
            123,
            [3, 5, 1, 6, 8],
            [[38, 37, 34], [52, 50, 53], [15, 11, 10], [69, 66, 67], [83, 81, 88]],
        ),
    ],
)
def test_tasks_are_the_same_in_every_release(
    seed: int, i: int, classes: list[int], rows: list[list[int]]
) -> None:
    tasks = EpisodeSampler(numbered(*[10] * 10), ways=5, shots=1, queries=2, seed=seed)
    assert chosen(tasks, i) == (classes, rows)
    episode = tasks.draw(i, 1)
    assert episode.support_x.flatten().tolist() == [row[0] for row in rows]
    assert episode.query_x.flatten().tolist() == [number for row in rows for number in row[1:]]


def test_words_batches_and_sinusoids_are_the_same_in_every_release() -> None:
    assert random_words(0, 0, 2).tolist() == [213000021201967259, 4455796210202625458]
    assert random_words(7, 123, 1).tolist() == [2541573211662743663]
    assert (
        random_words(2**63 - 1, 2**64 - 1, 1).tolist()
        == random_words(2**63 - 1, 2**64 - 1, 2).tolist()[:1]
    )
    batches = BatchSampler(numbered(*[10] * 10), 4, 7)
    assert batches.draw(3, 1).x.flatten().tolist() == [87, 23, 97, 96]
    assert batches.draw(25, 1).x.flatten().tolist() == [70, 28, 75, 65]
    episode = Sinusoid().tasks("test", 0, 2, 1, 7).draw(3, 1)
    assert episode.support_x.flatten().tolist() == pytest.approx([2.8843241, -3.6197689])
    assert episode.support_y.flatten().tolist() == pytest.approx([1.1232978, 1.3568588])


def test_tasks_do_not_depend_on_batching_or_order() -> None:
    one_by_one = [sampler().draw(i, 1) for i in range(12)]
    for size in (1, 2, 5, 12):
        batches = [sampler().draw(first, min(size, 12 - first)) for first in range(0, 12, size)]
        assert_same(join(batches), join(one_by_one))
    tasks = sampler()
    order = random.Random(0).sample(range(12), 12)
    for i in order:
        assert_same(tasks.draw(i, 1), one_by_one[i])


def test_tasks_differ_from_one_to_the_next_and_with_the_seed() -> None:
    drawn = {tuple(map(tuple, chosen(sampler(seed), i)[1])) for seed in range(5) for i in range(50)}
    assert len(drawn) == 250


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_tasks_do_not_depend_on_the_number_of_worker_processes(workers: int) -> None:
    shares = [list(range(worker, 20, workers)) for worker in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(draw_tasks, shares))
    drawn = {i: task for share, part in zip(shares, parts) for i, task in zip(share, part)}
    assert [drawn[i] for i in range(20)] == draw_tasks(list(range(20)))


def test_support_and_query_are_disjoint_and_examples_belong_to_their_class() -> None:
    counts = (4, 9, 5, 7, 4, 6)
    owner = np.repeat(np.arange(len(counts)), counts)
    for seed, i in itertools.product(range(60), range(10)):
        classes, rows = chosen(sampler(seed), i)
        assert len(set(classes)) == 3
        flat = [row for each in rows for row in each]
        assert len(set(flat)) == len(flat) == 3 * 4
        assert [set(owner[each]) for each in rows] == [{c} for c in classes]
        episode = sampler(seed).draw(i, 1)
        support, query = (
            episode.support_x.flatten().int().tolist(),
            episode.query_x.flatten().int().tolist(),
        )
        assert not set(support) & set(query)
        for numbers, labels in ((support, episode.support_y[0]), (query, episode.query_y[0])):
            assert owner[numbers].tolist() == [classes[label] for label in labels.tolist()]


def test_episodes_have_the_shapes_and_types_of_the_contract() -> None:
    examples = Examples(
        torch.arange(256, dtype=torch.uint8).repeat(2).view(-1, 1, 2, 2), (64, 64), ("a", "b")
    )
    episode = EpisodeSampler(examples, 2, 3, 4).draw(5, 6)
    assert len(episode) == 6
    assert episode.support_x.shape == (6, 6, 1, 2, 2)
    assert episode.query_x.shape == (6, 8, 1, 2, 2)
    assert episode.support_x.dtype == torch.float32
    assert 0 <= episode.support_x.min() < 0.1 < 0.9 < episode.support_x.max() <= 1
    assert episode.support_y.dtype == episode.query_y.dtype == torch.int64
    assert episode.support_y.tolist() == [[0, 0, 0, 1, 1, 1]] * 6
    assert episode.query_y.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 6
    assert ways_of(episode.support_y) == 2


def test_labels_on_a_gpu_are_read_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    largest = torch.Tensor.max
    monkeypatch.setattr(torch.Tensor, "max", lambda labels: reads.append(labels) or largest(labels))
    labels = torch.tensor([[0, 0, 1, 1]])
    assert [ways_of(labels), ways_of(labels), len(reads)] == [2, 2, 2]
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    assert [ways_of(labels), ways_of(labels), len(reads)] == [2, 2, 3]
    labels[0, 3] = 4
    assert [ways_of(labels), ways_of(labels), len(reads)] == [5, 5, 4]
    assert [ways_of(labels[:, :2]), len(reads)] == [1, 5]
    with torch.inference_mode():
        assert ways_of(labels.clone()) == 5


def test_labels_and_places_are_uniformly_distributed() -> None:
    tasks = EpisodeSampler(numbered(*[6] * 10), ways=5, shots=1, queries=2, seed=0)
    labels, places = np.zeros((10, 5)), np.zeros((60, 3))
    count = 6000
    for i in range(count):
        classes, rows = chosen(tasks, i)
        labels[classes, np.arange(5)] += 1
        for place in range(3):
            places[[each[place] for each in rows], place] += 1
    # Chi-squared has about as many degrees of freedom as cells; chance does not reach six standard
    # deviations.
    for counts in (labels, places):
        expected = counts.sum() / counts.size
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < counts.size + 6 * (2 * counts.size) ** 0.5


def test_the_error_names_the_class_that_has_too_few_examples() -> None:
    with pytest.raises(DataError, match="numbers has 3 classes, but a task needs 4"):
        EpisodeSampler(numbered(5, 5, 5), ways=4, shots=1, queries=1)
    with pytest.raises(
        DataError,
        match=r"class 'class1' of numbers has 4 examples.* 2 for support and 3 for queries",
    ) as caught:
        EpisodeSampler(numbered(5, 4, 5), ways=2, shots=2, queries=3)
    assert "--shots" in (caught.value.hint or "")
    EpisodeSampler(numbered(5, 5, 5), ways=3, shots=2, queries=3).draw(0, 1)


def test_examples_counts_and_names_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="the lengths do not agree"):
        Examples(torch.zeros(5, 1), (2, 2), ("a", "b"))
    with pytest.raises(DataError, match="the lengths do not agree"):
        Examples(torch.zeros(4, 1), (2, 2), ("a",))


def test_an_unknown_split_is_named() -> None:
    class Two(ClassDataset):
        def load(self) -> dict[str, Examples]:
            return {"train": numbered(3, 3), "test": numbered(3, 3)}

    with pytest.raises(DataError, match="Two has no split 'val'") as caught:
        Two().tasks("val", 2, 1, 1, 0)
    assert "train, test" in (caught.value.hint or "")


def test_merged_examples_keep_their_classes() -> None:
    merged = numbered(2, 3).merge(numbered(4), "both")
    assert (merged.counts, merged.names, merged.title) == (
        (2, 3, 4),
        ("class0", "class1", "class0"),
        "both",
    )
    assert merged.x.flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_the_cost_of_a_task_does_not_grow_with_the_number_of_classes() -> None:
    def cost(classes: int) -> float:
        examples = Examples(torch.zeros(1).expand(20 * classes), (20,) * classes, ("c",) * classes)
        tasks = EpisodeSampler(examples, 5, 1, 5)
        seconds = []
        for _ in range(15):
            began = time.perf_counter()
            tasks.choose(0, 64)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    assert cost(100_000) < 5 * cost(100)


def test_an_epoch_of_batches_visits_every_example_once() -> None:
    examples = numbered(3, 5, 4)
    batches = BatchSampler(examples, 4, seed=2)
    for epoch in range(5):
        batch = batches.draw(3 * epoch, 3)
        assert sorted(batch.x.flatten().tolist()) == list(range(12))
        owner = [0] * 3 + [1] * 5 + [2] * 4
        assert batch.y.tolist() == [owner[int(n)] for n in batch.x.flatten()]
    assert not torch.equal(batches.draw(0, 3).x, batches.draw(3, 3).x)
    assert not torch.equal(batches.draw(0, 3).x, BatchSampler(examples, 4, seed=3).draw(0, 3).x)


def test_batches_are_a_pure_function_of_seed_and_number() -> None:
    examples = numbered(3, 5, 4)
    one_by_one = [BatchSampler(examples, 5, seed=2).draw(i, 1).x for i in range(8)]
    assert torch.equal(BatchSampler(examples, 5, seed=2).draw(0, 8).x, torch.cat(one_by_one))
    shared = BatchSampler(examples, 5, seed=2)
    for i in (6, 1, 7, 0, 3):
        assert torch.equal(shared.draw(i, 1).x, one_by_one[i])


def test_a_batch_is_at_most_as_large_as_the_data() -> None:
    batch = BatchSampler(numbered(3, 2), 100).draw(4, 1)
    assert sorted(batch.x.flatten().tolist()) == [0, 1, 2, 3, 4]


def test_sinusoids_have_the_distribution_of_the_paper() -> None:
    episode = Sinusoid().tasks("train", 0, 30, 20, 0).draw(0, 1000)
    x = torch.cat([episode.support_x, episode.query_x], 1).squeeze(-1).double()
    y = torch.cat([episode.support_y, episode.query_y], 1).squeeze(-1).double()
    assert episode.support_x.shape == (1000, 30, 1)
    assert episode.query_y.shape == (1000, 20, 1)
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    # Least squares finds c and s in y = a sin(x - p) = c sin x + s cos x, where c = a cos p and
    # s = -a sin p.
    basis = torch.stack([x.sin(), x.cos()], -1)
    found = torch.linalg.lstsq(basis, y.unsqueeze(-1)).solution.squeeze(-1)
    assert torch.allclose(basis @ found.unsqueeze(-1), y.unsqueeze(-1), atol=1e-5)
    amplitude, phase = found.norm(dim=1), torch.atan2(-found[:, 1], found[:, 0])
    assert 0.0999 < amplitude.min() < 0.2
    assert 4.9 < amplitude.max() < 5.0001
    assert abs(amplitude.mean() - 2.55) < 0.2
    assert -1e-4 < phase.min() < 0.05
    assert 3.09 < phase.max() < torch.pi + 1e-4


def test_sinusoid_splits_are_disjoint_and_do_not_depend_on_batching() -> None:
    drawn = {split: Sinusoid().tasks(split, 0, 2, 2, 5) for split in ("train", "val", "test")}
    firsts = [
        tuple(t.draw(i, 1).support_x.flatten().tolist()) for t in drawn.values() for i in range(100)
    ]
    assert len(set(firsts)) == 300
    for tasks in drawn.values():
        assert_same(tasks.draw(0, 7), join([tasks.draw(i, 1) for i in range(7)]))
    with pytest.raises(DataError, match="no split 'dev'"):
        Sinusoid().tasks("dev", 0, 1, 1, 0)
