"""Logistic regression on features: Tian et al. 2020, "Rethinking Few-Shot Image Classification: a
Good Embedding Is All You Need?" (arXiv:2003.11539)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import metazoo
from metazoo import Range

# The penalty is chosen among these. All constants were set on validation classes of texts.
PENALTIES = (1.0, 0.3, 0.1, 0.03)
# The penalty if no class has a second example to hold out; less if the names have weight.
SINGLE_PENALTY = 0.3
# Support examples are held out in at most PARTS parts; about ENOUGH suffice to choose a penalty.
PARTS, ENOUGH = 10, 300
SCALES = tuple(10 ** (i / 5) for i in range(-5, 9))
# Numbers in the problems that are solved at once for held-out parts.
AT_ONCE = 2**26
# Names have weight if cosines of this scale make the class means this many nats more likely than
# chance.
NAME_SCALE, NAME_EVIDENCE, NAME_STEEPNESS = 8.0, 1.0, 4.0
# The gradient at the optimum, relative to that of the data; rough for choosing the penalty.
TOLERANCE, MEDIUM, ROUGH = 1e-5, 1e-3, 1e-2
NEWTON_STEPS, CG_STEPS, HALVINGS = 50, 30, 12
EPSILON = 1e-6


class Logistic(metazoo.FeatureLearner):
    """Fits a multinomial logistic regression with a squared penalty to each task's support set.

    Features are scaled to length 1, as in the paper, then centred and scaled to a mean square
    length of 1, so that one penalty suits every backbone. Biases are not penalized. By default the
    penalty is chosen for each task, by the likelihood of held-out support examples.

    The name of a class counts as one more example of it. Names are centred and scaled by
    themselves, because encoders place names elsewhere than examples. In training, gradients flow
    through the features, while the dual variables of the optimum are held constant.
    """

    @dataclass(frozen=True)
    class Config(metazoo.FeatureLearner.Config):
        penalty: Annotated[
            float | None,
            "strength of the squared penalty, 1/C in scikit-learn; none chooses it on the support set",
            Range(1e-4, 1e4),
        ] = None
        name_weight: Annotated[
            float | None,
            "weight of a class's name, where an example has 1; "
            "none chooses from 0 to 1, by how well the names agree with the support set",
            Range(0, 1e3),
        ] = None

    config: Config
    uses_names = True

    def classify(self, support_z: Tensor, support_y: Tensor, query_z: Tensor) -> Tensor:
        return self.head(support_z, support_y)(query_z)

    def classify_named(
        self, support_z: Tensor, support_y: Tensor, query_z: Tensor, names_z: Tensor
    ) -> Tensor:
        return self.head(support_z, support_y, names_z)(query_z)

    def head(
        self, support_z: Tensor, support_y: Tensor, names_z: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return the function of the fitted weights, from features (B, Q, D) to logits."""
        task = standardize(support_z, support_y, names_z)
        with torch.no_grad():
            name_weight = self._name_weight(task)
            problem = pose(task, name_weight)
            problem = problem.penalized(self._penalty(task, name_weight, problem))
            weights = fit(problem)
            # At the optimum the weights are the rows' combination with these coefficients.
            dual = problem.residual(weights) / problem.penalty[:, :1]
        rows = task.rows().mT @ dual  # (B, D, ways)
        return lambda query_z: task.scaled(query_z) @ rows + weights[:, -1:]

    @torch.no_grad()
    def leave_one_out(
        self, support_z: Tensor, support_y: Tensor, names_z: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, S, ways): each support example classified without itself.

        One example of every class is left out at a time, so that classes keep their proportions; of
        a class of more than ten, a tenth. The centre, the penalty and the weight of names are those
        of the whole support set. A row is NaN if its class has neither another example nor a name
        with weight.
        """
        task = standardize(support_z, support_y, names_z)
        name_weight = self._name_weight(task)
        problem = pose(task, name_weight)
        problem = problem.penalized(self._penalty(task, name_weight, problem))
        part = parts(task, task.alone() & (name_weight <= 0.5)[:, None])
        start = fit(problem)[:, None].expand(-1, PARTS, -1, -1)
        logits, _ = held_out(problem, part, start, MEDIUM)
        return logits

    def _name_weight(self, task: Task) -> Tensor:
        """Return the weight (B,) of the names in each task."""
        if not task.names.shape[1]:
            return task.z.new_zeros(len(task.z))
        if self.config.name_weight is None and task.z.shape[1]:
            return torch.sigmoid(NAME_STEEPNESS * (agreement(task) - NAME_EVIDENCE))
        weight = 1.0 if self.config.name_weight is None else self.config.name_weight
        return task.z.new_full((len(task.z),), weight)

    def _penalty(self, task: Task, name_weight: Tensor, problem: Problem) -> Tensor:
        """Return the penalty (B,) of each task.

        It is the mean logarithm of the PENALTIES, weighted by the likelihood that each gives to
        held-out examples. As a penalty also shrinks the logits, they are rescaled for the best
        likelihood.
        """
        if self.config.penalty is not None:
            return torch.full_like(name_weight, self.config.penalty)
        part = parts(task, task.alone())
        enough = (part.amax(1, keepdim=True) + 1) * ENOUGH / part.shape[1] if part.numel() else 0
        part = part.masked_fill(part >= enough, -1)
        weights, likelihoods = None, []
        for penalty in PENALTIES:
            tried = problem.penalized(torch.full_like(name_weight, penalty))
            logits, weights = held_out(tried, part, weights, ROUGH)
            likelihoods.append(best_likelihood(logits, task.y))
        weight = torch.stack(likelihoods, -1).softmax(-1)
        chosen = (weight @ weight.new_tensor(PENALTIES).log()).exp()
        default = SINGLE_PENALTY / (1 + 2 * name_weight)
        return torch.where((part >= 0).any(1), chosen, default)


class Task(NamedTuple):
    """Standardized features of a batch of tasks.

    Attributes:
        z: features (B, S, D) of the support examples.
        y: their labels (B, S).
        member: one-hot labels (B, S, ways).
        names: features (B, ways, D) of the names; (B, 0, D) without names.
        centre: (B, 1, D), subtracted from features of length 1.
        size: (B, 1, 1), by which they are divided.
    """

    z: Tensor
    y: Tensor
    member: Tensor
    names: Tensor
    centre: Tensor
    size: Tensor

    def rows(self) -> Tensor:
        """Return the features (B, M, D) of the support examples, then of the names."""
        return torch.cat([self.z, self.names], 1)

    def scaled(self, z: Tensor) -> Tensor:
        """Return features (B, Q, D) of further examples, standardized like the support set's."""
        return (F.normalize(z.to(self.z.dtype), dim=-1) - self.centre) / self.size

    def alone(self) -> Tensor:
        """Return whether each support example is the only one of its class, (B, S)."""
        return self.member.sum(1).gather(1, self.y) == 1


def standardize(support_z: Tensor, support_y: Tensor, names_z: Tensor | None) -> Task:
    """Return the tasks with features of length 1 that are centred and scaled.

    The centre is the mean of the class means. Without support examples it is that of the names.
    """
    # Half precision is too coarse for the optimum.
    dtype = torch.promote_types(support_z.dtype, torch.float32)
    ways = metazoo.ways_of(support_y) if names_z is None else names_z.shape[1]
    member = F.one_hot(support_y, ways).to(dtype)
    z = F.normalize(support_z.to(dtype), dim=-1)
    if names_z is None:
        names = z[:, :0]
    else:
        names = F.normalize(names_z.to(dtype), dim=-1)
        name_centre = names.mean(1, keepdim=True)
        names = names - name_centre
        name_size = root_mean_square(names)
        names = names / name_size
    if not z.shape[1]:
        return Task(z, support_y, member, names, name_centre, name_size)
    count = member.sum(1)  # (B, ways)
    weight = 1 / (count * (count > 0).sum(1, keepdim=True)).clamp_min(1)
    centre = (z * weight.gather(1, support_y)[..., None]).sum(1, keepdim=True)
    size = root_mean_square(z - centre)
    return Task((z - centre) / size, support_y, member, names, centre, size)


def root_mean_square(z: Tensor) -> Tensor:
    """Return the root (B, 1, 1) of the mean square length of vectors (B, N, D)."""
    return z.square().sum(-1, keepdim=True).mean(1, keepdim=True).sqrt().clamp_min(EPSILON)


def agreement(task: Task) -> Tensor:
    """Return how much likelier than chance the names make the class means, in nats, (B,)."""
    count = task.member.sum(1)[..., None]  # (B, ways, 1)
    means = task.member.mT @ task.z / count.clamp_min(1)
    log_p = (NAME_SCALE * means @ task.names.mT).log_softmax(-1).diagonal(dim1=1, dim2=2)
    return ((log_p + math.log(task.names.shape[1])) * (count[..., 0] > 0)).sum(1)


class Problem(NamedTuple):
    """A batch of weighted logistic regressions.

    Attributes:
        x: coordinates (B, M, N) of the rows in a basis of their span, then a 1 for the bias.
        target: one-hot labels (B, M, ways).
        weight: weights (B, M, 1) of the rows in the loss.
        penalty: strengths (B, N, 1) of the squared penalty, 0 for the bias.
    """

    x: Tensor
    target: Tensor
    weight: Tensor
    penalty: Tensor

    def penalized(self, penalty: Tensor) -> Problem:
        """Return the problems with other penalties (B,)."""
        strength = penalty[:, None, None].expand(-1, self.x.shape[2] - 1, 1)
        return self._replace(penalty=F.pad(strength, (0, 0, 0, 1)))

    def residual(self, weights: Tensor) -> Tensor:
        """Return the weighted target minus probability, (B, M, ways)."""
        return self.weight * (self.target - (self.x @ weights).softmax(-1))

    def gradient(self, weights: Tensor) -> Tensor:
        return self.penalty * weights - self.x.mT @ self.residual(weights)

    def loss(self, weights: Tensor) -> Tensor:
        """Return the loss (B,) of the weights (B, N, ways)."""
        logits = self.x @ weights
        nll = logits.logsumexp(-1, keepdim=True) - (logits * self.target).sum(-1, keepdim=True)
        return (self.weight * nll).sum((1, 2)) + (self.penalty * weights.square()).sum((1, 2)) / 2


def pose(task: Task, name_weight: Tensor) -> Problem:
    """Return the tasks' problems with names of weights (B,) and a penalty of 1."""
    rows = task.rows().detach()
    x = torch.linalg.qr(rows.mT, mode="r").R.mT if rows.shape[1] < rows.shape[2] else rows
    ways = task.names.shape[1]
    of_names = name_weight[:, None, None].expand(-1, ways, 1)
    weight = torch.cat([torch.ones_like(rows[:, ways:, :1]), of_names], 1)
    target = task.member
    if ways:
        target = torch.cat([target, torch.eye(ways).to(rows).expand(len(rows), -1, -1)], 1)
    problem = Problem(F.pad(x, (0, 1), value=1.0), target, weight, weight)
    return problem.penalized(torch.ones_like(name_weight))


def parts(task: Task, kept: Tensor) -> Tensor:
    """Return the part (B, S) in which each support example is held out; -1 for those `kept`.

    Every part has an equal share of each class. Parts depend on the features, not on their order.
    """
    # A fixed direction sorts the examples in an order that has nothing to do with their classes.
    direction = torch.linspace(-1, 1, task.z.shape[2]).to(task.z).sin()
    order = (task.z.detach() @ direction).argsort(dim=1, stable=True)
    y = task.y.gather(1, order)
    rank = F.one_hot(y, task.member.shape[2]).cumsum(1).gather(2, y[..., None])[..., 0] - 1
    rank = torch.empty_like(rank).scatter_(1, order, rank)
    largest = task.member.sum(1).amax(1, keepdim=True).long()
    return (rank % largest.clamp(1, PARTS)).masked_fill(kept, -1)


def held_out(
    problem: Problem, part: Tensor, start: Tensor | None = None, tolerance: float = TOLERANCE
) -> tuple[Tensor, Tensor]:
    """Classify support examples by fits without the part to which they belong.

    Args:
        problem: the problems, support examples first.
        part: the part (B, S) of each support example, -1 for those in no part.
        start: weights (B, parts, N, ways) from which to start.
        tolerance: as for `fit`.

    Returns:
        Logits (B, S, ways), NaN for examples in no part, and the fitted weights.
    """
    (tasks, shots), (rows, size) = part.shape, problem.x.shape[1:]
    ways, count = problem.target.shape[2], int(part.max()) + 1 if part.numel() else 0
    logits = problem.x.new_full((tasks, shots, ways), math.nan)
    weights = problem.x.new_zeros(tasks, count, size, ways)
    if start is not None:
        weights.copy_(start[:, :count])
    each = max(1, AT_ONCE // (tasks * rows * (size + ways)))
    for some in torch.arange(count, device=part.device).split(each):
        left = part[:, None] == some[:, None]  # (B, parts, S)
        copies = Problem(*(t.repeat_interleave(len(some), 0) for t in problem))
        kept = F.pad(~left, (0, rows - shots), value=True).flatten(0, 1)
        copies = copies._replace(weight=copies.weight * kept[..., None])
        fitted = fit(copies, weights[:, some].flatten(0, 1), tolerance)
        weights[:, some] = fitted.unflatten(0, (tasks, -1))
        answers = (copies.x[:, :shots] @ fitted).unflatten(0, (tasks, -1)) * left[..., None]
        logits = torch.where(left.any(1)[..., None], answers.sum(1), logits)
    return logits, weights


def best_likelihood(logits: Tensor, y: Tensor) -> Tensor:
    """Return the log-likelihood (B,) of labels at the best of the SCALES of logits, except NaN."""
    log_p = [
        (scale * logits).log_softmax(-1).gather(2, y[..., None]).nansum((1, 2)) for scale in SCALES
    ]
    return torch.stack(log_p).amax(0)


@torch.no_grad()
def fit(problem: Problem, start: Tensor | None = None, tolerance: float = TOLERANCE) -> Tensor:
    """Return the optimal weights (B, N, ways), by Newton's method with a line search.

    Stops where the gradient is `tolerance` times as large as the target's part of it.
    """
    x, target, weight, _ = problem
    weights = x.new_zeros(len(x), x.shape[2], target.shape[2]) if start is None else start
    scale = norm(x.mT @ (weight * target))
    loss, gradient = problem.loss(weights), problem.gradient(weights)
    for _ in range(NEWTON_STEPS):
        open_ = norm(gradient) > tolerance * scale
        if not open_.any():
            break
        # A step of about this precision makes Newton's method converge faster than linearly.
        precision = (norm(gradient) / scale.clamp_min(EPSILON)).sqrt().clamp_max(0.1)
        goal = torch.where(open_, precision * norm(gradient), math.inf)
        direction = newton_direction(problem, weights, gradient, goal)
        slope = (gradient * direction).sum((1, 2))
        step = open_.to(x.dtype)
        for _ in range(HALVINGS):
            trial = weights + step[:, None, None] * direction
            new = problem.loss(trial)
            # Near the optimum the loss changes by less than its rounding.
            worse = ~(new <= loss + 1e-4 * step * slope + 1e-6 * loss.abs())
            if not worse.any():
                break
            step = torch.where(worse, step / 2, step)
        weights, loss, gradient = trial, new, problem.gradient(trial)
    return weights


def newton_direction(problem: Problem, weights: Tensor, gradient: Tensor, goal: Tensor) -> Tensor:
    """Return approximate Newton directions (B, N, ways), by preconditioned conjugate gradients.

    Stops where the norm of the residual is at most `goal` (B,).
    """
    x, target, weight, penalty = problem
    p = (x @ weights).softmax(-1)
    own = (p * target).sum(-1, keepdim=True)
    # The preconditioner takes all classes to have the curvature of the row's own class.
    curvature = x.mT @ (weight * (own * (1 - own)).clamp_min(1e-3) * x)
    factor = torch.linalg.cholesky(curvature + torch.diag_embed(penalty[..., 0] + EPSILON))
    direction, residual = torch.zeros_like(gradient), -gradient
    conditioned = torch.cholesky_solve(residual, factor)
    along, power = conditioned, (residual * conditioned).sum((1, 2), keepdim=True)
    for _ in range(CG_STEPS):
        open_ = (norm(residual) > goal)[:, None, None]
        if not open_.any():
            break
        slope = p * (x @ along)
        curved = x.mT @ (weight * (slope - p * slope.sum(-1, keepdim=True))) + penalty * along
        length = open_ * power / (along * curved).sum((1, 2), keepdim=True).clamp_min(1e-30)
        direction, residual = direction + length * along, residual - length * curved
        conditioned = torch.cholesky_solve(residual, factor)
        previous, power = power, (residual * conditioned).sum((1, 2), keepdim=True)
        along = conditioned + power / previous.clamp_min(1e-30) * along
    return direction


def norm(x: Tensor) -> Tensor:
    return x.square().sum((1, 2)).sqrt()


@metazoo.hookimpl
def register_algorithms() -> Mapping[str, type[metazoo.Algorithm]]:
    return {"logistic": Logistic}
