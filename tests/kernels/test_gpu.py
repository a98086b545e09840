"""What must be the same on a GPU: the kernels, a training step, resuming, evaluation, prediction. Run with `-m gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import metazoo
from metazoo import kernels, ops
from metazoo.evaluation.measure import evaluate
from metazoo.tasks.examples import Examples
from metazoo.tasks.sampler import BatchSampler, EpisodeSampler
from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan
from metazoo.zoo import run_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

RECIPE = {
    "ways": 3,
    "queries": 3,
    "steps": 4,
    "validate_every": 2,
    "validation_episodes": 4,
    "test_episodes": 4,
}


OPTIONS = {
    "protonet": {},
    "matching": {"fce": True},
    "baseline": {},
    "maml": {"learned_rates": "per-step", "inner_steps": 2},
}


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("algorithm", list(OPTIONS))
def test_the_gradient_is_that_of_the_cpu(algorithm: str, tasks: int) -> None:
    blueprint, data = plan(
        algorithm, "glyphs", OPTIONS[algorithm], {"alphabets": 6}, {"width": 8}, RECIPE
    )
    torch.manual_seed(0)
    model = blueprint.model().double().train()
    examples = data.split("train")
    source = (
        BatchSampler(examples, 12)
        if model.draws == "batches"
        else EpisodeSampler(examples, 3, 1, 3)
    )
    gradients = {}
    for device in ("cpu", "cuda"):
        task = source.draw(0, tasks).to(device)
        model.to(device).zero_grad()
        model.loss(
            type(task)(*(t.double() if t.is_floating_point() else t for t in vars(task).values()))
        ).backward()
        # A copy: moving a model moves its gradients.
        gradients[device] = [p.grad.cpu().clone() for p in model.parameters() if p.requires_grad]
    assert any(g.norm() > 1e-3 for g in gradients["cpu"])
    for ours, theirs in zip(gradients["cpu"], gradients["cuda"]):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("algorithm", list(OPTIONS))
def test_trains_and_evaluates(algorithm: str, tmp_path: Path) -> None:
    blueprint, data = plan(
        algorithm,
        "glyphs",
        OPTIONS[algorithm],
        {"alphabets": 6},
        {"width": 8},
        {**RECIPE, "device": "cuda"},
    )
    run_folder.create(tmp_path / "run", blueprint)
    train(blueprint, data, tmp_path / "run", Watcher())
    model, tasks = metazoo.load(tmp_path / "run"), blueprint.data().tasks("test", 3, 1, 3, 0)
    scores = [evaluate(model.to(place), tasks, 10, place) for place in ("cpu", "cuda")]
    torch.testing.assert_close(scores[0], scores[1], atol=0.15, rtol=0)


def test_scores_are_the_same_wherever_model_and_data_lie() -> None:
    torch.manual_seed(0)
    blueprint, data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, RECIPE)
    model = blueprint.model()
    scores = []
    for data_at, model_at in (("cpu", "cpu"), ("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        data.move(data_at)
        tasks = data.tasks("test", 3, 1, 3, 0)
        scores += [
            evaluate(model.to(model_at), tasks, 50, model_at, cache=cache)
            for cache in (True, False)
        ]
    assert scores[0].std() > 0
    for others in scores[1:]:
        # One query of nine may be a tie, which rounding decides.
        torch.testing.assert_close(others, scores[0], atol=0.12, rtol=0)
        assert (others != scores[0]).float().mean() < 0.1


def test_tasks_are_the_same_on_the_gpu() -> None:
    data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, RECIPE)[1]
    before = data.tasks("test", 3, 1, 3, 0).draw(5, 2)
    data.move("cuda")
    after = data.tasks("test", 3, 1, 3, 0).draw(5, 2)
    assert after.support_x.is_cuda
    assert torch.equal(before.support_x, after.support_x.cpu())
    assert torch.equal(before.query_x, after.query_x.cpu())


class Broken(Watcher):
    def step(self, step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt


def test_resumes_on_the_gpu(tmp_path: Path) -> None:
    # Adam makes steps of full size of the rounding errors that are the gradient by a bias before BatchNorm.
    recipe = {**RECIPE, "device": "cuda", "optimizer": "nesterov"}
    blueprint, data = plan("protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, recipe)
    for name in ("whole", "broken"):
        run_folder.create(tmp_path / name, blueprint)
    train(blueprint, data, tmp_path / "whole", Watcher())
    with pytest.raises(KeyboardInterrupt):
        train(blueprint, data, tmp_path / "broken", Broken())
    train(blueprint, data, tmp_path / "broken", Watcher())
    weights = [metazoo.load(tmp_path / name).state_dict() for name in ("whole", "broken")]
    for ours, theirs in zip(weights[0].values(), weights[1].values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_predicts_on_the_gpu(tmp_path: Path) -> None:
    blueprint, data = plan(
        "protonet", "glyphs", {}, {"alphabets": 6}, {"width": 8}, {**RECIPE, "device": "cpu"}
    )
    run_folder.create(tmp_path / "run", blueprint)
    train(blueprint, data, tmp_path / "run", Watcher())
    x = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    answers = [
        metazoo.FewShotClassifier(tmp_path / "run", device=device)
        .fit(x[:4], ["a", "a", "b", "b"])
        .predict_proba(x)
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)


# ---- the kernels -------------------------------------------------------------------------------------------------------


def test_the_kernels_are_used() -> None:
    assert kernels.load(), kernels.status()
    assert kernels.covers("cuda")


@pytest.mark.parametrize("name", ["test_kernels"])
def test_the_operators_pass_their_tests(name: str) -> None:
    assert kernels.load(), kernels.status()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name(f"{name}.py")),
    ]
    environment = {**os.environ, "METAZOO_TEST_DEVICE": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def inputs(device: str = "cuda") -> tuple[torch.Tensor, ...]:
    """Return queries, prototypes, targets, parameters and two gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 30, 64), (4, 5, 64), (4, 300), (4, 10, 10), (4, 200)]
    x, y, params, a, b = (torch.randn(*shape, generator=generator).to(device) for shape in shapes)
    return x, y, (torch.arange(120, device=device) % 5).view(4, 30), params, a, b


def everything(
    x: torch.Tensor,
    y: torch.Tensor,
    target: torch.Tensor,
    params: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    velocity = torch.zeros_like(params)
    after, v = ops.sgd_update(
        params, [a, b], 0.1, velocity=velocity, momentum=0.9, weight_decay=0.1, max_norm=1.0
    )
    return (
        ops.pairwise_sqdist(x, y),
        ops.pairwise_sqdist(x, y, root=True),
        ops.prototypical_nll(x, y, target),
        after,
        v,
    )


def test_the_operations_agree_with_the_cpu() -> None:
    for ours, theirs in zip(everything(*inputs()), everything(*inputs("cpu"))):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)


def test_a_cuda_graph_captures_and_replays_them() -> None:
    static = inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        everything(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = everything(*static)
    for tensor in (*static[:2], *static[3:]):
        tensor.mul_(0.5)
    graph.replay()
    for ours, theirs in zip(outputs, everything(*static)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(("algorithm", "options"), [("maml", {"inner_steps": 2}), ("protonet", {})])
def test_a_cuda_graph_captures_a_gradient(
    algorithm: str, options: dict[str, object], tasks: int
) -> None:
    blueprint, data = plan(algorithm, "glyphs", options, {"alphabets": 6}, {"width": 8}, RECIPE)
    torch.manual_seed(0)
    model = blueprint.model().double().to("cuda").train()
    task = EpisodeSampler(data.split("train"), 3, 1, 3).draw(0, tasks).to("cuda")
    task = type(task)(*(t.double() if t.is_floating_point() else t for t in vars(task).values()))

    def gradient() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(model.loss(task), list(model.parameters()))

    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradient()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph, stream=side):
        replayed = gradient()
    task.query_x.mul_(0.5)
    graph.replay()
    for ours, theirs in zip(replayed, gradient()):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_they_run_on_the_current_stream() -> None:
    # The other stream is busy for a while first: on any other one, the kernel would read what is not yet written.
    assert kernels.load()  # building would take longer than the sleep
    side, x = torch.cuda.Stream(), torch.zeros(1, 1, 4, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        x.add_(1)
        distance = ops.pairwise_sqdist(x, torch.zeros_like(x))
    side.synchronize()
    assert distance.item() == 4.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_they_run_on_the_device_of_their_arguments() -> None:
    with torch.cuda.device(0):
        for ours, theirs in zip(everything(*inputs("cuda:1")), everything(*inputs("cpu"))):
            assert ours.device == torch.device("cuda", 1)
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)
        assert torch.cuda.current_device() == 0


def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="one device"):
        torch.ops.metazoo.sqdist(torch.zeros(1, 2, 3, device="cuda"), torch.zeros(1, 2, 3))


def test_autocast_takes_distances_in_float32() -> None:
    x, y, target, *_ = inputs()
    exact = ops.pairwise_sqdist(x.half(), y.half()).float()
    with torch.autocast("cuda", dtype=torch.float16):
        got = ops.pairwise_sqdist(x.half(), y.half())
        assert got.dtype == ops.prototypical_nll(x.half(), y.half(), target).dtype == torch.float32
    torch.testing.assert_close(got, exact, rtol=1e-3, atol=0.1)


def launches(work: Callable[[], object]) -> int:
    """Return how many kernels some work launches."""
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        work()
        torch.cuda.synchronize()
    return sum(
        event.count
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )


def test_launches() -> None:
    x, y, target, params, a, b = inputs()
    assert launches(lambda: ops.pairwise_sqdist(x, y)) == 1
    assert launches(lambda: ops.sgd_update(params, [a, b], 0.1)) == 1
    assert launches(lambda: ops.sgd_update_(params, [a, b], 0.1, weight_decay=0.1)) == 1
    x, y, g = x.requires_grad_(), y.requires_grad_(), torch.ones(4, 30, 5, device="cuda")
    assert launches(lambda: torch.autograd.grad(ops.pairwise_sqdist(x, y), (x, y), g)) == 2
    # The head, the mean of its terms, its share of each, both gradients; and the 1 that differentiation begins with.
    assert launches(lambda: torch.autograd.grad(ops.prototypical_nll(x, y, target), (x, y))) <= 5


def test_tasks_chosen_on_the_gpu_are_those_chosen_on_the_host() -> None:
    class Swapped(EpisodeSampler):
        def choose(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            return super().choose(first + 100, count)

    counts = tuple(range(6, 46))
    x = torch.arange(sum(counts), dtype=torch.float32).unsqueeze(1)
    examples = Examples(x, counts, tuple(map(str, counts)), "numbers")
    for kind in (EpisodeSampler, Swapped):
        here, there = kind(examples, 5, 1, 5, 3), kind(examples.to("cuda"), 5, 1, 5, 3)
        assert there.rows(0, 1).is_cuda == (
            kind is EpisodeSampler
        )  # one that chooses in its own way does so in numpy
        for first, count in ((0, 1), (17, 3000), (10**9, 70)):
            for ours, theirs in zip(
                vars(there.draw(first, count)).values(), vars(here.draw(first, count)).values()
            ):
                assert torch.equal(ours.cpu(), theirs)
