"""The head of a Prototypical Network: its loss, and 10,000 cached episodes of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import metazoo
from metazoo import ops
from metazoo.evaluation.measure import DRAWN_AT_ONCE
from metazoo.evaluation.score import score

from .distances import STOCK, Formula, broadcast, cdist, points, too_much
from .measure import Case, Row, Scope, Way, compare, compiled, marked, overall

SHAPES = [
    (1, 75, 5, 64),
    (16, 75, 5, 64),
    (16, 75, 5, 1600),
    (1, 300, 60, 64),
    (16, 75, 20, 640),
    (64, 300, 20, 640),
    (64, 300, 60, 1600),
]
WAYS, SHOTS, QUERIES = 5, 1, 15
TOGETHER = 1000  # tasks at once where the features are resident anyway
CLASSES, DRAWINGS = 200, 20


def stock_loss(formula: Formula) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda x, y, target: F.cross_entropy(-formula(x, y).flatten(0, 1), target.flatten())


def loss_rows(scope: Scope, shape: tuple[int, int, int, int], mode: str) -> list[Row]:
    """Return the rows of the loss at one shape: alone ("forward") or with its gradients ("backward")."""
    b, q, n, d = shape
    torch.manual_seed(0)
    x, y = points(scope, *shape)
    x, y = (
        t.detach().mul_(d**-0.5).requires_grad_() for t in (x, y)
    )  # so that the softmax is no step
    target = torch.randint(n, (b, q), device=scope.device)
    losses = {name: stock_loss(formula) for name, formula in STOCK.items()}
    losses["ours"] = ops.prototypical_nll
    skip = too_much(scope, "forward" if mode == "forward" else "double", b * q * n * d)
    ways: dict[str, Way | str] = {
        name: skip if skip and name == "broadcast" else _way(loss, mode, x, y, target)
        for name, loss in losses.items()
    }
    if scope.cuda:
        ways["inductor"] = marked(_way(compiled(stock_loss(broadcast)), mode, x, y, target))
    else:
        ways["inductor"] = "on a CPU only the distances are compiled"
    wide = [t.detach().double().requires_grad_() for t in (x, y)]
    reference = _way(stock_loss(STOCK["norms + bmm"]), mode, *wide, target)()
    return compare(
        scope,
        {"mode": mode, "B": b, "Q": q, "N": n, "D": d},
        ways,
        lambda result: {"error": overall(result, reference)},
    )


def _way(
    loss: Callable[..., Tensor], mode: str, x: Tensor, y: Tensor, target: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (loss(x, y, target),)

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(x, y, target), (x, y))

    return forward if mode == "forward" else backward


class Cached:
    """Episodes over features that lie on the device: rows of their support (E, S) and queries (E, Q), drawn beforehand."""

    def __init__(self, scope: Scope, episodes: int, features: int):
        torch.manual_seed(0)
        means = torch.randn(CLASSES, 1, features)
        # Classes lie close enough for some queries to be mistaken.
        self.features = (
            (means + 0.5 * features**0.5 * torch.randn(CLASSES, DRAWINGS, features))
            .flatten(0, 1)
            .to(scope.device)
        )
        classes = torch.rand(episodes, CLASSES).argsort(1)[:, :WAYS]
        drawn = torch.rand(episodes, WAYS, DRAWINGS).argsort(2)[
            :, :, : SHOTS + QUERIES
        ] + DRAWINGS * classes.unsqueeze(-1)
        self.support = drawn[:, :, :SHOTS].flatten(1).to(scope.device)
        self.query = drawn[:, :, SHOTS:].flatten(1).to(scope.device)
        self.support_y = torch.arange(WAYS, device=scope.device).repeat_interleave(SHOTS)
        self.query_y = torch.arange(WAYS, device=scope.device).repeat_interleave(QUERIES)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield support, its labels, queries and their labels of so many tasks at a time."""
        for support, query in zip(self.support.split(size), self.query.split(size)):
            labels = (y.expand(len(support), -1) for y in (self.support_y, self.query_y))
            support_y, query_y = labels
            yield self.features[support], support_y, self.features[query], query_y

    def accuracy(self, formula: Formula, size: int) -> Tensor:
        """Return the accuracies (E,) as metazoo.evaluate computes them: class means, distances, argmax."""
        return torch.cat([
            score(-formula(query, metazoo.class_means(support, support_y)), query_y)
            for support, support_y, query, query_y in self.batches(size)
        ])  # fmt: skip

    def losses(self, loss: Callable[[Tensor, Tensor, Tensor], Tensor], size: int) -> Tensor:
        """Return the mean loss of every batch."""
        return torch.stack([
            loss(query, metazoo.class_means(support, support_y), query_y)
            for support, support_y, query, query_y in self.batches(size)
        ])  # fmt: skip

    def one_at_a_time(self) -> Tensor:
        """Return the accuracies as few-shot libraries compute them: a loop over episodes, and in it one over classes."""
        scores = []
        for support, query in zip(self.support, self.query):
            support_z, query_z = self.features[support], self.features[query]
            means = [
                support_z[torch.nonzero(self.support_y == label).flatten()].mean(0)
                for label in range(WAYS)
            ]
            answer = -torch.cdist(query_z, torch.stack(means))
            scores.append((answer.argmax(1) == self.query_y).float().mean().item())
        return torch.tensor(scores)


def evaluation_rows(scope: Scope, features: int, episodes: int) -> list[Row]:
    """Return the rows of cached episodes: their accuracies, and their losses."""
    with torch.no_grad():
        cached = Cached(scope, episodes, features)
        size = DRAWN_AT_ONCE // (WAYS * (SHOTS + QUERIES) * features)
        ways: dict[str, dict[str, Way | str]] = {"accuracy": {}, "loss": {}}
        for name, formula in {**STOCK, "ours": ops.pairwise_sqdist}.items():
            ways["accuracy"][name] = lambda formula=formula: cached.accuracy(formula, size)
            loss = ops.prototypical_nll if name == "ours" else stock_loss(formula)
            ways["loss"][name] = lambda loss=loss: cached.losses(loss, size)
        ways["accuracy"][f"cdist, {TOGETHER} tasks at once"] = lambda: cached.accuracy(
            cdist, TOGETHER
        )
        ways["accuracy"][f"ours, {TOGETHER} tasks at once"] = lambda: cached.accuracy(
            ops.pairwise_sqdist, TOGETHER
        )
        ways["accuracy"]["one episode at a time"] = cached.one_at_a_time
        narrow, cached.features = cached.features, cached.features.double()
        exact = {
            "accuracy": cached.accuracy(STOCK["norms + bmm"], size).mean().item(),
            "loss": cached.losses(stock_loss(STOCK["norms + bmm"]), size).mean().item(),
        }
        cached.features = narrow
        rows: list[Row] = []
        for what, value in exact.items():
            common = {"what": what, "D": features, "episodes": episodes, "at_once": size}
            rows += compare(
                scope, common, ways[what], lambda result, value=value: _judged(result, value)
            )
    for row in rows:
        if "us" in row:
            row["us_per_episode"] = float(f"{row['us'] / episodes:.4g}")
    return rows


def _judged(result: Tensor, exact: float) -> Row:
    mean = result.double().mean().item()
    return {"result": mean, "error_result": abs(mean - exact) / exact}


def cases(scope: Scope) -> Iterator[Case]:
    """Yield what there is to measure."""
    shapes: list[Any] = SHAPES[:1] if scope.quick else SHAPES
    for shape in shapes:
        for mode in ("forward", "backward"):
            yield Case(
                "head",
                f"{mode} {shape}",
                2,
                lambda shape=shape, mode=mode: loss_rows(scope, shape, mode),
            )
    for features in (64, 1600):
        # A CPU takes minutes for all of them; its ratios do not depend on the number.
        episodes = 6400 // features if scope.quick else 10_000 if scope.cuda else 64_000 // features
        label = f"{episodes} episodes of {features} features"
        yield Case(
            "evaluation", label, 3, lambda f=features, e=episodes: evaluation_rows(scope, f, e)
        )
