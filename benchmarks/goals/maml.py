"""Second-order MAML as functorch's Omniglot example has it: 32 tasks, 5 ways, 5 shots, 5 inner steps, 3 blocks; 20 ms."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import metazoo
from benchmarks.kernels.measure import Row, Scope, Way
from benchmarks.maml_step import WAYS, Norm, functional_loss
from benchmarks.rivals import ORDERS, ordered
from benchmarks.suite import closeness, in_float64
from metazoo.algorithms.maml import MAML
from metazoo.base.backbone import CONVOLUTION_FORMAT
from metazoo.datasets.glyphs import Glyphs

from .part import BF16, OURS, TF32, Part, checked, error_of, flat, in_tf32, slopes, verdict

WIDTH = 64
LIMIT_US = 20_000
AT_ONCE = 4  # tasks whose gradient is taken together in float64, for the sake of memory
VMAP, EXAMPLE = "torch.func, vmap over tasks", "functorch's example as it stands"


def blocks(*, pool_first: bool, running: bool) -> list[nn.Module]:
    """Return three blocks of unpadded 3x3 convolution, BatchNorm, ReLU and pooling; pooling first gives the same numbers."""
    layers: list[nn.Module] = []
    for channels in (1, WIDTH, WIDTH):
        after: list[nn.Module] = [nn.ReLU(), nn.MaxPool2d(2)]
        layers += [
            nn.Conv2d(channels, WIDTH, 3),
            nn.BatchNorm2d(WIDTH, track_running_stats=running),
        ]
        layers += reversed(after) if pool_first else after
    return layers


class ThreeBlocks(metazoo.Backbone):
    """The example's network but for its last layer, its blocks in the order of metazoo's Conv4."""

    def __init__(self, input_shape: tuple[int, ...], config: metazoo.Config | None = None):
        super().__init__(input_shape, config)
        self.blocks = nn.Sequential(*blocks(pool_first=True, running=True)).to(
            memory_format=CONVOLUTION_FORMAT
        )
        self.out_features = WIDTH

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).flatten(1)


def stock(model: MAML, *, written_out: bool) -> nn.Module:
    """Return the example's network with the weights of ours."""
    layers = blocks(pool_first=False, running=False)
    nn.Sequential(*layers).load_state_dict(model.backbone.blocks.state_dict())
    head = nn.Linear(WIDTH, WAYS)
    head.load_state_dict(model.head.state_dict())
    if written_out:
        layers = [Norm(layer) if isinstance(layer, nn.BatchNorm2d) else layer for layer in layers]
    return nn.Sequential(*layers, nn.Flatten(), head)


def part(scope: Scope) -> Part:
    """Return the goal's part."""
    count, shots, queries, steps = (2, 1, 1, 2) if scope.quick else (32, 5, 15, 5)
    tasks = (
        Glyphs(Glyphs.Config(alphabets=6))
        .tasks("train", WAYS, shots, queries, 0)
        .draw(0, count)
        .to(scope.device)
    )
    torch.manual_seed(0)
    config = MAML.Config(inner_steps=steps, tasks="vmap")
    model = MAML(ThreeBlocks((1, 28, 28)), metazoo.TaskSpec((1, 28, 28), WAYS), config).train()
    loss = functional_loss(steps, vectorised=True)

    def theirs(network: nn.Module) -> Way:
        parameters = list(network.parameters())
        return lambda: torch.autograd.grad(loss(network, tasks), parameters)

    networks = {
        order: ordered(stock(model, written_out=True), order).to(scope.device) for order in ORDERS
    }
    example = stock(model, written_out=False).to(scope.device)
    model.to(scope.device)
    low = copy.deepcopy(model)
    low.backbone.low_precision = torch.bfloat16
    own = slopes(model, tasks)
    ways: dict[str, Way] = {
        OURS: own,
        **{f"{VMAP}, {order}": theirs(network) for order, network in networks.items()},
        EXAMPLE: theirs(example),
        OURS + TF32: in_tf32(own),
        OURS + BF16: slopes(low, tasks),
        VMAP + TF32: in_tf32(theirs(networks["contiguous"])),
    }
    double_model = copy.deepcopy(model).double()
    some = [in_float64(tasks[i : i + AT_ONCE]) for i in range(0, count, AT_ONCE)]
    gradients = [flat(slopes(double_model, task)()) for task in some]
    exactly = torch.stack(gradients).mean(0)

    def check() -> list[str]:
        facts = []
        for order, network in networks.items():
            double = copy.deepcopy(network).double()
            found = flat(torch.autograd.grad(loss(double, some[0]), list(double.parameters())))
            error = closeness([found], gradients[:1])
            facts.append(
                checked(
                    f"{VMAP}, {order}: in float64 the gradient of {len(some[0])} tasks", error, 1e-6
                )
            )
        return facts

    def verdicts(us: Mapping[str, float]) -> list[Row]:
        goal = "the second-order gradient of 32 tasks in 20 ms or less on an H200, in microseconds"
        return [verdict(goal, way, us[way], LIMIT_US) for way in us if way.startswith(OURS)]

    return Part(
        f"loss and second-order gradient of {count} tasks, {WAYS} ways, {shots} shots, {queries} queries a class, {steps} "
        f"inner steps, 3 blocks of {WIDTH} channels; {EXAMPLE} has F.batch_norm, whose second derivatives are wrong under vmap",
        ways, check, lambda result: error_of(result, exactly), verdicts, (OURS, OURS + TF32),
    )  # fmt: skip
