"""A training step of protonet, Conv4, on a 60-way 1-shot 5-query task of 28x28 pixels."""

from __future__ import annotations

import copy
import json
import sys
import time
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import metazoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.backbones.conv4 import Conv4
from metazoo.datasets.glyphs import Glyphs
from metazoo.training.loop import make_optimizer, outer_step

from . import rivals
from .harness import OURS, Bench, Call, Way, distance, fresh
from .rivals import gradient, in_float64, only_task, plain_loss

SETTLING, STEPS = 2, 6  # steps of a process that returns freed memory to the kernel


def task(ways: int = 60) -> metazoo.Episode:
    """Return a task of made-up characters as large as Omniglot's."""
    return Glyphs(Glyphs.Config(alphabets=8)).tasks("train", ways, 1, 5, 0).draw(0, 1)


def new_model(ways: int = 60) -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), ways)).train()


def our_step(model: ProtoNet, episode: metazoo.Episode, precision: str = "float32") -> Call:
    """Return the step of `metazoo train`, without the time that drawing tasks takes."""
    recipe = metazoo.Recipe(precision=precision, meta_batch=1)  # type: ignore[arg-type]
    optimizer, source = make_optimizer(recipe, model), SimpleNamespace(draw=lambda *_: episode)
    return lambda: outer_step(model, optimizer, source, recipe, 0, episode.support_x.device)  # type: ignore[arg-type]


def run(bench: Bench) -> None:
    bench.work = "a step of protonet, Conv4, on a 60-way 1-shot 5-query task of 28x28 pixels"
    episode = task(ways := bench.pick(60, 5)).to(bench.device)
    model = new_model(ways).to(bench.device)
    plain = rivals.plain_network(model.backbone.blocks).train()
    with bench.part("step with Adam"):
        steps(bench, model, plain, episode)


def steps(bench: Bench, model: ProtoNet, plain: nn.Module, episode: metazoo.Episode) -> None:
    """Race the step of `metazoo train` with plain loops and with easyfsl."""
    exact, double = in_float64(episode), copy.deepcopy(model).double()
    expected = gradient(double, lambda: double.loss(exact))
    ways = {
        OURS: Way(our_step(copy.deepcopy(model), episode), "`metazoo train`"),
        f"{OURS} --precision bf16": Way(our_step(copy.deepcopy(model), episode, "bf16")),
    }
    for order in rivals.ORDERS:
        network = rivals.ordered(plain, order)
        wide = copy.deepcopy(network).double()
        found = gradient(wide, lambda wide=wide: plain_loss(wide, only_task(exact)))
        bench.check(
            f"plain loop, {order}: the gradient in float64", distance([found], [expected]), 1e-6
        )
        loss = lambda network=network: plain_loss(network, only_task(episode))  # noqa: E731
        ways[f"plain loop, {order}"] = Way(rivals.adam(network, loss))
        with bench.rival(f"easyfsl, {order}"):
            ways[f"easyfsl, {order}"] = easyfsl(bench, model, rivals.ordered(plain, order), episode)
    bench.race(ways, launches=True)
    if not bench.cuda:
        times = fresh("-m", "benchmarks.protonet_step", str(len(only_task(episode)[0])))
        bench.add({f"{OURS}, freed memory returned to the kernel": times}, unit="ms")


def easyfsl(bench: Bench, model: ProtoNet, network: nn.Module, episode: metazoo.Episode) -> Way:
    """Return easyfsl's step, once its logits in eval mode are the negative roots of ours."""
    support_x, support_y, query_x, query_y = only_task(episode)
    classifier = rivals.easyfsl().methods.PrototypicalNetworks(network)
    judge, ours = (copy.deepcopy(m).double().eval() for m in (classifier, model))
    exact = in_float64(episode)
    with torch.no_grad():
        judge.process_support_set(exact.support_x[0], support_y)
        expected = ours(exact.support_x, exact.support_y, exact.query_x)[0]
        off = distance([-judge(exact.query_x[0]).square()], [expected])
    bench.check("easyfsl: the squared logits in float64 and eval mode", off, 1e-6)

    def loss() -> Tensor:
        classifier.process_support_set(support_x, support_y)
        return nn.functional.cross_entropy(classifier(query_x), query_y)

    return Way(rivals.adam(classifier, loss), "embeds support and queries apart, no squares")


if __name__ == "__main__":
    ways = int(sys.argv[1])
    step, times = our_step(new_model(ways), task(ways)), []
    for _ in range(SETTLING + STEPS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    print(json.dumps(times[SETTLING:]))
