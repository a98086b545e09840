"""A 60-way training step of protonet and the time of its convolutions alone, of which it is to be made up to 90 %."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import protonet_step, rivals
from benchmarks.kernels.measure import Row, Scope, Way
from benchmarks.protonet_step import alone, plain_loss, stepping
from benchmarks.suite import closeness, in_float64
from metazoo.algorithms.protonet import ProtoNet
from metazoo.tasks.episode import Episode

from .part import BF16, GRAPH, OURS, TF32, Part, checked, error_of, flat, in_tf32, slopes, verdict

SHARE = 0.9
STEP = f"{OURS}, the step with Adam"
PLAIN, CONVOLUTIONS = "plain loop", "convolutions alone"


def convolutions(model: ProtoNet, task: Episode, order: str, dtype: torch.dtype) -> Way:
    """Return the network's convolutions alone, forward and backward, each on what it is given in a step."""
    shape = {"dtype": dtype, "memory_format": rivals.ORDERS[order]}
    layers = [
        layer for layer in copy.deepcopy(model.backbone).modules() if isinstance(layer, nn.Conv2d)
    ]
    x = torch.cat([task.support_x[0], task.query_x[0]]).to(**shape)
    work: list[tuple[nn.Conv2d, Tensor, Tensor]] = []
    for layer in layers:
        layer.to(**shape)
        y = layer(x).detach()
        work.append((layer, x, torch.randn_like(y)))
        # What comes between has no part in the time, but for the sizes.
        x = torch.max_pool2d(y, 2).relu().requires_grad_()

    def run() -> None:
        for layer, given, slope in work:
            # The first one's input is the images, by which no step differentiates.
            by = [given, *layer.parameters()] if given.requires_grad else list(layer.parameters())
            torch.autograd.grad(layer(given), by, slope)

    return run


def part(scope: Scope) -> Part:
    """Return the goal's part."""
    count = 5 if scope.quick else protonet_step.WAYS
    task = protonet_step.task(count).to(scope.device)
    model = protonet_step.new_model(count).to(scope.device)
    plain = rivals.plain_conv4(copy.deepcopy(model.backbone).cpu()).train()
    networks = {order: rivals.ordered(plain, order).to(scope.device) for order in rivals.ORDERS}

    def theirs(network: nn.Module, low: bool = False) -> Way:
        network = copy.deepcopy(network)
        parameters = list(network.parameters())

        def gradient() -> tuple[Tensor, ...]:
            with torch.autocast(scope.device.type, torch.bfloat16, enabled=low):
                loss = plain_loss(network, alone(task))
            return torch.autograd.grad(loss, parameters)

        return gradient

    def gradient_of(low: bool = False) -> Way:
        own = copy.deepcopy(model)
        own.backbone.low_precision = torch.bfloat16 if low else None
        return slopes(own, task)

    own = gradient_of()
    ways: dict[str, Way] = {
        OURS: own,
        STEP: protonet_step.ours(copy.deepcopy(model), task, "float32"),
    }
    for order, network in networks.items():
        trained = copy.deepcopy(network)
        ways[f"{PLAIN}, {order}"] = theirs(network)
        ways[f"{PLAIN}, the step with Adam, {order}"] = stepping(
            trained, lambda n=trained: plain_loss(n, alone(task))
        )
        ways[f"{CONVOLUTIONS}, {order}"] = convolutions(model, task, order, torch.float32)
        ways[f"{CONVOLUTIONS}, {order}{TF32}"] = in_tf32(
            convolutions(model, task, order, torch.float32)
        )
        ways[f"{CONVOLUTIONS}, {order}{BF16}"] = convolutions(model, task, order, torch.bfloat16)
    ways[OURS + TF32], ways[OURS + BF16] = in_tf32(own), gradient_of(low=True)
    last = networks["channels_last"]
    ways[PLAIN + TF32], ways[PLAIN + BF16] = in_tf32(theirs(last)), theirs(last, low=True)
    exact = in_float64(task)
    exactly = flat(slopes(copy.deepcopy(model).double(), exact)())

    def check() -> list[str]:
        facts = []
        for order, network in networks.items():
            double = copy.deepcopy(network).double()
            found = flat(
                torch.autograd.grad(plain_loss(double, alone(exact)), list(double.parameters()))
            )
            facts.append(
                checked(
                    f"{PLAIN}, {order}: in float64 the gradient",
                    closeness([found], [exactly]),
                    1e-6,
                )
            )
        return facts

    return Part(
        f"loss and gradient of a {count}-way 1-shot {protonet_step.QUERIES}-query task, Conv4 of 64 channels, 28x28 pixels",
        ways, check, partial(error_of, reference=exactly), verdicts,
        (OURS, OURS + BF16, *(f"{CONVOLUTIONS}, {order}{kind}" for order in rivals.ORDERS for kind in ("", BF16))),
    )  # fmt: skip


def verdicts(us: Mapping[str, float]) -> list[Row]:
    """Return the convolutions' share of each of our times, in the order of weights that is quicker."""
    found = []
    for way, kind in (
        (OURS, ""),
        (STEP, ""),
        *((OURS + kind, kind) for kind in (TF32, BF16, GRAPH, BF16 + GRAPH)),
    ):
        times = [
            us[name] for order in rivals.ORDERS if (name := f"{CONVOLUTIONS}, {order}{kind}") in us
        ]
        if way in us and times:
            found.append(
                verdict(
                    "the convolutions' share of the time",
                    way,
                    min(times) / us[way],
                    SHARE,
                    least=True,
                )
            )
    return found
