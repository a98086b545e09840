"""Reptile: Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms" (arXiv:1803.02999)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

import metazoo
from metazoo import Range

BETA2 = 0.999
EPSILON = 1e-8


class Reptile(metazoo.Algorithm):
    """Learns an initialisation by moving it towards what ordinary training on each task makes of it.

    Inner steps are SGD, or Adam without its first moment and with a fresh second one for every task (the authors' code
    keeps one through all of training), on minibatches of a task's support and, in training, also its queries: the paper's
    "training shots" are `train_shots` + `train_queries`.

    The outer step theta <- theta + epsilon * mean(phi - theta) is a step of plain SGD with rate epsilon on `loss`, whose
    gradient is theta - mean(phi); hence the recipe's `sgd` with `lr` 1.0 and a `linear` schedule, which are the paper's.
    The other optimizers take that gradient, too: `nesterov` goes ten times as far in the long run, so divide `lr` by ten.

    BatchNorm sees each minibatch's own statistics in inner steps. A query is then normalised by running statistics that
    the task's inner steps have moved (inductive) or, with `transduction`, by those of all queries, as in the paper's
    better row. The head has the ways of training: a task with fewer uses its first outputs, one with more raises OptionError.
    """

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        inner_lr: Annotated[float, "inner step size", Range(0)] = 1e-3
        inner_steps: Annotated[int, "inner steps in training", Range(1)] = 5
        eval_inner_steps: Annotated[int, "inner steps at evaluation", Range(0)] = 50
        inner_batch: Annotated[int, "examples in an inner minibatch", Range(1)] = 10
        inner_optimizer: Annotated[Literal["adam", "sgd"], "adam: with beta1 = 0"] = "adam"
        transduction: Annotated[
            bool, "normalise queries by the statistics of all queries of the task"
        ] = False

    recipe = {
        "train_shots": 5,
        "train_queries": 5,
        "meta_batch": 5,
        "optimizer": "sgd",
        "lr": 1.0,
        "schedule": "linear",
    }

    regresses = True

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        self.head = nn.Linear(backbone.out_features, spec.outputs)

    @property
    def network(self) -> nn.Sequential:
        """The backbone and the head, which inner steps change together."""
        return nn.Sequential(self.backbone, self.head)

    @property
    def transductive(self) -> bool:
        return self.config.transduction and any(True for _ in self.network.buffers())

    def loss(self, task: metazoo.Episode | metazoo.Batch) -> Tensor:
        """Return half the squared distance from the initialisation to what tasks make of it, a mean over the tasks.

        Its gradient is the initialisation less the mean of the adapted parameters. It measures how far inner training moves,
        not how well: validation says that.
        """
        assert isinstance(task, metazoo.Episode)
        x, y = (
            torch.cat([task.support_x, task.query_x], 1),
            torch.cat([task.support_y, task.query_y], 1),
        )
        # The running statistics follow all tasks, as in ordinary training.
        buffers = dict(self.network.named_buffers())
        adapted = [
            self._adapt(x[i], y[i], self.config.inner_steps, buffers) for i in range(len(task))
        ]
        distance = torch.zeros((), device=x.device)
        for phi in adapted:
            for name, theta in self.network.named_parameters():
                distance = distance + (theta - phi[name]).square().sum() / 2
        return distance / len(adapted)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        steps = self.config.inner_steps if self.training else self.config.eval_inner_steps
        answers = []
        for x, y, queries in zip(support_x, support_y, query_x):
            buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
            phi = self._adapt(x, y, steps, buffers)
            answers.append(
                self._predict(
                    phi,
                    buffers,
                    queries,
                    self._outputs(y),
                    batch_statistics=self.config.transduction,
                )
            )
        return torch.stack(answers)

    def _adapt(
        self, x: Tensor, y: Tensor, steps: int, buffers: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the parameters after inner steps on one task's examples (N, *) and labels (N,); changes the buffers."""
        outputs = self._outputs(y)
        phi = {name: p.detach() for name, p in self.network.named_parameters()}
        second = {name: torch.zeros_like(p) for name, p in phi.items()}
        batches = self._batches(len(x))
        for step in range(1, steps + 1):
            rows = next(batches).to(x.device)
            with torch.enable_grad():
                phi = {name: p.requires_grad_() for name, p in phi.items()}
                loss = metazoo.task_loss(
                    self._predict(phi, buffers, x[rows], outputs, batch_statistics=True), y[rows]
                )
                gradients = torch.autograd.grad(loss, list(phi.values()))
            with torch.no_grad():
                for (name, p), g in zip(phi.items(), gradients):
                    if self.config.inner_optimizer == "adam":
                        second[name] = BETA2 * second[name] + (1 - BETA2) * g.square()
                        g = g / ((second[name] / (1 - BETA2**step)).sqrt() + EPSILON)
                    phi[name] = p.detach() - self.config.inner_lr * g
        return phi

    def _batches(self, examples: int) -> Iterator[Tensor]:
        """Yield the rows of minibatches, without end: all examples in some order, then in another; in eval mode the same."""
        generator = None if self.training else torch.Generator().manual_seed(0)
        size = min(self.config.inner_batch, examples)
        left = torch.empty(0, dtype=torch.int64)
        while True:
            while len(left) < size:
                left = torch.cat([left, torch.randperm(examples, generator=generator)])
            yield left[:size]
            left = left[size:]

    def _predict(
        self,
        phi: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        outputs: int,
        *,
        batch_statistics: bool,
    ) -> Tensor:
        network = self.network.train(batch_statistics)
        try:
            return functional_call(network, (phi, buffers), (x,))[:, :outputs]
        finally:
            network.train(self.training)

    def _outputs(self, y: Tensor) -> int:
        if self.spec.regression:
            return self.spec.outputs
        ways = metazoo.ways_of(y)
        if ways > self.spec.outputs:
            raise metazoo.OptionError(
                f"this model's head has {self.spec.outputs} outputs, but the task has {ways} classes",
                f"train one with --ways {ways} or more",
            )
        return ways


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"reptile": Reptile}
