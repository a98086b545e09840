"""MAML compared with a naive implementation and with finite differences."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metazoo
from metazoo.algorithms.maml import MAML
from metazoo.backbones.conv4 import Conv4
from metazoo.backbones.mlp import MLP
from metazoo.nn.augmentation import shifted

WAYS = 3


def image_model(**config: object) -> MAML:
    torch.manual_seed(0)
    backbone = Conv4((1, 16, 16), Conv4.Config(width=4))
    spec = metazoo.TaskSpec((1, 16, 16), WAYS, classes=10)
    return MAML(backbone, spec, MAML.Config(**{"inner_lr": 0.1, **config})).double()


def images(tasks: int = 2, shots: int = 2, queries: int = 2, ways: int = WAYS) -> metazoo.Episode:
    generator = torch.Generator().manual_seed(1)
    sy = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)
    qy = torch.arange(ways).repeat_interleave(queries).expand(tasks, -1)
    sx = torch.randn(tasks, ways * shots, 1, 16, 16, generator=generator, dtype=torch.float64)
    qx = torch.randn(tasks, ways * queries, 1, 16, 16, generator=generator, dtype=torch.float64)
    return metazoo.Episode(sx, sy, qx, qy)


def sinusoids(tasks: int = 3) -> metazoo.Episode:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tasks, 8, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(x)
    return metazoo.Episode(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])


def line_model(**config: object) -> MAML:
    torch.manual_seed(0)
    spec = metazoo.TaskSpec((1,), 1, regression=True)
    return MAML(
        MLP((1,), MLP.Config(width=6)), spec, MAML.Config(**{"inner_lr": 0.1, **config})
    ).double()


# --- A naive MAML: autograd with create_graph, parameters in a list, one task at a time. ---


def naive_forward(weights: list[Tensor], x: Tensor, center: bool = False) -> Tensor:
    """Conv4 or MLP with a linear head, written out."""
    weights = list(weights)
    if x.dim() == 4:
        for _ in range(4):
            conv_w, conv_b, norm_w, norm_b = (weights.pop(0) for _ in range(4))
            x = F.conv2d(x, conv_w, conv_b, padding=1)
            mean, var = (
                x.mean((0, 2, 3), keepdim=True),
                x.var((0, 2, 3), unbiased=False, keepdim=True),
            )
            x = (x - mean) / (var + 1e-5).sqrt() * norm_w.view(1, -1, 1, 1) + norm_b.view(
                1, -1, 1, 1
            )
            x = F.max_pool2d(F.relu(x), 2)
        x = x.flatten(1)
    else:
        for _ in range(2):
            x = F.relu(x @ weights.pop(0).T + weights.pop(0))
    head_w, head_b = weights
    x = x - x.sum(0) / len(x) if center else x
    return x @ head_w.T + head_b


def naive_loss(
    weights: list[Tensor],
    rates: list[list[Tensor]],
    episode: metazoo.Episode,
    second_order: bool,
    step_weights: list[float],
    adapted: list[bool],
    center: bool = False,
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for sx, sy, qx, qy in zip(
        episode.support_x, episode.support_y, episode.query_x, episode.query_y
    ):
        fast = list(weights)
        for step, weight in enumerate(step_weights):
            prediction = naive_forward(fast, sx, center)
            if sy.is_floating_point():
                inner = (prediction - sy).pow(2).mean()
            else:
                inner = F.cross_entropy(prediction, sy, reduction="sum") * WAYS / len(sy)
            chosen = [w for w, yes in zip(fast, adapted) if yes]
            gradients = iter(
                torch.autograd.grad(inner, chosen, create_graph=second_order, retain_graph=True)
            )
            fast = [
                w - r * next(gradients) if yes else w
                for w, r, yes in zip(fast, rates[step], adapted)
            ]
            prediction = naive_forward(fast, qx, center)
            outer = (
                F.mse_loss(prediction, qy)
                if qy.is_floating_point()
                else F.cross_entropy(prediction, qy)
            )
            total = total + weight * outer
    return total / len(episode)


def compare(
    model: MAML,
    episode: metazoo.Episode,
    step_weights: list[float] | None = None,
    head_only: bool = False,
) -> None:
    """Compare the loss and the meta-gradient of weights and rates with the naive ones."""
    model.zero_grad()
    ours = model.loss(episode)
    ours.backward()

    names = [
        name
        for name, _ in model.named_parameters()
        if name != "rates" and not name.startswith("norm_offsets")
    ]
    weights = [dict(model.named_parameters())[name] for name in names]
    norms = {
        f"backbone.{name}"
        for name, p in model.backbone.named_parameters()
        if model.config.per_step_norm and p.dim() == 1
    }
    norms -= {
        name
        for name in norms
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv2d)
    }
    adapted = [name.startswith("head") or not (head_only or name in norms) for name in names]
    kind, steps = model.config.learned_rates, model.config.inner_steps
    leaves = model.rates.detach().clone().requires_grad_(kind != "none")
    if kind == "per-parameter":
        sizes = [w.numel() for w, yes in zip(weights, adapted) if yes]
        pieces = iter(leaves.split(sizes))
        rates = [
            [next(pieces).view(w.shape) if yes else leaves for w, yes in zip(weights, adapted)]
        ] * steps
    elif kind == "per-step":
        rates = [list(leaves[step]) for step in range(steps)]
    else:
        head_lr = leaves if model.config.head_lr is None else torch.tensor(model.config.head_lr)
        lr = torch.tensor(model.config.inner_lr)
        rates = [[head_lr if name.startswith("head") else lr for name in names]] * steps
    weighting = step_weights or [0.0] * (steps - 1) + [1.0]
    theirs = naive_loss(
        weights,
        rates,
        episode,
        not model.config.first_order,
        weighting,
        adapted,
        model.config.center,
    )
    wanted = torch.autograd.grad(
        theirs, [*weights, *([leaves] if kind != "none" else [])], allow_unused=True
    )

    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    got = [w.grad for w in weights] + ([model.rates.grad] if kind != "none" else [])
    assert any(g.abs().max() > 1e-6 for g in got if g is not None)
    for name, g, w in zip([*names, "rates"], got, wanted):
        torch.testing.assert_close(
            g, w, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("tasks", ["loop", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_meta_gradient_equals_the_naive_one(
    tasks: str, first_order: bool, inner_steps: int
) -> None:
    options = {"tasks": tasks, "first_order": first_order, "inner_steps": inner_steps}
    compare(image_model(**options), images())
    compare(line_model(**options), sinusoids())


def test_vmap_is_used_where_it_is_faster() -> None:
    on_gpu = [torch.empty(count, 6, 1, 16, 16, device="meta") for count in (1, 2)]  # not a CPU
    assert [image_model()._uses_vmap(x) for x in on_gpu] == [False, True]
    assert not image_model()._uses_vmap(images().support_x)
    assert line_model()._uses_vmap(sinusoids().support_x)


@pytest.mark.parametrize("tasks", ["loop", "vmap"])
def test_checkpointed_steps_give_the_naive_gradient(tasks: str) -> None:
    options = {"tasks": tasks, "inner_steps": 3, "checkpoint_inner": True}
    compare(image_model(**options), images())
    compare(line_model(**options), sinusoids())
    compare(image_model(**options, multi_step_loss=10), images(), step_weights=[1 / 3] * 3)
    compare(image_model(**options, adapt="head"), images(), head_only=True)
    gradients = []
    for checkpoint in (False, True):
        model = image_model(
            **{**options, "checkpoint_inner": checkpoint},
            learned_rates="per-step",
            per_step_norm=True,
        )
        model.loss(images()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_checkpointed_steps_save_memory() -> None:
    class Saved:
        def __init__(self, value: Tensor):
            self.value = value

    def kept(**options: object) -> int:
        alive: weakref.WeakSet[Saved] = weakref.WeakSet()

        def pack(value: Tensor) -> Saved:
            saved = Saved(value)
            alive.add(saved)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
            loss = image_model(inner_steps=5, **options)._outer_loss(images(tasks=1))
        assert loss.requires_grad
        return sum(saved.value.numel() for saved in alive)

    assert kept(checkpoint_inner=True) < kept() / 2


@pytest.mark.parametrize("learned_rates", ["per-parameter", "per-step"])
@pytest.mark.parametrize("first_order", [False, True])
def test_learned_rates_get_the_naive_gradient(learned_rates: str, first_order: bool) -> None:
    compare(
        image_model(learned_rates=learned_rates, first_order=first_order, inner_steps=2), images()
    )
    compare(
        line_model(learned_rates=learned_rates, first_order=first_order, inner_steps=2), sinusoids()
    )


@pytest.mark.parametrize("tasks", ["loop", "vmap"])
def test_head_only_adaptation_is_anil(tasks: str) -> None:
    compare(image_model(adapt="head", inner_steps=2, tasks=tasks), images(), head_only=True)


@pytest.mark.parametrize("tasks", ["loop", "vmap"])
@pytest.mark.parametrize(
    "options", [{"head_lr": 0.7}, {"center": True}, {"per_step_norm": True}], ids=str
)
def test_extensions_of_the_paper_get_the_naive_gradient(
    tasks: str, options: dict[str, object]
) -> None:
    compare(image_model(tasks=tasks, inner_steps=2, **options), images())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(_gradients(image_model(**options)), _gradients(image_model()))
    )


def _gradients(model: MAML) -> list[Tensor]:
    model.loss(images()).backward()
    return [p.grad for name, p in model.named_parameters() if name.startswith("head")]  # type: ignore[misc]


def test_every_inner_step_has_its_own_norms() -> None:
    model, episode = image_model(per_step_norm=True, inner_steps=3, eval_inner_steps=5), images()
    model.loss(episode).backward()
    assert all(
        offsets.grad is not None and (offsets.grad.flatten(1).norm(dim=1) > 1e-6).all()
        for offsets in model.norm_offsets
    )
    # Only steps from the third on use the third offsets; steps beyond training use the last.
    task = (episode.support_x, episode.support_y, episode.query_x)
    before = {steps: _after(model, task, steps) for steps in (1, 2, 5)}
    with torch.no_grad():
        for offsets in model.norm_offsets:
            offsets[2] += 0.5
    changed = {
        steps: not torch.allclose(_after(model, task, steps), value)
        for steps, value in before.items()
    }
    assert changed == {1: False, 2: False, 5: True}


def test_a_model_can_be_copied_after_training_and_answers_the_same_twice() -> None:
    model, episode = image_model(per_step_norm=True, inner_steps=2), images()
    model.loss(episode).backward()
    task = (episode.support_x, episode.support_y, episode.query_x)
    torch.testing.assert_close(copy.deepcopy(model).eval()(*task), model.eval()(*task))
    torch.testing.assert_close(model(*task), model(*task))
    with pytest.raises(metazoo.OptionError, match="no effect with adapt=head"):
        image_model(per_step_norm=True, adapt="head")


def _after(model: MAML, task: tuple[Tensor, Tensor, Tensor], steps: int) -> Tensor:
    model.config = dataclasses.replace(model.config, eval_inner_steps=steps)
    return model.eval()(*task).detach()


def test_the_first_outer_steps_can_be_first_order() -> None:
    episode = images()
    gradients = {}
    for name, config, done in (
        ("annealing, early", {"first_order_steps": 2}, 1),
        ("annealing, late", {"first_order_steps": 2}, 2),
        ("first", {"first_order": True}, 0),
        ("second", {}, 0),
    ):
        model = image_model(inner_steps=2, **config)
        model.outer_steps += done
        model.loss(episode).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradients["annealing, early"], gradients["first"])
    torch.testing.assert_close(gradients["annealing, late"], gradients["second"])
    assert not torch.allclose(gradients["first"], gradients["second"])


def test_a_zero_head_favours_no_class() -> None:
    episode = images()
    task = (episode.support_x, episode.support_y, episode.query_x)
    assert not _after(image_model(zero_head=True), task, 0).any()
    assert _after(image_model(), task, 0).any()


def test_multi_step_loss_weighs_every_step() -> None:
    model = image_model(multi_step_loss=10, inner_steps=4)
    model.outer_steps += 5
    # Half way, each early step has half of its initial weight, 1 / 4.
    compare(model, images(), step_weights=[0.125, 0.125, 0.125, 0.625])
    assert int(model.outer_steps) == 6
    model.outer_steps += 4
    assert model._step_weights() == [0.0, 0.0, 0.0, 1.0]


def test_second_order_differs_from_first_order() -> None:
    gradients = []
    for first_order in (False, True):
        model = image_model(first_order=first_order, inner_steps=2)
        model.loss(images()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()


@pytest.mark.parametrize("make", [image_model, line_model])
def test_meta_gradient_equals_finite_differences(make: object) -> None:
    # ReLU and max-pooling are smooth almost everywhere; a step of 1e-6 rarely crosses a kink.
    model = make(inner_steps=2, learned_rates="per-step", per_step_norm=True)  # type: ignore[operator]
    episode = images() if make is image_model else sinusoids()
    model.loss(episode).backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope = (parameter.grad * direction).sum()
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * 1e-6 * direction
                values.append(model.loss(episode))
                parameter -= sign * 1e-6 * direction
        # BatchNorm cancels a convolution's bias, so its gradient is 0 up to rounding.
        torch.testing.assert_close(
            (values[0] - values[1]) / 2e-6,
            slope,
            rtol=2e-4,
            atol=1e-7,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_an_inner_rate_of_zero_is_zero() -> None:
    assert line_model(inner_lr=0.0).rates == 0.0
    assert MAML(MLP((1,)), metazoo.TaskSpec((1,), 1, regression=True)).rates == pytest.approx(0.01)
    assert MAML(MLP((1,)), metazoo.TaskSpec((1,), 5)).rates == pytest.approx(0.4)


def test_evaluation_has_its_own_number_of_steps() -> None:
    model, episode = image_model(inner_steps=1, eval_inner_steps=4), images()
    more = image_model(inner_steps=4)
    more.load_state_dict(model.state_dict())
    task = (episode.support_x, episode.support_y, episode.query_x)
    trained, evaluated = model.train()(*task), model.eval()(*task)
    torch.testing.assert_close(evaluated, more.train()(*task))
    assert not torch.allclose(trained, evaluated)


def test_zero_steps_use_the_initialisation() -> None:
    model, episode = line_model(eval_inner_steps=0), sinusoids()
    answer = model.eval()(episode.support_x, episode.support_y, episode.query_x)
    torch.testing.assert_close(answer[0], model.head(model.backbone(episode.query_x[0])))


def test_steps_beyond_training_use_the_last_rates() -> None:
    model = image_model(learned_rates="per-step", inner_steps=2, eval_inner_steps=5)
    with torch.no_grad():
        model.rates[1] = 0.0
    task = (images().support_x, images().support_y, images().query_x)
    one_step = image_model(learned_rates="per-step", inner_steps=1)
    torch.testing.assert_close(model.eval()(*task), one_step.train()(*task))


def test_adapts_under_no_grad_and_changes_no_weight() -> None:
    model, episode = image_model().eval(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        answer = model(episode.support_x, episode.support_y, episode.query_x)
    assert not answer.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("adapt", ["all", "head"])
def test_adapts_in_inference_mode(adapt: str) -> None:
    model, episode = image_model(adapt=adapt).eval(), images()
    expected = model(episode.support_x, episode.support_y, episode.query_x)
    with torch.inference_mode():
        answer = model(episode.support_x * 1, episode.support_y, episode.query_x * 1)
    torch.testing.assert_close(answer, expected.detach())


def test_images_get_a_gradient() -> None:
    slopes = []
    for tasks in ("loop", "vmap"):
        episode = images()
        x = episode.support_x.clone().requires_grad_()
        image_model(tasks=tasks, inner_steps=2).loss(
            dataclasses.replace(episode, support_x=x)
        ).backward()
        slopes.append(x.grad)
    assert slopes[0] is not None
    torch.testing.assert_close(*slopes)


def test_a_frozen_model_has_a_loss() -> None:
    losses = [
        image_model(inner_steps=2).requires_grad_(freeze).loss(images()).detach()
        for freeze in (False, True)
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("adapt", "tasks"), [*itertools.product(["all", "head"], ["loop", "vmap"])]
)
@pytest.mark.parametrize("center", [False, True])
def test_support_statistics_make_it_inductive(adapt: str, tasks: str, center: bool) -> None:
    episode = images(queries=4)
    for batch_norm in ("support", "batch"):
        model = image_model(batch_norm=batch_norm, adapt=adapt, tasks=tasks, center=center).eval()
        whole = model(episode.support_x, episode.support_y, episode.query_x)
        part = model(episode.support_x, episode.support_y, episode.query_x[:, :1])
        assert torch.allclose(whole[:, :1], part) == (batch_norm == "support")
        assert model.transductive == (batch_norm == "batch")
    assert not line_model().transductive


@pytest.mark.parametrize("batch_norm", ["batch", "support"])
@pytest.mark.parametrize(
    ("adapt", "tasks"), [*itertools.product(["all", "head"], ["loop", "vmap"])]
)
def test_an_answer_is_the_mean_over_shifts_except_in_training(
    adapt: str, tasks: str, batch_norm: str
) -> None:
    options = {"adapt": adapt, "tasks": tasks, "batch_norm": batch_norm, "center": True}
    one, several = image_model(**options), image_model(**options, tta="shifted")
    sx, sy, qx, _ = vars(images()).values()
    torch.testing.assert_close(several(sx, sy, qx), one(sx, sy, qx))
    one.eval()
    several.eval()
    views = [
        torch.stack(both) for both in zip(*map(shifted, qx))
    ]  # five of (tasks, queries, 1, 16, 16)
    torch.testing.assert_close(several(sx, sy, qx), sum(one(sx, sy, view) for view in views) / 5)
    assert (several(sx, sy, qx) - one(sx, sy, qx)).abs().max() > 1e-3


def test_support_statistics_equal_batch_statistics_on_the_support() -> None:
    # Queries that are the support itself have the same statistics either way.
    episode = images()
    answers = [
        image_model(batch_norm=mode).eval()(episode.support_x, episode.support_y, episode.support_x)
        for mode in ("batch", "support")
    ]
    torch.testing.assert_close(*answers)


def test_fewer_ways_use_the_first_outputs_and_more_are_refused() -> None:
    model = image_model().eval()
    fewer = images(ways=2)
    assert model(fewer.support_x, fewer.support_y, fewer.query_x).shape == (2, 4, 2)
    more = images(ways=WAYS + 1)
    with pytest.raises(metazoo.OptionError, match=r"3 outputs.*4 classes"):
        model(more.support_x, more.support_y, more.query_x)


def test_learns_sinusoids() -> None:
    torch.manual_seed(0)
    model = MAML(MLP((1,)), metazoo.TaskSpec((1,), 1, regression=True))
    from metazoo.datasets.sinusoid import Sinusoid

    tasks = Sinusoid().tasks("train", 0, 10, 10, 0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for i in range(150):
        loss = model.loss(tasks.draw(25 * i, 25))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-30:]) < 0.9 * sum(losses[:30])


def test_scalar_parameters_are_adapted() -> None:
    class Scaled(metazoo.Backbone):
        def __init__(self) -> None:
            super().__init__((3,))
            self.scale, self.out_features = nn.Parameter(torch.tensor(1.0)), 3

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    x, y = (
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, 0, 1, 1]] * 2),
    )
    for tasks in ("loop", "vmap"):
        model = MAML(Scaled(), metazoo.TaskSpec((3,), 2), MAML.Config(tasks=tasks))
        model.loss(metazoo.Episode(x, y, x, y)).backward()
        assert model.backbone.scale.grad.isfinite()


def test_batch_norm_without_weights_is_supported() -> None:
    class Plain(metazoo.Backbone):
        def __init__(self) -> None:
            super().__init__((1, 4, 4))
            self.net = nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten()
            )
            self.out_features = 8

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    for mode in ("batch", "support"):
        model = MAML(Plain(), metazoo.TaskSpec((1, 4, 4), 2), MAML.Config(batch_norm=mode))
        x = torch.randn(1, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        y = torch.tensor([[0, 0, 1, 1]])
        assert model(x, y, x).isfinite().all()
