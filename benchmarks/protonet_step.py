"""A training step of protonet with Conv4 on a 60-way 1-shot 5-query task: metazoo, easyfsl and a plain loop.

As `python -m benchmarks.protonet_step` it prints the seconds of metazoo's steps in a process that gives freed memory back.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.conv4 import Conv4
from metazoo.datasets.glyphs import Glyphs
from metazoo.tasks.episode import Episode
from metazoo.training.loop import make_optimizer, outer_step

from . import rivals
from .kernels.measure import Way
from .suite import OURS, Options, Result, Unavailable, closeness, fresh, in_float64

WAYS, QUERIES = 60, 5
EASYFSL, PLAIN = "easyfsl", "plain loop"
BF16, RETURNED = f"{OURS} --precision bf16", f"{OURS}, freed memory given back"
STEPS = 8  # of a process that gives memory back, and of those 2 to get going


class Fixed:
    """The same tasks, whichever are asked for: the time is that of the step alone."""

    def __init__(self, task: Episode):
        self.task = task

    def draw(self, first: int, count: int) -> Episode:
        return self.task


def task(ways: int = WAYS) -> Episode:
    """Return a task of made-up characters, as large as those of Omniglot."""
    return Glyphs(Glyphs.Config(alphabets=8)).tasks("train", ways, 1, QUERIES, 0).draw(0, 1)


def ours(model: ProtoNet, episode: Episode, precision: str) -> Way:
    """Return metazoo's own step of training."""
    recipe = metazoo.Recipe(precision=precision, meta_batch=1)  # type: ignore[arg-type]
    optimizer = make_optimizer(recipe, model)
    source, device = Fixed(episode), episode.support_x.device
    return lambda: outer_step(model, optimizer, source, recipe, 0, device)


def plain_loss(network: nn.Module, task: Sequence[Tensor]) -> Tensor:
    """Return the loss of support images, labels, query images and labels as one writes it down."""
    support_x, _, query_x, query_y = task
    ways = len(support_x)
    z = network(torch.cat([support_x, query_x]))
    prototypes = z[:ways].view(ways, 1, -1).mean(1)
    return F.cross_entropy(-torch.cdist(z[ways:], prototypes).square(), query_y)


def alone(episode: Episode) -> list[Tensor]:
    """Return the tensors of an episode's only task."""
    return [tensor[0] for tensor in vars(episode).values()]


def easyfsl_loss(classifier: Any, episode: Episode) -> Tensor:
    """Return the loss of easyfsl's tutorials: support and queries one after the other, plain distances."""
    classifier.process_support_set(episode.support_x[0], episode.support_y[0])
    return F.cross_entropy(classifier(episode.query_x[0]), episode.query_y[0])


def stepping(network: nn.Module, loss: Any) -> Way:
    """Return a step of Adam on a loss."""
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def new_model(ways: int = WAYS) -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), ways)).train()


def run(options: Options) -> Result:
    result = Result(
        "a training step of protonet, Conv4: a 60-way 1-shot 5-query task of 28x28 pixels, with Adam",
        "ms",
    )
    episode = task()
    model = new_model()
    plain = rivals.plain_conv4(model.backbone).train()
    ways: dict[str, Way] = {}
    for precision, name in (("float32", OURS), ("bf16", BF16)):
        ways[name] = ours(copy.deepcopy(model), episode, precision)
    settings = {OURS: "the step of `metazoo train`, float32", BF16: "the same step"}
    exact = in_float64(episode)
    own = copy.deepcopy(model).double()
    own_loss = own.loss(exact)
    own_loss.backward()
    for order in rivals.ORDERS:
        network = rivals.ordered(plain, order).double()
        loss = plain_loss(network, alone(exact))
        loss.backward()
        error = max(
            abs(loss.item() / own_loss.item() - 1), closeness([gradient(network)], [gradient(own)])
        )
        result.checked(
            f"{PLAIN}, {order}: in float64 loss and gradient, to a millionth of the largest value",
            error < 1e-6,
        )
        trained = rivals.ordered(plain, order)
        ways[f"{PLAIN}, {order}"] = stepping(
            trained, lambda network=trained: plain_loss(network, alone(episode))
        )
    try:
        library = rivals.easyfsl()
    except Unavailable as error:
        result.leave_out(EASYFSL, error)
    else:
        for order in rivals.ORDERS:
            classifier = library.methods.PrototypicalNetworks(rivals.ordered(plain, order))
            judge = copy.deepcopy(classifier).double().eval()
            own = copy.deepcopy(model).double().eval()
            with torch.no_grad():
                judge.process_support_set(exact.support_x[0], exact.support_y[0])
                logits = own(exact.support_x, exact.support_y, exact.query_x)[0]
                error = closeness([-judge(exact.query_x[0]).square()], [logits])
            result.checked(
                f"{EASYFSL}, {order}: in float64 and eval mode the logits, once squared",
                error < 1e-6,
            )
            ways[f"{EASYFSL}, {order}"] = stepping(
                classifier, lambda classifier=classifier: easyfsl_loss(classifier, episode)
            )
        result.notes.append(
            "easyfsl embeds support and queries apart, so that BatchNorm sees them apart, and takes no squares"
        )
    result.race("", ways, options, per=1e3, settings=settings)
    result.add(
        "", {RETURNED: [1e3 * seconds for seconds in fresh("benchmarks.protonet_step")]}, settings
    )
    result.aim(1.3, f"{EASYFSL}, contiguous")
    result.aim(1.3, f"{PLAIN}, contiguous")
    result.aim(1.3, f"{PLAIN}, channels_last")
    result.aim(2, f"{EASYFSL}, contiguous", f"{PLAIN}, contiguous", ours=BF16)
    if options.accuracy:
        result.notes.append(
            f"test accuracy after {options.pick(1000, 2)} steps: {accuracies(options)}"
        )
    return result


def gradient(network: nn.Module) -> Tensor:
    """Return the gradient by all parameters as one: that by a bias before BatchNorm is zero but for rounding."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def accuracies(options: Options) -> str:
    """Train protonet on Omniglot in both precisions with the command line, and return how both do in the test."""
    found = []
    with TemporaryDirectory() as folder:
        for precision in ("float32", "bf16"):
            result = fresh(
                "metazoo", "train", "protonet", "--dataset", "omniglot", "--data-root", str(rivals.data_folder()),
                "--data-split", "vinyals", "--precision", precision, "--steps", str(options.pick(1000, 2)),
                "--test-episodes", str(options.pick(1000, 10)), "--out", str(Path(folder) / precision), "--json",
            )  # fmt: skip
            found.append(
                f"{precision} {100 * result['mean']:.2f} ± {100 * result['interval']:.2f} %"
            )
    return ", ".join(found)


def main() -> None:
    step = ours(new_model(), task(), "float32")
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    print(json.dumps(times[2:]))


if __name__ == "__main__":
    main()
