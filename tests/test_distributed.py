"""Two processes do what one does; a process that is killed ends the job, or torchrun starts it again and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shared_steps
import torch
from commands import output
from forks import Forks
from safetensors.torch import load_file

from metazoo import distributed

ROOT = Path(__file__).parents[1]
DATA = ["--dataset", "glyphs", "--data-alphabets", "6", "--backbone-width", "8"]
TASKS = [
    "--train-ways",
    "5",
    "--train-queries",
    "3",
    "--meta-batch",
    "3",
    "--validation-episodes",
    "30",
    "--test-episodes",
    "60",
]
# Adam would make steps of full length of what is nothing but rounding, such as the gradients of biases before BatchNorm.
PLAIN = ["--optimizer", "sgd", "--lr", "0.01"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(*words: Any, options: tuple[str, ...] = ()) -> list[str]:
    """Return the words that torchrun is given."""
    return ["--standalone", "--nproc-per-node", "2", *options, *map(str, words)]


def torchrun(*words: Any, options: tuple[str, ...] = ()) -> list[str]:
    return launch("-m", "metazoo", *words, options=options)


Run = Callable[[list[str]], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(fresh_python: Forks) -> Run:
    code = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    return lambda words: fresh_python.run(code, *words, env=environment())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


def weights(folder: Path) -> torch.Tensor:
    """Return every weight and bias in one vector."""
    found = tensors(folder)
    names = [n for n in found if n.startswith("model.") and n.endswith(("weight", "bias"))]
    return torch.cat([found[name].flatten() for name in names])


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "shared.safetensors"
    done = run(launch(ROOT / "tests" / "shared_steps.py", file))
    assert done.returncode == 0, done.stderr
    two = load_file(file)
    one = {key: value for case in shared_steps.CASES for key, value in shared_steps.steps(case)}
    assert set(one) == set(two)
    for key, value in one.items():
        assert (two[key] - value).double().norm() <= 1e-9 * value.double().norm() + 1e-12, key
    assert any(not torch.equal(one[key], value) for key, value in two.items())  # they did share


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    ["maml --inner-lr 0.02", "protonet --init protonet.omniglot --backbone-width 64"],
)
def test_two_processes_train_as_one(
    run: Run, algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Three tasks a step: shares of two and one. Augmentation draws random numbers.
    words = ["train", *DATA, *TASKS, *PLAIN, "--augment", "drawing", "--json", *algorithm.split()]
    result, _ = output(capsys, *words, "--steps", "3", "--out", str(tmp_path / "one"))
    output(capsys, *words, "--steps", "1", "--lr", "1e-12", "--out", str(tmp_path / "start"))
    both = run(torchrun(*words, "--steps", 3, "--out", tmp_path / "two"))
    assert both.returncode == 0, both.stderr
    start, one, two = (weights(tmp_path / name) for name in ("start", "one", "two"))
    # In float32 rounding may take a value across the corner of a ReLU: compare with how far they went.
    assert (two - one).norm() <= 0.02 * (one - start).norm()
    # One of them writes and speaks: the result stands once on stdout.
    results = [json.loads(text) for text in (result, both.stdout)]
    assert abs(results[0]["mean"] - results[1]["mean"]) < 0.05
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    "models", [["protonet.omniglot", "maml.omniglot_5w1s"], ["maml.sinusoid"]], ids=", ".join
)
def test_evaluation_is_shared_out_with_the_same_result(
    run: Run, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", *models, "--episodes", "40", "--json"]
    if "maml.sinusoid" not in models:
        words += ["--dataset", "glyphs", "--data-alphabets", "6"]
    both = run(torchrun(*words))
    assert both.returncode == 0, both.stderr
    one, two = json.loads(output(capsys, *words)[0]), json.loads(both.stdout)
    for ours, theirs in zip(one["results"], two["results"], strict=True):
        for measured in ("mean", "interval"):
            assert ours.pop(measured) == pytest.approx(theirs.pop(measured), rel=1e-2)
    assert one == two


def started(words: list[str], folder: Path, needs: str) -> subprocess.Popen[str]:
    """Start a job, and return when its run has a file."""
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    job = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while not (folder / needs).exists():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < until, "the run does not begin"
        time.sleep(0.02)
    return job


def workers(job: subprocess.Popen[str]) -> dict[int, int]:
    """Return the process numbers of a job by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
            if int(stat[1]) == job.pid and ranks:
                found[ranks[0]] = int(entry.name)
    return found


LONG = ["--steps", 120, "--validate-every", 20]
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes in /proc"
)


@pytest.fixture(scope="module")
def undisturbed(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a run that nothing disturbs, and what it says."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run(torchrun("train", "protonet", *DATA, *TASKS, *LONG, "--out", folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def killed(rank: int, folder: Path, *options: str) -> tuple[int, str, str]:
    """Start a run, kill one of its processes once it has saved, and return how the job ends."""
    words = ["train", "protonet", *DATA, *TASKS, *LONG, "--out", folder]
    job = started(torchrun(*words, options=options), folder, "last.safetensors")
    os.kill(workers(job)[rank], signal.SIGKILL)
    out, err = job.communicate(timeout=180)
    return job.returncode, out, err


def assert_same_tensors(folder: Path, other: Path) -> None:
    for name, value in tensors(other).items():
        assert torch.equal(value, tensors(folder)[name]), name


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_and_nothing_is_lost(
    run: Run, rank: int, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "ended"
    status, _, said = killed(rank, folder)
    assert status != 0
    assert not (folder / "result.json").exists()
    resumed = run(torchrun("train", "--resume", folder))
    assert resumed.returncode == 0, said + resumed.stderr
    assert_same_tensors(folder, undisturbed[0])


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again_and_nothing_is_lost(
    rank: int, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    status, out, said = killed(rank, folder, "--max-restarts", "1")
    assert status == 0, said
    assert out == undisturbed[1].replace(str(undisturbed[0]), str(folder))
    assert_same_tensors(folder, undisturbed[0])


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_is_asked_to_stop_saves_and_goes_on(number: int, tmp_path: Path) -> None:
    words = ["train", "protonet", *DATA, *TASKS, "--steps", 4000, "--validate-every", 4000]
    folder = tmp_path / "run"
    job = started(torchrun(*words, "--out", folder), folder, "metrics.jsonl")
    job.send_signal(number)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    assert said.count("everything is saved in") == 1, said
    assert tensors(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "protonet", *DATA], "a meta-batch of 1 cannot be shared by 2 processes"),
        (
            ["train", "baseline", *DATA],
            "'baseline' trains on batches, which processes cannot share",
        ),
        (["train", "protonett"], "no algorithm named 'protonett'"),
        (["eval", "nothing"], "nothing"),
        (["train", "protonet", *DATA, *TASKS, "--lr", "1e30", "--steps", "40"], "the loss is"),
    ],
)
def test_mistakes_are_told_by_the_first_and_by_the_others_under_their_number(
    run: Run, words: list[str], said: str, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "run")] if words[0] == "train" else []
    done = run(torchrun(*words, *out))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    first = [line for line in told if not line.startswith("error: process 1: ")]
    assert len(first) == 1, done.stderr
    assert said in first[0]


@pytest.mark.slow
def test_a_job_that_is_started_again_leaves_the_runs_of_others_alone(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    output(capsys, "train", "protonet", *DATA, *TASKS, "--steps", "2", "--out", str(older))
    before = {path.name: path.read_bytes() for path in older.iterdir() if path.is_file()}
    words = ["train", "protonet", *DATA, *TASKS, "--steps", 3, "--out", older]
    done = run(torchrun(*words, options=("--max-restarts", "1")))
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert {path.name: path.read_bytes() for path in older.iterdir() if path.is_file()} == before


PROGRAM = """
import torch
from torch import nn
from metazoo import distributed
from metazoo.errors import DataError

def part(i):
    seen.append(i)
    if fail and i == 3:
        raise DataError("item 3 is damaged")
    return torch.tensor([float(i)])

with distributed.joined():
    rank = distributed.rank()
    seen, fail = [], False
    assert [p.item() for p in distributed.mapped(part, range(5))] == [0, 1, 2, 3, 4]
    assert seen == [[0, 2, 4], [1, 3]][rank]
    fail = True
    try:
        distributed.mapped(part, range(5))
    except DataError as error:
        assert "item 3" in str(error)
    else:
        raise SystemExit("no error")
    assert [p.item() for p in distributed.mapped(lambda i: torch.tensor([1.0 * i]), range(1))] == [0]

    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None))
    alone = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None))
    spare = nn.Linear(1, 1)
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        alone[0].weight.copy_(torch.eye(2))
    tasks = [torch.randn(4, 2, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]
    for x in tasks:
        (alone(x).sin().mean() / 3).backward()
    buffers = distributed.Buffers(net)
    loss = sum(net(x).sin().mean() for x in tasks[distributed.share(3)]) / 3
    loss.backward()
    model = nn.ModuleList([net, spare])
    total = distributed.sum_gradients(model, loss)
    buffers.merge()
    torch.testing.assert_close(net[0].weight.grad, alone[0].weight.grad)
    torch.testing.assert_close(net[1].running_mean, alone[1].running_mean)
    torch.testing.assert_close(net[1].running_var, alone[1].running_var)
    assert net[1].num_batches_tracked == 3
    assert spare.weight.grad is None
    same = distributed.mapped(lambda i: net[2].running_mean.clone(), range(2))
    assert torch.equal(*same)
    assert distributed.any_process(rank == 1) and not distributed.any_process(False)
    if rank == 0:
        print("done")
"""


@pytest.mark.slow
def test_work_gradients_and_statistics_are_put_together_as_one_process_has_them(
    run: Run,
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run(launch(tmp_path / "program.py"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


@pytest.mark.slow
def test_processes_that_may_be_started_again_need_a_folder_to_find(run: Run) -> None:
    done = run(torchrun("train", "protonet", *DATA, *TASKS, options=("--max-restarts", "1")))
    assert done.returncode != 0
    assert "give its folder by --out" in done.stderr


def test_alone_nothing_is_shared_out() -> None:
    with distributed.joined():
        assert (distributed.size(), distributed.rank(), distributed.first()) == (1, 0, True)
        assert distributed.share(7) == slice(0, 7)
        assert distributed.mapped(lambda i: torch.tensor(i), [3, 4, 5]) == [3, 4, 5]


def test_shares_are_all_tasks_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 5):
        monkeypatch.setattr(distributed, "size", lambda size=size: size)
        for count in (size, 7, 16):
            tasks: list[int] = []
            lengths = []
            for rank in range(size):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                part = range(count)[distributed.share(count)]
                tasks += part
                lengths.append(len(part))
            assert tasks == list(range(count))
            assert max(lengths) - min(lengths) <= 1
