"""MAML: Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks" (arXiv:1703.03400).

Its options include

- Meta-SGD, a learned rate for each parameter: Li et al. 2017 (arXiv:1707.09835);
- ANIL, adaptation of the head only: Raghu et al. 2020 (arXiv:1909.09157);
- MAML++, learned rates per tensor and step, the multi-step loss, BatchNorm weights per step and
  first-order steps at the start: Antoniou et al. 2019 (arXiv:1810.09502). Its cosine schedule is
  metazoo's default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import metazoo
from metazoo import Affects, Range, ops

Parameters = tuple[Tensor, ...]


class MAML(metazoo.Algorithm):
    """Learns an initialisation from which a few gradient steps on the support set solve a task.

    The inner loss is the cross-entropy summed over ways and averaged over shots, as in the authors'
    code, so the paper's inner rates apply (0.4 for 5 ways, 0.1 for 20). In regression it is the
    mean squared error. The head has one output for each way of a training task. Tasks with fewer
    ways use its first outputs; tasks with more raise OptionError.
    """

    @dataclass(frozen=True)
    class Config(metazoo.Config):
        inner_lr: Annotated[
            float | None,
            "inner learning rate  [default: 0.4, in regression 0.01]",
            Range(0),
            Affects.TRAINING,  # the weights hold the rates
        ] = None
        head_lr: Annotated[
            float | None,
            "inner learning rate of the head  [default: inner_lr]",
            Range(0),
            Affects.TRAINING,
        ] = None
        inner_steps: Annotated[
            int, "inner steps in training", Range(1, 10_000), Affects.TRAINING
        ] = 1
        eval_inner_steps: Annotated[
            int | None, "inner steps at evaluation  [default: inner_steps]", Range(0, 10_000)
        ] = None
        first_order: Annotated[bool, "ignore second derivatives", Affects.TRAINING] = False
        first_order_steps: Annotated[
            int,
            "outer steps at the start that ignore second derivatives (MAML++)",
            Range(0),
            Affects.TRAINING,
        ] = 0
        adapt: Annotated[
            Literal["all", "head"], "parameters that inner steps change; head is ANIL"
        ] = "all"
        learned_rates: Annotated[
            Literal["none", "per-parameter", "per-step"],
            "learn the inner rates: per-parameter (Meta-SGD), or per tensor and step (MAML++)",
            Affects.TRAINING,
        ] = "none"
        multi_step_loss: Annotated[
            int,
            "outer steps in which the loss moves from all inner steps to the last (MAML++)",
            Range(0),
            Affects.TRAINING,
        ] = 0
        batch_norm: Annotated[
            Literal["batch", "support"],
            "statistics for queries: their own (as in the paper, transductive) or the support set's",
        ] = "batch"
        zero_head: Annotated[bool, "initialise the head to zero", Affects.TRAINING] = False
        center: Annotated[bool, "subtract the batch mean from the features"] = False
        per_step_norm: Annotated[
            bool,
            "learn BatchNorm weights and biases for each inner step (MAML++)",
            Affects.TRAINING,
        ] = False
        tasks: Annotated[
            Literal["auto", "loop", "vmap"],
            "run tasks one by one (on a CPU in threads), or all at once with vmap",
            Affects.SPEED,
        ] = "auto"
        checkpoint_inner: Annotated[
            bool,
            "recompute inner steps in the backward pass: less memory, more time",
            Affects.TRAINING,
        ] = False
        tta: Annotated[
            Literal["none", "shifted"],
            "test-time augmentation; shifted averages the embeddings of a query image and of four "
            "one-pixel shifts",
        ] = "none"

    config: Config
    supports_regression = True
    equal_shots = True
    inductive_options = {"batch_norm": "support"}
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
                "per_step_norm has no effect with adapt=head: its inner steps do not run the backbone",
                "leave out one of the two options",
            )
        self.tta = metazoo.TestTimeAugmentation(self.config.tta, spec.input_shape)
        self.norms = metazoo.use_batch_statistics(backbone)
        steps = self.config.inner_steps if self.config.per_step_norm else 0
        # Added to weight and bias, so that every step starts from the BatchNorm of the backbone.
        self.norm_offsets = nn.ParameterList(
            nn.Parameter(torch.zeros(steps, 2, norm.features)) for norm in self.norms if steps
        )
        self.head = nn.Linear(backbone.out_features, spec.outputs)
        if self.config.zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.adapted_names = self._adapted_names()
        sizes = torch.tensor([p.numel() for p in self._initial_parameters()])
        self.sizes: Tensor
        self.register_buffer("sizes", sizes, persistent=False)
        self.rates: Tensor
        if self.config.learned_rates == "none":
            self.register_buffer("rates", self._initial_rates())
        else:
            self.rates = nn.Parameter(self._initial_rates())
        self.outer_steps: Tensor
        self.register_buffer("outer_steps", torch.tensor(0))

    @property
    def transductive(self) -> bool:
        return self.config.batch_norm == "batch" and (len(self.norms) > 0 or self.config.center)

    @property
    def needs_float32(self) -> bool:
        return self.config.adapt == "all" and not self.config.first_order

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        steps = self.config.inner_steps
        if not self.training and self.config.eval_inner_steps is not None:
            steps = self.config.eval_inner_steps

        def predict(model: MAML, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
            return model._adapt_and_predict(x, y, queries, steps, [steps])[0]

        def predict_one(model: MAML, i: int) -> Tensor:
            task = slice(i, i + 1)
            return predict(model, support_x[task], support_y[task], query_x[task])[0]

        if self._uses_vmap(support_x):
            return predict(self, support_x, support_y, query_x)
        if torch.is_inference_mode_enabled():
            # Inner steps differentiate, which inference mode forbids.
            with torch.inference_mode(False), torch.no_grad():
                return self(support_x.clone(), support_y.clone(), query_x.clone())
        if torch.is_grad_enabled():
            return torch.stack([predict_one(self, i) for i in range(len(support_x))])
        return metazoo.for_each_task(self, predict_one, len(support_x))

    def loss(self, task: metazoo.Episode) -> Tensor:
        """Return the loss of the adapted networks on the queries (equation 1)."""

        def loss_of_one(model: MAML, i: int) -> Tensor:
            return model._outer_loss(task[i : i + 1])

        if self._uses_vmap(task.support_x):
            loss = self._outer_loss(task)
        elif task.support_x.requires_grad or task.query_x.requires_grad:
            # mean_over_tasks gives no gradient of the examples.
            loss = torch.stack([loss_of_one(self, i) for i in range(len(task))]).mean()
        else:
            loss = metazoo.mean_over_tasks(self, loss_of_one, len(task))
        if self.training:
            self.outer_steps += 1
        return loss

    def _uses_vmap(self, support_x: Tensor) -> bool:
        if self.config.tasks != "auto":
            return self.config.tasks == "vmap"
        if any(isinstance(m, nn.Embedding) for m in self.backbone.modules()):
            return False  # a table of embeddings for each task may take gigabytes
        # Under vmap, convolutions with different weights per task become grouped convolutions. They
        # are slow on a CPU, and for a single task on a GPU (docs/performance.md).
        if support_x.device.type == "cpu":
            return not any(isinstance(m, nn.Conv2d) for m in self.backbone.modules())
        return len(support_x) > 1

    def _outer_loss(self, task: metazoo.Episode) -> Tensor:
        weights = {step: w for step, w in enumerate(self._step_weights(), 1) if w > 0}
        predictions = self._adapt_and_predict(
            task.support_x, task.support_y, task.query_x, self.config.inner_steps, weights
        )
        losses = [
            weight * metazoo.task_loss(prediction, task.query_y)
            for weight, prediction in zip(weights.values(), predictions)
        ]
        return torch.stack(losses).sum()

    def _step_weights(self) -> list[float]:
        """Return the weight of the query loss after each inner step (MAML++, section 4)."""
        steps, annealing = self.config.inner_steps, self.config.multi_step_loss
        progress = int(self.outer_steps) / annealing if annealing else 1.0
        early = (1 - progress) / steps if progress < 1 else 0.0
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def _adapt_and_predict(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        steps: int,
        predict_after: Collection[int],
    ) -> list[Tensor]:
        """Take inner steps on every task.

        Returns the predictions (B, Q, outputs) for the queries after each step in `predict_after`.
        """
        outputs = self._count_outputs(support_y)
        use_vmap = self._uses_vmap(support_x)
        per_task = _map_tasks if use_vmap else _apply_to_single_task
        for norm in self.norms:
            norm.fused = not use_vmap
        if self.config.adapt == "head":
            support_x, query_x = per_task(self._embed, (), support_x, query_x)
        inner_loss = partial(self._inner_loss, outputs)
        predict = partial(self._predict, outputs)
        gradient = (
            grad(inner_loss) if use_vmap else metazoo.gradient_of(inner_loss, create_graph=True)
        )
        first_order, differentiable = self._is_first_order(), torch.is_grad_enabled()
        # With adapt=head, inner steps use features that have a graph; checkpoints do not allow it.
        keeps_graph = differentiable and not first_order and self.config.adapt == "all"
        recompute = self.config.checkpoint_inner and keeps_graph

        def inner_step(theta: Tensor, step: int) -> Tensor:
            """Return theta - rate * gradient (section 2.2) of every task, (B, P)."""
            with self._norms_of(step):
                with torch.set_grad_enabled(torch.is_grad_enabled() and not first_order):
                    gradients = per_task(gradient, self._split(theta), support_x, support_y)
                update = ops.sgd_update if differentiable or step == 0 else ops.sgd_update_
                return update(theta.expand(len(support_x), -1), gradients, self._rates_of(step))

        theta = _concatenate(self._initial_parameters()).unsqueeze(0)  # (1, P), shared by all tasks
        predictions: list[Tensor] = []
        for step in range(steps + 1):
            if step in predict_after:
                with self._norms_of(step - 1):
                    predictions += per_task(predict, self._split(theta), support_x, query_x)
            # Not the last step: it would be recomputed at once, and save no memory.
            if recompute and step < steps - 1:
                theta = metazoo.checkpoint_activations(self, partial(inner_step, step=step), theta)
            elif step < steps:
                theta = inner_step(theta, step)
        return predictions

    def _inner_loss(self, outputs: int, parameters: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of one task's support examples, or of their features with adapt=head."""
        backbone, head = self._by_name(parameters)
        z = x if self.config.adapt == "head" else self._features(backbone, x)
        loss = metazoo.task_loss(F.linear(z, *head)[:, :outputs], y)
        return loss if self.spec.regression else loss * outputs

    def _predict(
        self, outputs: int, parameters: Parameters, support_x: Tensor, query_x: Tensor
    ) -> tuple[Tensor]:
        backbone, head = self._by_name(parameters)
        z = query_x
        if self.config.adapt == "all":
            z = self._query_features(backbone, support_x, query_x)
        return (F.linear(z, *head)[:, :outputs],)

    def _embed(self, _: Parameters, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """Return one task's features, which the inner steps of ANIL do not change."""
        if self.config.batch_norm == "support":
            z = self._joint_features({}, support_x, query_x)
            return z[: len(support_x)], z[len(support_x) :]
        return self._features({}, support_x), self._query_features({}, support_x, query_x)

    def _query_features(
        self, backbone: dict[str, Tensor], support_x: Tensor, query_x: Tensor
    ) -> Tensor:
        if self.config.batch_norm == "support":
            return self._joint_features(backbone, support_x, query_x)[len(support_x) :]
        return self.tta.mean(lambda x: self._features(backbone, x), query_x)

    def _joint_features(
        self, backbone: dict[str, Tensor], support_x: Tensor, query_x: Tensor
    ) -> Tensor:
        """Return the features (S + Q, D), normalised by the statistics of the support set."""
        support = len(support_x)
        return self.tta.mean(
            lambda x: self._features(backbone, torch.cat([support_x, x]), support), query_x
        )

    def _features(
        self, backbone: dict[str, Tensor], x: Tensor, support: int | None = None
    ) -> Tensor:
        """Return features (N, D), normalised over the first `support` examples, or over all."""
        for norm in self.norms:
            norm.support = support
        z = functional_call(self.backbone, backbone, x)
        return z - z[:support].mean(0) if self.config.center else z

    def _count_outputs(self, support_y: Tensor) -> int:
        outputs = self.spec.outputs if self.spec.regression else metazoo.ways_of(support_y)
        if outputs > self.spec.outputs:
            raise metazoo.OptionError(
                f"this model's head has {self.spec.outputs} outputs, "
                f"but the task has {outputs} classes",
                f"train a model with --ways {outputs} or more, or use protonet, "
                "which takes any number of classes",
            )
        return outputs

    def _is_first_order(self) -> bool:
        if not self.training or not self.config.first_order_steps:
            return self.config.first_order
        return self.config.first_order or int(self.outer_steps) < self.config.first_order_steps

    @contextmanager
    def _norms_of(self, step: int) -> Iterator[None]:
        """Use the BatchNorm offsets of an inner step; steps beyond training use the last ones."""
        for norm, offsets in zip(self.norms, self.norm_offsets):
            norm.offset = offsets[min(max(step, 0), len(offsets) - 1)]
        try:
            yield
        finally:
            for norm in self.norms:
                norm.offset = None  # has a graph, and tensors with a graph cannot be copied

    def _adapted_names(self) -> list[str]:
        """Return the names of the parameters that inner steps change."""
        prefixes = ("head.",) if self.config.adapt == "head" else ("backbone.", "head.")
        fixed = {id(p) for norm in self.norms for p in norm.parameters()}
        return [
            name
            for name, p in self.named_parameters()
            if name.startswith(prefixes) and not (self.config.per_step_norm and id(p) in fixed)
        ]

    def _initial_parameters(self) -> list[Tensor]:
        parameters = dict(self.named_parameters())
        return [parameters[name] for name in self.adapted_names]

    def _initial_rates(self) -> Tensor:
        """Return one rate for all, or one per parameter (P,), or one per step and tensor."""
        lr = self.config.inner_lr
        if lr is None:
            lr = 0.01 if self.spec.regression else 0.4
        head_lr = lr if self.config.head_lr is None else self.config.head_lr
        rates = torch.tensor([head_lr if n.startswith("head.") else lr for n in self.adapted_names])
        if self.config.learned_rates == "per-parameter":
            return rates.repeat_interleave(self.sizes)
        if self.config.learned_rates == "per-step":
            return rates.repeat(self.config.inner_steps, 1)
        return torch.tensor(lr) if head_lr == lr else rates.unsqueeze(0)

    def _rates_of(self, step: int) -> Tensor:
        """Return the rates of an inner step: one for all, or (P,)."""
        if self.rates.dim() == 0:
            return self.rates
        initial = self._initial_parameters()
        sizes = [p.numel() for p in initial]
        if self.config.learned_rates == "per-parameter":
            return _concatenate(r.view_as(p) for r, p in zip(self.rates.split(sizes), initial))
        rates = self.rates[min(step, len(self.rates) - 1)]  # beyond training, the last step's
        return rates.repeat_interleave(self.sizes, output_size=sum(sizes))

    def _split(self, theta: Tensor) -> Parameters:
        """Return the parameters (B, *) in theta (B, P), those of convolutions channels last."""
        shapes = [_channels_last(p).shape for p in self._initial_parameters()]
        pieces = theta.split([shape.numel() for shape in shapes], 1)
        return tuple(piece.reshape(len(theta), *shape) for piece, shape in zip(pieces, shapes))

    def _by_name(self, parameters: Parameters) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return one task's parameters of the backbone by name, and its head's weight and bias."""
        natural = (p.permute(0, 3, 1, 2) if p.dim() == 4 else p for p in parameters)
        named = dict(zip(self.adapted_names, natural))
        head = named.pop("head.weight"), named.pop("head.bias")
        return {name.removeprefix("backbone."): p for name, p in named.items()}, head


def _map_tasks(
    function: Callable[..., Parameters], parameters: Parameters, *data: Tensor
) -> Parameters:
    """Apply a function of one task to all tasks; parameters are (B, *), or (1, *) if shared."""
    shared = bool(parameters) and len(parameters[0]) == 1
    if shared:
        # Without a task dimension, convolutions stay ordinary ones.
        parameters = tuple(p.squeeze(0) for p in parameters)
    dims = (None if shared else 0, *[0] * len(data))
    return vmap(function, dims, randomness="different")(parameters, *data)


def _apply_to_single_task(
    function: Callable[..., Parameters], parameters: Parameters, *data: Tensor
) -> Parameters:
    """Do the same as `_map_tasks` for B = 1, without vmap."""
    results = function(tuple(p.squeeze(0) for p in parameters), *(x.squeeze(0) for x in data))
    return tuple(result.unsqueeze(0) for result in results)


def _concatenate(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([_channels_last(p).flatten() for p in parameters])


def _channels_last(p: Tensor) -> Tensor:
    """Return the weights of a convolution in the memory order that is fastest on a CPU."""
    return p.permute(0, 2, 3, 1) if p.dim() == 4 else p


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"maml": MAML}
