"""A second-order MAML step of Conv4 on 16 tasks: metazoo, higher, and torch.func in a loop over tasks and under vmap."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import metazoo
from metazoo.algorithms.maml import MAML
from metazoo.backbones.conv4 import Conv4
from metazoo.datasets.glyphs import Glyphs
from metazoo.tasks.episode import Episode

from . import rivals
from .kernels.measure import Way
from .suite import OURS, Options, Result, Unavailable, closeness, in_float64, quickest

WAYS, META_BATCH = 5, 16
INNER_LR = torch.tensor(0.4).item()  # the rate as metazoo holds it, for the comparison in float64
HIGHER, LOOP, VMAP = "higher", "torch.func, a task at a time", "torch.func, vmap over tasks"
Loss = Callable[[nn.Module, Episode], Tensor]


class Norm(nn.Module):
    """BatchNorm by the batch's statistics, written out: under vmap the second derivatives of F.batch_norm are wrong."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight.view(1, -1, 1, 1) * (variance + self.eps).rsqrt()
        return (x - mean) * scale + self.bias.view(1, -1, 1, 1)


def plain_network(model: MAML, *, written_out: bool = False) -> nn.Module:
    """Return the ordinary network with the weights of ours."""
    body = rivals.plain_conv4(model.backbone, running=False)
    if written_out:
        body = nn.Sequential(
            *(Norm(layer) if isinstance(layer, nn.BatchNorm2d) else layer for layer in body)
        )
    head = nn.Linear(rivals.WIDTH, WAYS)
    head.load_state_dict(model.head.state_dict())
    return nn.Sequential(body, head)


def inner_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the loss of the inner steps: summed over ways, as in the authors' code."""
    return F.cross_entropy(logits, y) * WAYS


def higher_loss(library: Any, steps: int) -> Loss:
    """Return the loss of a meta-batch as higher's examples compute it."""

    def loss(network: nn.Module, tasks: Episode) -> Tensor:
        optimizer = torch.optim.SGD(network.parameters(), lr=INNER_LR)
        losses = []
        for sx, sy, qx, qy in zip(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y):
            with library.innerloop_ctx(
                network, optimizer, copy_initial_weights=False, track_higher_grads=True
            ) as (
                fast,
                inner,
            ):
                for _ in range(steps):
                    inner.step(inner_loss(fast(sx), sy))
                losses.append(F.cross_entropy(fast(qx), qy))
        return torch.stack(losses).mean()

    return loss


def functional_loss(steps: int, vectorised: bool) -> Loss:
    """Return the loss of a meta-batch as torch.func's own tutorial computes it."""

    def loss(network: nn.Module, tasks: Episode) -> Tensor:
        start = dict(network.named_parameters())

        def adapted(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
            fast = start
            for _ in range(steps):
                slopes = grad(lambda p: inner_loss(functional_call(network, p, (sx,)), sy))(fast)
                fast = {name: fast[name] - INNER_LR * slopes[name] for name in fast}
            return F.cross_entropy(functional_call(network, fast, (qx,)), qy)

        data = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        if vectorised:
            return vmap(adapted)(*data).mean()
        return torch.stack([adapted(*task) for task in zip(*data)]).mean()

    return loss


def stepping(network: nn.Module, loss: Callable[[], Tensor]) -> Way:
    """Return the gradient of a meta-batch: what a step takes but for the optimizer, the same for all."""

    def step() -> Tensor:
        network.zero_grad()
        loss().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    return step


def exactly(network: nn.Module, loss: Loss, tasks: Episode) -> Tensor:
    """Return the gradient in float64: in float32 a maximum that rounding turns moves it by 0.2 %."""
    return stepping(
        double := copy.deepcopy(network).double(), lambda: loss(double, in_float64(tasks))
    )()


def run(options: Options) -> Result:
    count = options.pick(META_BATCH, 2)
    result = Result(
        f"the second-order gradient of MAML with Conv4, {count} tasks of 5 ways, 1 shot and 1 query a class as in the paper",
        "ms",
    )
    tasks = Glyphs(Glyphs.Config(alphabets=6)).tasks("train", WAYS, 1, 1, 0).draw(0, count)
    for steps in (1, 5):
        part = f"{steps} inner step{'s' * (steps > 1)}"
        torch.manual_seed(0)
        model = MAML(
            Conv4((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), WAYS), MAML.Config(inner_steps=steps)
        ).train()
        own = stepping(model, lambda model=model: model.loss(tasks))
        expected = exactly(model, lambda model, tasks: model.loss(tasks), tasks)
        losses = {
            LOOP: (functional_loss(steps, False), False),
            VMAP: (functional_loss(steps, True), True),
        }
        try:
            losses[HIGHER] = higher_loss(rivals.higher(), steps), False
        except Unavailable as error:
            result.leave_out(HIGHER, error)
        ways, settings = {OURS: own}, {OURS: "the default"}
        for name, (loss, written_out) in losses.items():
            network = plain_network(model, written_out=written_out)
            ordered = {order: rivals.ordered(network, order) for order in rivals.ORDERS}
            steppers = {
                order: stepping(n, lambda n=n, loss=loss: loss(n, tasks))
                for order, n in ordered.items()
            }
            order, ways[name] = quickest(steppers)
            settings[name] = f"{order} (the quicker)" + ", BatchNorm written out" * written_out
            error = closeness([exactly(ordered[order], loss, tasks)], [expected])
            result.checked(
                f"{name}, {part}: in float64 the gradient, to a millionth of its largest value",
                error < 1e-6,
            )
        result.race(part, ways, options, per=1e3, settings=settings)
        result.aim(1.15, HIGHER, LOOP, VMAP, part=part)
    return result
