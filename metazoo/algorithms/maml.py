"""MAML: Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks" (arXiv:1703.03400).

With its descendants' options: learned rates per parameter (Meta-SGD: Li et al. 2017, arXiv:1707.09835), adaptation of the
head alone (ANIL: Raghu et al. 2020, arXiv:1909.09157), and learned rates per tensor and step, the multi-step loss, BatchNorm
weights per step and a first-order beginning (MAML++: Antoniou et al. 2019, arXiv:1810.09502; its cosine schedule is
metazoo's default).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

import metazoo
from metazoo import Range, ops


class MAML(metazoo.Algorithm):
    """Learns an initialisation from which a few gradient steps on the support set solve the task.

    The inner loss is the cross-entropy summed over ways and averaged over shots, as in the authors' code, so that the
    paper's rates (0.4 for 5 ways, 0.1 for 20) mean the same here; of a mean over all examples they would be `ways` times as
    large. In regression it is the mean squared error. The head has the ways of training; tasks with fewer use its first
    outputs, and tasks with more raise OptionError.
    """

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        inner_lr: Annotated[
            float | None, "inner step size  [default: 0.4, in regression 0.01]", Range(0)
        ] = None
        head_lr: Annotated[
            float | None, "inner step size of the head  [default: inner_lr]", Range(0)
        ] = None
        inner_steps: Annotated[int, "inner steps in training", Range(1)] = 1
        eval_inner_steps: Annotated[
            int | None, "inner steps at evaluation  [default: as in training]", Range(0)
        ] = None
        first_order: Annotated[bool, "leave out second derivatives"] = False
        first_order_steps: Annotated[
            int,
            "outer steps at the beginning that leave them out, as in MAML++ (derivative-order annealing)",
            Range(0),
        ] = 0
        adapt: Annotated[Literal["all", "head"], "what inner steps change; head is ANIL"] = "all"
        learned_rates: Annotated[
            Literal["none", "per-parameter", "per-step"],
            "learn inner rates: per-parameter is Meta-SGD, per-step MAML++",
        ] = "none"
        multi_step_loss: Annotated[
            int,
            "outer steps over which the loss moves from all inner steps to the last, as in MAML++; 0: last alone",
            Range(0),
        ] = 0
        batch_norm: Annotated[
            Literal["batch", "support"],
            "statistics for queries: their own (the paper's, transductive) or the support's",
        ] = "batch"
        zero_head: Annotated[bool, "start the head at zero, which favours no output"] = False
        center: Annotated[
            bool,
            "subtract from features the mean over their batch: a new linear head then starts far better",
        ] = False
        per_step_norm: Annotated[
            bool,
            "BatchNorm weights and biases for every inner step, learned outside and not adapted, as in MAML++",
        ] = False
        tasks: Annotated[
            Literal["auto", "loop", "vmap"],
            "run tasks one by one (on a CPU in threads), or all together",
        ] = "auto"
        checkpoint_inner: Annotated[
            bool, "compute inner steps again instead of keeping them: less memory, more time"
        ] = False
        views: Annotated[
            Literal["one", "shifted"],
            "embed a query image as it is, or, but in training steps, as the mean of it and itself moved by a pixel each way",
        ] = "one"

    regresses = True
    recipe = {"meta_batch": 8, "train_queries": 5, "clip_grad": 10.0}

    def __init__(
        self,
        backbone: metazoo.Backbone,
        spec: metazoo.TaskSpec,
        config: metazoo.Config | None = None,
    ):
        super().__init__(backbone, spec, config)
        if self.config.per_step_norm and self.config.adapt == "head":
            raise metazoo.OptionError(
                "per_step_norm gives the backbone something to change in every inner step, but adapt=head never runs it again",
                "leave out one of them",
            )
        self.views = metazoo.Views(self.config.views, spec.input_shape)
        self.norms = metazoo.use_batch_statistics(backbone)
        steps = self.config.inner_steps if self.config.per_step_norm else 0
        # What each step adds to the weight and the bias of each norm, so that they start from those of the backbone.
        self.norm_offsets = nn.ParameterList(
            nn.Parameter(torch.zeros(steps, 2, n.features)) for n in self.norms if steps
        )
        self.head = nn.Linear(backbone.out_features, spec.outputs)
        if self.config.zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        lr = self.config.inner_lr
        if lr is None:
            lr = 0.01 if spec.regression else 0.4
        head_lr = lr if self.config.head_lr is None else self.config.head_lr
        self.sizes: Tensor
        self.register_buffer(
            "sizes", torch.tensor([p.numel() for p in self._start().values()]), persistent=False
        )
        each = [
            head_lr if name.startswith("head.") else lr for name in self._start()
        ]  # tensor's rate
        rates = {
            "none": torch.tensor(lr) if head_lr == lr else torch.tensor([each]),
            "per-parameter": torch.cat(
                [torch.full((p.numel(),), r) for p, r in zip(self._start().values(), each)]
            ),
            "per-step": torch.tensor([each] * self.config.inner_steps),
        }[self.config.learned_rates]
        self.rates: Tensor
        if self.config.learned_rates == "none":
            self.register_buffer("rates", rates)
        else:
            self.rates = nn.Parameter(rates)
        self.outer_steps: Tensor
        self.register_buffer("outer_steps", torch.tensor(0))

    @property
    def transductive(self) -> bool:
        return self.config.batch_norm == "batch" and (len(self.norms) > 0 or self.config.center)

    @property
    def needs_float32(self) -> bool:
        return self.config.adapt == "all" and not self.config.first_order

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        evaluated = None if self.training else self.config.eval_inner_steps
        steps = self.config.inner_steps if evaluated is None else evaluated

        def solve(own: MAML, tasks: slice) -> Tensor:
            return own._solve(support_x[tasks], support_y[tasks], query_x[tasks], steps, [steps])[
                :, -1
            ]

        if self._together(support_x):
            return solve(self, slice(None))
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # an inner step differentiates
                return self(support_x.clone(), support_y.clone(), query_x.clone())
        if torch.is_grad_enabled():
            return torch.cat([solve(self, slice(i, i + 1)) for i in range(len(support_x))])
        return metazoo.for_each_task(
            self, lambda own, i: solve(own, slice(i, i + 1))[0], len(support_x)
        )

    def loss(self, task: metazoo.Episode | metazoo.Batch) -> Tensor:
        assert isinstance(task, metazoo.Episode)
        if self._together(task.support_x):
            loss = self._loss(task)
        elif (
            task.support_x.requires_grad or task.query_x.requires_grad
        ):  # derivatives by more than the weights are wanted
            loss = torch.stack([self._loss(task[i : i + 1]) for i in range(len(task))]).mean()
        else:
            loss = metazoo.mean_over_tasks(
                self, lambda own, i: own._loss(task[i : i + 1]), len(task)
            )
        if self.training:
            self.outer_steps += 1
        return loss

    def _loss(self, task: metazoo.Episode) -> Tensor:
        weights = self._step_weights(self.config.inner_steps)
        judged = [step for step, weight in enumerate(weights, 1) if weight > 0]
        predictions = self._solve(
            task.support_x, task.support_y, task.query_x, len(weights), judged
        )  # (B, judged, Q, out)
        losses = [metazoo.task_loss(predictions[:, i], task.query_y) for i in range(len(judged))]
        return torch.stack([weights[step - 1] * loss for step, loss in zip(judged, losses)]).sum()

    def _together(self, support_x: Tensor) -> bool:
        """Return whether tasks run under vmap."""
        if self.config.tasks == "auto":
            # Under vmap per-task weights become grouped convolutions: slow on a CPU, and on a GPU slower than a single task's
            # plain ones (docs/performance.md).
            if support_x.device.type == "cpu":
                return not any(isinstance(m, nn.Conv2d) for m in self.backbone.modules())
            return len(support_x) > 1
        return self.config.tasks == "vmap"

    def _step_weights(self, steps: int) -> list[float]:
        """Return the weight of the query loss after each inner step (MAML++, section 4, "Multi-Step Loss Optimization")."""
        progress = (
            int(self.outer_steps) / self.config.multi_step_loss
            if self.config.multi_step_loss
            else 1.0
        )
        early = (1 - progress) / steps if progress < 1 else 0.0
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def _solve(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, steps: int, judged: list[int]
    ) -> Tensor:
        """Return predictions (B, len(judged), Q, out) for the queries after each of the judged inner steps of every task."""
        outputs = self.spec.outputs if self.spec.regression else metazoo.ways_of(support_y)
        if outputs > self.spec.outputs:
            raise metazoo.OptionError(
                f"this model's head has {self.spec.outputs} outputs, but the task has {outputs} classes",
                f"train one with --ways {outputs} or more, or use protonet, which takes any number of classes",
            )
        together = self._together(support_x)
        for norm in self.norms:
            norm.fused = not together
        each = metazoo.all_at_once if together else metazoo.alone
        if self.config.adapt == "head":
            support_x, query_x = each(
                lambda fast, sx, qx: self._embed(sx, qx), (), support_x, query_x
            )

        def inner_loss(fast: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            own, head = self._parts(fast)
            z = self._features(own, x, None) if self.config.adapt == "all" else x
            loss = metazoo.task_loss(F.linear(z, *head)[:, :outputs], y)
            return loss if self.spec.regression else loss * outputs

        def answer(fast: tuple[Tensor, ...], sx: Tensor, qx: Tensor) -> tuple[Tensor, ...]:
            own, head = self._parts(fast)
            z = self._query_features(own, sx, qx) if self.config.adapt == "all" else qx
            return (F.linear(z, *head)[:, :outputs],)

        flat = _flat(self._start().values()).unsqueeze(
            0
        )  # (1, P): a row that all tasks start from, then one for each
        first_order = self.config.first_order or (
            self.training and 0 < self.config.first_order_steps > int(self.outer_steps)
        )
        slope = (
            grad(inner_loss)
            if together
            else metazoo.gradient_of(inner_loss, create_graph=not first_order)
        )
        in_place = not torch.is_grad_enabled()
        again = (
            self.config.checkpoint_inner
            and self.config.adapt == "all"
            and not (first_order or in_place)
        )

        def advance(flat: Tensor, step: int) -> Tensor:
            with self._norms_of(step):
                if first_order:
                    fast, x = self._pieces(flat.detach()), support_x.detach()
                    gradient = tuple(g.detach() for g in each(slope, fast, x, support_y))
                else:
                    gradient = each(slope, self._pieces(flat), support_x, support_y)
                take = ops.sgd_update_ if in_place and step > 0 else ops.sgd_update
                return take(
                    flat.expand(len(support_x), -1), gradient, self._rate(step, flat.shape[1])
                )  # (B, P)

        predictions = []
        for step in range(steps + 1):
            if step in judged:
                with self._norms_of(step - 1):
                    predictions.append(each(answer, self._pieces(flat), support_x, query_x)[0])
            # Not the last step: what it keeps would be the first to be computed again.
            if again and step < steps - 1:
                flat = metazoo.recomputed(self, partial(advance, step=step), flat)
            elif step < steps:
                flat = advance(flat, step)
        return torch.stack(predictions, 1)

    def _rate(self, step: int, size: int) -> Tensor:
        """Return the rates of an inner step: one for all, or one for each of `size` parameters."""
        if self.rates.dim() == 1:
            start = self._start().values()
            return _flat(
                r.view_as(p) for r, p in zip(self.rates.split([p.numel() for p in start]), start)
            )
        if self.rates.dim() == 0:
            return self.rates
        # Steps beyond those of training go on with the last step's rates.
        return self.rates[min(step, len(self.rates) - 1)].repeat_interleave(
            self.sizes, output_size=size
        )

    @contextmanager
    def _norms_of(self, step: int) -> Iterator[None]:
        """While it lasts, every norm has its offsets of an inner step; steps beyond those of training have the last one's."""
        for norm, offsets in zip(self.norms, self.norm_offsets):
            norm.offset = offsets[min(max(step, 0), len(offsets) - 1)]
        try:
            yield
        finally:
            for norm in self.norms:
                norm.offset = (
                    None  # it is part of a graph, which a copy of the model must not carry along
                )

    def _start(self) -> dict[str, Tensor]:
        """Return the parameters that inner steps change, as they are before the first."""
        modules = (
            {"head": self.head}
            if self.config.adapt == "head"
            else {"backbone": self.backbone, "head": self.head}
        )
        fixed = (
            {id(p) for norm in self.norms for p in norm.parameters()}
            if self.config.per_step_norm
            else set()
        )
        named = {
            f"{key}.{name}": p
            for key, module in modules.items()
            for name, p in module.named_parameters()
        }
        return {name: p for name, p in named.items() if id(p) not in fixed}

    def _pieces(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return parameters (B, P), each (B, *), with a convolution's weights as they lie."""
        shapes = [_channels_last(p).shape for p in self._start().values()]
        pieces = flat.split([shape.numel() for shape in shapes], 1)
        return tuple(piece.reshape(len(flat), *shape) for piece, shape in zip(pieces, shapes))

    def _parts(self, fast: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return a task's parameters: the backbone's by name, and the weight and bias of the head."""
        named = dict(
            zip(self._start(), (p.permute(0, 3, 1, 2) if p.dim() == 4 else p for p in fast))
        )
        head = named.pop("head.weight"), named.pop("head.bias")
        return {name.removeprefix("backbone."): p for name, p in named.items()}, head

    def _features(self, own: dict[str, Tensor], x: Tensor, support: int | None) -> Tensor:
        """Return the features (N, D) of examples, by the statistics of all or of the first `support` of them."""
        for norm in self.norms:
            norm.support = support
        z = functional_call(self.backbone, own, x)
        return z - z[:support].mean(0) if self.config.center else z

    def _query_features(self, own: dict[str, Tensor], support_x: Tensor, query_x: Tensor) -> Tensor:
        """Return the features (Q, D) of a task's queries, by their own statistics or the support's."""
        if self.config.batch_norm == "support":
            return self._both_features(own, support_x, query_x)[len(support_x) :]
        return self.views.mean(lambda x: self._features(own, x, None), query_x)

    def _both_features(self, own: dict[str, Tensor], support_x: Tensor, query_x: Tensor) -> Tensor:
        """Return the features (S + Q, D) of a task's support and queries, by the support's statistics."""
        return self.views.mean(
            lambda x: self._features(own, torch.cat([support_x, x]), len(support_x)), query_x
        )

    def _embed(self, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of a task's support and queries, which ANIL's inner steps do not change."""
        if self.config.batch_norm == "support":
            z = self._both_features({}, support_x, query_x)
            return z[: len(support_x)], z[len(support_x) :]
        return self._features({}, support_x, None), self._query_features({}, support_x, query_x)


def _channels_last(p: Tensor) -> Tensor:
    """Return a convolution's weights with their channels last: so they lie among the flat parameters, as a CPU likes them."""
    return p.permute(0, 2, 3, 1) if p.dim() == 4 else p


def _flat(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([_channels_last(p).flatten() for p in parameters])


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"maml": MAML}
