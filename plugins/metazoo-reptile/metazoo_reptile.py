"""Reptile: Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms"
(arXiv:1803.02999)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

import metazoo
from metazoo import Affects, Range

BETA2 = 0.999
EPSILON = 1e-8


class Reptile(metazoo.Algorithm):
    """Moves an initialisation towards the weights that ordinary training on each task gives.

    Inner steps use minibatches of a task's support set and, in training, of its queries too: the
    paper's "training shots" are `train_shots` + `train_queries`. An inner step is SGD, or Adam
    without a first moment. The second moment starts anew in each task; the authors' code keeps it
    throughout training.

    The outer step theta <- theta + epsilon * mean(phi - theta) is plain SGD with learning rate
    epsilon on `loss`, whose gradient is theta - mean(phi). The recipe's `sgd` with `lr` 1.0 and a
    `linear` schedule are therefore the paper's. Other optimizers work as well; `nesterov` moves ten
    times as far in the long run, so divide `lr` by ten.

    In inner steps BatchNorm uses the statistics of the minibatch. Queries are normalised by running
    statistics, which the inner steps have updated (inductive), or with `transduction` by those of
    all queries of the task, as in the better of the paper's two results. The head has the ways of a
    training task. Tasks with fewer ways use its first outputs; tasks with more raise OptionError.
    """

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        inner_lr: Annotated[float, "inner learning rate", Range(0)] = 1e-3
        inner_steps: Annotated[
            int, "inner steps in training", Range(1, 10_000), Affects.TRAINING
        ] = 5
        eval_inner_steps: Annotated[int, "inner steps at evaluation", Range(0, 10_000)] = 50
        inner_batch: Annotated[int, "examples in an inner minibatch", Range(1, 100_000)] = 10
        inner_optimizer: Annotated[
            Literal["adam", "sgd"], "inner optimizer; adam has beta1 = 0"
        ] = "adam"
        transduction: Annotated[
            bool, "normalise queries by the statistics of all queries of the task"
        ] = False

    config: Config
    recipe = {
        "train_shots": 5,
        "train_queries": 5,
        "meta_batch": 5,
        "optimizer": "sgd",
        "lr": 1.0,
        "schedule": "linear",
    }
    supports_regression = True
    equal_shots = True
    inductive_options = {"transduction": False}

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
        """The backbone and the head, which inner steps change."""
        return nn.Sequential(self.backbone, self.head)

    @property
    def transductive(self) -> bool:
        return self.config.transduction and any(True for _ in self.network.buffers())

    @property
    def depends_on_order(self) -> Collection[Literal["support", "classes"]]:
        return ("support",)  # inner minibatches are drawn from it by position

    def loss(self, task: metazoo.Episode) -> Tensor:
        """Return half the squared distance |theta - phi|^2, averaged over the tasks.

        Its gradient is theta - mean(phi). Its value says how far inner training moves, not how well
        the model performs; validation does.
        """
        x = torch.cat([task.support_x, task.query_x], 1)
        y = torch.cat([task.support_y, task.query_y], 1)
        # All tasks update the running statistics, as in ordinary training.
        buffers = dict(self.network.named_buffers())
        distance = torch.zeros((), device=x.device)
        for i in range(len(task)):
            phi = self._adapt(x[i], y[i], self.config.inner_steps, buffers)
            for name, theta in self.network.named_parameters():
                distance = distance + (theta - phi[name]).square().sum() / 2
        return distance / len(task)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        steps = self.config.inner_steps if self.training else self.config.eval_inner_steps
        predictions = []
        for x, y, queries in zip(support_x, support_y, query_x):
            buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
            phi = self._adapt(x, y, steps, buffers)
            outputs = self._count_outputs(y)
            predictions.append(
                self._predict(phi, buffers, queries, outputs, self.config.transduction)
            )
        return torch.stack(predictions)

    def _adapt(
        self, x: Tensor, y: Tensor, steps: int, buffers: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return phi, the parameters after inner steps on examples x (N, *) and labels y (N,).

        Updates the running statistics in `buffers`.
        """
        outputs = self._count_outputs(y)
        phi = {name: p.detach() for name, p in self.network.named_parameters()}
        second_moment = {name: torch.zeros_like(p) for name, p in phi.items()}
        batches = self._minibatches(len(x))
        for step in range(1, steps + 1):
            rows = next(batches).to(x.device)
            with torch.enable_grad():
                phi = {name: p.requires_grad_() for name, p in phi.items()}
                prediction = self._predict(phi, buffers, x[rows], outputs, batch_statistics=True)
                loss = metazoo.task_loss(prediction, y[rows])
                gradients = torch.autograd.grad(loss, list(phi.values()))
            with torch.no_grad():
                for (name, p), g in zip(phi.items(), gradients):
                    if self.config.inner_optimizer == "adam":
                        v = BETA2 * second_moment[name] + (1 - BETA2) * g.square()
                        second_moment[name] = v
                        g = g / ((v / (1 - BETA2**step)).sqrt() + EPSILON)
                    phi[name] = p.detach() - self.config.inner_lr * g
        return phi

    def _minibatches(self, examples: int) -> Iterator[Tensor]:
        """Yield rows of minibatches without end, every example once per epoch.

        The order is random in training and fixed in eval mode.
        """
        generator = None if self.training else torch.Generator().manual_seed(0)
        size = min(self.config.inner_batch, examples)
        rows = torch.empty(0, dtype=torch.int64)
        while True:
            while len(rows) < size:
                rows = torch.cat([rows, torch.randperm(examples, generator=generator)])
            yield rows[:size]
            rows = rows[size:]

    def _predict(
        self,
        phi: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        outputs: int,
        batch_statistics: bool,
    ) -> Tensor:
        network = self.network.train(batch_statistics)
        try:
            return functional_call(network, (phi, buffers), (x,))[:, :outputs]
        finally:
            network.train(self.training)

    def _count_outputs(self, y: Tensor) -> int:
        outputs = self.spec.outputs if self.spec.regression else metazoo.ways_of(y)
        if outputs > self.spec.outputs:
            raise metazoo.OptionError(
                f"this model's head has {self.spec.outputs} outputs, "
                f"but the task has {outputs} classes",
                f"train a model with --ways {outputs} or more",
            )
        return outputs


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"reptile": Reptile}
