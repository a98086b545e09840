"""A second-order step of MAML: metazoo, higher and torch.func; its BatchNorm; its memory."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import metazoo
from metazoo import Episode
from metazoo.algorithms.maml import MAML
from metazoo.backbones.conv4 import Conv4
from metazoo.base.backbone import CONVOLUTION_FORMAT
from metazoo.cli.process import keep_freed_memory
from metazoo.datasets.glyphs import Glyphs
from metazoo.nn import batch_norm

from . import rivals
from .harness import OURS, Bench, Call, Unavailable, Way, distance, fresh
from .rivals import gradient, in_float64

WAYS, WIDTH = 5, 64
INNER_LR = torch.tensor(0.4).item()  # as metazoo holds it, for the comparison in float64
STATUS = Path("/proc/self/status")
Loss = Callable[[nn.Module, Episode], Tensor]


def run(bench: Bench) -> None:
    bench.work = "the second-order gradient of MAML, 5 ways"
    for steps in bench.pick((1, 5), (1,)):
        part = f"Conv4, 16 tasks, 1 shot, 1 query, inner steps: {steps}"
        with bench.part(part):
            tasks = draw(bench.pick(16, 2), 1, 1).to(bench.device)
            compare(bench, new_model(Conv4, steps).to(bench.device), tasks, steps)
    if bench.cuda or bench.quick:
        with bench.part(
            "functorch's Omniglot example: 32 tasks, 5 shots, 15 queries, 5 inner steps"
        ):
            tasks = draw(bench.pick(32, 2), *bench.pick((5, 15), (1, 1))).to(bench.device)
            model = new_model(ThreeBlocks, bench.pick(5, 2), tasks="vmap")
            compare(bench, model.to(bench.device), tasks, bench.pick(5, 2))
    for steps in () if bench.cuda else bench.pick((1, 5), (1,)):
        with bench.part(f"BatchNorm, 8 tasks, 1 shot, 1 query, inner steps: {steps}"):
            norms(bench, new_model(Conv4, steps), draw(bench.pick(8, 2), 1, 1))
    if not bench.cuda:
        with bench.part("memory, 8 tasks, 5 shots, 5 queries, 5 inner steps"):
            memory(bench)


def draw(count: int, shots: int, queries: int) -> Episode:
    """Return tasks of made-up characters."""
    return Glyphs(Glyphs.Config(alphabets=6)).tasks("train", WAYS, shots, queries, 0).draw(0, count)


def new_model(backbone: type[metazoo.Backbone], steps: int, **options: Any) -> MAML:
    torch.manual_seed(0)
    config = MAML.Config(inner_steps=steps, **options)
    return MAML(backbone((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), WAYS), config).train()


class ThreeBlocks(metazoo.Backbone):
    """The network of functorch's example up to its last layer: three unpadded blocks."""

    def __init__(self, input_shape: tuple[int, ...], config: metazoo.Config | None = None):
        super().__init__(input_shape, config)
        blocks = [
            nn.Sequential(nn.Conv2d(c, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.MaxPool2d(2), nn.ReLU())
            for c in (1, WIDTH, WIDTH)
        ]
        self.blocks = nn.Sequential(*blocks).to(memory_format=CONVOLUTION_FORMAT)  # type: ignore[call-overload]
        self.out_features = WIDTH

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


def inner_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of the inner steps: summed over ways, as in the authors' code."""
    return F.cross_entropy(logits, y) * WAYS


def higher_loss(steps: int) -> Loss:
    """Return the loss of a meta-batch as higher's examples compute it, or raise Unavailable."""
    library = rivals.higher()

    def loss(network: nn.Module, tasks: Episode) -> Tensor:
        optimizer = torch.optim.SGD(network.parameters(), lr=INNER_LR)
        losses = []
        for sx, sy, qx, qy in zip(*vars(tasks).values()):
            with library.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (
                fast,
                inner,
            ):
                for _ in range(steps):
                    inner.step(inner_loss(fast(sx), sy))
                losses.append(F.cross_entropy(fast(qx), qy))
        return torch.stack(losses).mean()

    return loss


def functional_loss(steps: int, vectorised: bool) -> Loss:
    """Return the loss of a meta-batch as torch.func's tutorial computes it."""

    def loss(network: nn.Module, tasks: Episode) -> Tensor:
        start = dict(network.named_parameters())

        def adapted(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
            fast = start
            for _ in range(steps):
                slopes = grad(lambda p: inner_loss(functional_call(network, p, (sx,)), sy))(fast)
                fast = {name: fast[name] - INNER_LR * slopes[name] for name in fast}
            return F.cross_entropy(functional_call(network, fast, (qx,)), qy)

        data = vars(tasks).values()
        each = (
            vmap(adapted)(*data) if vectorised else torch.stack([adapted(*t) for t in zip(*data)])
        )
        return each.mean()

    return loss


def compare(bench: Bench, model: MAML, tasks: Episode, steps: int) -> None:
    """Race metazoo's gradient with rivals whose gradients agree in float64."""
    few = in_float64(tasks[: bench.pick(4, 2)])  # float64 takes much memory
    expected = exact(model, lambda model, tasks: model.loss(tasks), few)
    ours = lambda: gradient(model, lambda: model.loss(tasks))  # noqa: E731
    ways = {OURS: Way(ours, "the default" if model.config.tasks == "auto" else "vmap")}
    losses: dict[str, tuple[Callable[[], Loss], bool]] = {
        "torch.func, vmap over tasks": (lambda: functional_loss(steps, True), True)
    }
    if model.config.tasks == "auto":
        losses["torch.func, one task at a time"] = (lambda: functional_loss(steps, False), False)
        losses["higher"] = (lambda: higher_loss(steps), False)
    for name, (make, written_out) in losses.items():
        with bench.rival(name):
            loss = make()
            body = rivals.plain_network(
                model.backbone.blocks, running=False, written_out=written_out
            )
            network = nn.Sequential(body, copy.deepcopy(model.head))
            networks = {order: rivals.ordered(network, order) for order in rivals.ORDERS}
            calls = {
                o: lambda n=n, f=loss: gradient(n, lambda: f(n, tasks)) for o, n in networks.items()
            }
            order, call = bench.quickest(calls)
            off = distance([exact(networks[order], loss, few)], [expected])
            bench.check(f"{name}: the gradient in float64", off, 1e-6)
            ways[name] = Way(call, order + ", BatchNorm written out" * written_out)
    bench.race(ways, launches=True)


def exact(network: nn.Module, loss: Loss, tasks: Episode) -> Tensor:
    """Return the gradient in float64; in float32, a maximum that rounding moves changes it by 0.2 %."""
    double = copy.deepcopy(network).double()
    return gradient(double, lambda: loss(double, tasks))


def norms(bench: Bench, model: MAML, tasks: Episode) -> None:
    """Race the hand-derived double backward of BatchNorm with PyTorch's own."""

    def stock(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)

    def replaced(norm: Any) -> Any:
        return mock.patch.object(batch_norm, "batch_norm", norm)

    def step(norm: Any) -> Call:
        own = copy.deepcopy(model)
        take = rivals.adam(own, lambda: own.loss(tasks))

        def call() -> None:
            with replaced(norm):
                take()

        return call

    expected = exact(model, lambda model, tasks: model.loss(tasks), wide := in_float64(tasks))
    with replaced(stock):
        found = exact(model, lambda model, tasks: model.loss(tasks), wide)
    bench.check("F.batch_norm: the gradient in float64", distance([found], [expected]), 1e-6)
    both = {OURS: batch_norm.batch_norm, "F.batch_norm": stock}
    bench.race({name: Way(step(norm)) for name, norm in both.items()}, rounds=15)


def memory(bench: Bench) -> None:
    """Compare `--checkpoint-inner` with keeping the inner steps, each in processes of its own."""
    if not STATUS.exists():
        raise Unavailable("only Linux tells how much memory a process has held")
    words = {f"{OURS} --checkpoint-inner": "1", f"{OURS}, inner steps kept": "0"}
    held: dict[str, list[float]] = {name: [] for name in words}
    seconds, losses = copy.deepcopy(held), {}
    for _ in range(bench.pick(5, 1)):
        for name, again in words.items():
            found = fresh("-m", "benchmarks.maml_step", again, bench.pick("8", "1"))
            losses[name] = found["loss"]
            held[name].append(found["MiB"])
            seconds[name].append(found["s"])
    first, second = losses.values()
    bench.check("the loss", abs(first / second - 1), 1e-5)
    bench.add(held, unit="MiB")
    bench.add(seconds, unit="s")


def most_held() -> float:
    """Return the most memory that this process has held so far, in MiB."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def main(again: bool, count: int) -> None:
    """Take two steps; print the loss, the memory that the first one adds, and the second's time."""
    keep_freed_memory()
    model, tasks = new_model(Conv4, 5, checkpoint_inner=again), draw(count, 5, 5)
    before = most_held()
    (loss := model.loss(tasks)).backward()
    added, began = most_held() - before, time.perf_counter()
    model.loss(tasks).backward()
    print(json.dumps({"loss": loss.item(), "MiB": added, "s": time.perf_counter() - began}))


if __name__ == "__main__":
    main(sys.argv[1] == "1", int(sys.argv[2]))
