"""Two processes do what one does; a process that is killed ends the job, or torchrun starts it again and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from metazoo import distributed

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


def torchrun(*words: Any, processes: int = 2, options: tuple[str, ...] = ()) -> list[str]:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *options,
    ]
    return [*launch, "-m", "metazoo", *map(str, words)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)


def metazoo(*words: Any) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "metazoo", *map(str, words)])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    ["protonet", "maml --inner-lr 0.02", "protonet --init protonet.omniglot --backbone-width 64"],
)
def test_two_processes_reach_the_weights_of_one(algorithm: str, tmp_path: Path) -> None:
    # Three tasks a step: shares of two and one. Augmentation draws random numbers.
    words = [
        "train",
        *DATA,
        *TASKS,
        *PLAIN,
        "--augment",
        "drawing",
        "--steps",
        3,
        "--json",
        *algorithm.split(),
    ]
    alone = metazoo(*words, "--out", tmp_path / "one")
    both = run(torchrun(*words, "--out", tmp_path / "two"))
    assert alone.returncode == both.returncode == 0, both.stderr
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert set(one) == set(two)
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert any(
        not torch.equal(one[name], value) for name, value in tensors(tmp_path / "two").items()
    )  # they did share
    # One of them writes and speaks: the result stands once on stdout.
    results = [json.loads(done.stdout) for done in (alone, both)]
    assert abs(results[0]["mean"] - results[1]["mean"]) < 0.02
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["protonet.omniglot", "maml.omniglot_5w1s", "maml.sinusoid"])
def test_evaluation_is_shared_out_with_the_same_result(model: str) -> None:
    words = ["eval", model, "--episodes", "70", "--json"]
    if "omniglot" in model:
        words += ["--dataset", "glyphs", "--data-alphabets", "6"]
    alone, both = metazoo(*words), run(torchrun(*words))
    assert alone.returncode == both.returncode == 0, both.stderr
    assert json.loads(both.stdout) == json.loads(alone.stdout)


def started(command: list[str], folder: Path, needs: str) -> subprocess.Popen[str]:
    """Start a job, and return when its run has a file."""
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


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_job_or_is_started_again_and_nothing_is_lost(
    rank: int, tmp_path: Path
) -> None:
    words = ["train", "protonet", *DATA, *TASKS, *LONG]
    undisturbed = run(torchrun(*words, "--out", tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr

    ended = tmp_path / "ended"
    job = started(torchrun(*words, "--out", ended), ended, "last.safetensors")
    os.kill(workers(job)[rank], signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    assert job.returncode != 0
    assert not (ended / "result.json").exists()
    resumed = run(torchrun("train", "--resume", ended))
    assert resumed.returncode == 0, said + resumed.stderr

    again = tmp_path / "again"
    job = started(
        torchrun(*words, "--out", again, options=("--max-restarts", "1")), again, "last.safetensors"
    )
    os.kill(workers(job)[rank], signal.SIGKILL)
    out, said = job.communicate(timeout=180)
    assert job.returncode == 0, said
    assert out == undisturbed.stdout.replace("undisturbed", "again")

    for folder in (ended, again):
        for name, value in tensors(tmp_path / "undisturbed").items():
            assert torch.equal(value, tensors(folder)[name]), name


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
        (["train", "protonet", *DATA], "2 processes cannot share out a meta-batch of 1"),
        (
            ["train", "baseline", *DATA],
            "'baseline' trains on batches, and only tasks are shared out",
        ),
        (["train", "protonett"], "no algorithm named 'protonett'"),
        (["eval", "nothing"], "nothing"),
        (["train", "protonet", *DATA, *TASKS, "--lr", "1e30", "--steps", "40"], "the loss is"),
    ],
)
def test_mistakes_are_told_by_the_first_and_by_the_others_under_their_number(
    words: list[str], said: str, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "run")] if words[0] == "train" else []
    done = run(torchrun(*words, *out))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    first = [line for line in told if not line.startswith("error: process 1: ")]
    assert len(first) == 1, done.stderr
    assert said in first[0]


@pytest.mark.slow
def test_a_job_that_is_started_again_leaves_the_runs_of_others_alone(tmp_path: Path) -> None:
    older = tmp_path / "older"
    assert metazoo("train", "protonet", *DATA, *TASKS, "--steps", 2, "--out", older).returncode == 0
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
    total = distributed.add_up(model, loss)
    buffers.merge()
    torch.testing.assert_close(net[0].weight.grad, alone[0].weight.grad)
    torch.testing.assert_close(net[1].running_mean, alone[1].running_mean)
    torch.testing.assert_close(net[1].running_var, alone[1].running_var)
    assert net[1].num_batches_tracked == 3
    assert spare.weight.grad is None
    same = distributed.mapped(lambda i: net[2].running_mean.clone(), range(2))
    assert torch.equal(*same)
    assert distributed.anyone(rank == 1) and not distributed.anyone(False)
    if rank == 0:
        print("done")
"""


@pytest.mark.slow
def test_work_gradients_and_statistics_are_put_together_as_one_process_has_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = run([*launch, str(tmp_path / "program.py")])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


@pytest.mark.slow
def test_processes_that_may_be_started_again_need_a_folder_to_find() -> None:
    done = run(torchrun("train", "protonet", *DATA, *TASKS, options=("--max-restarts", "1")))
    assert done.returncode != 0
    assert "name its folder with --out" in done.stderr


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
