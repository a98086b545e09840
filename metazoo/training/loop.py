"""Meta-training: one loop for every algorithm.

Step i is a function of the weights before it and of (seed, i) alone: its tasks and its random numbers are drawn from these.
So a run that is stopped, or killed, and resumed from its last checkpoint ends with the same weights, bit for bit; and several
processes, which share out the tasks of a step, end with those of one, but for rounding.
"""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from metazoo import distributed
from metazoo.base.algorithm import Algorithm
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.recipe import Recipe
from metazoo.device import find_device
from metazoo.errors import MetazooError, OptionError
from metazoo.evaluation.measure import evaluate, measure
from metazoo.evaluation.protocol import Protocol, metric
from metazoo.evaluation.score import Score
from metazoo.io.files import write_json
from metazoo.nn.augmentation import augmented
from metazoo.tasks.episode import Batch, Episode, TaskSource
from metazoo.tasks.random import random_words
from metazoo.tasks.sampler import BatchSampler
from metazoo.training.plan import training_tasks
from metazoo.training.state import State, load_state, save_state
from metazoo.training.stopper import Stopper
from metazoo.version import VERSION
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.find import Source, find, start_from
from metazoo.zoo.weights import load_model, save_model

LOG_EVERY = 10


LOW_PRECISION = {"float32": None, "bf16": torch.bfloat16}


STEP_STREAM = 2**62  # tasks are numbered from 0: no step has the random numbers of a task


class Interrupted(MetazooError):
    """The user stopped the run; everything is saved."""

    exit_code = 130


class TrainingFailed(MetazooError):
    """Training cannot go on."""

    exit_code = 1


class Watcher:
    """Is told of a run's progress, and says nothing; a subclass shows it."""

    def step(self, step: int, steps: int, loss: float) -> None:
        """An outer step is done."""

    def validation(self, step: int, value: float, improved: bool) -> None:
        """A validation is done; `improved` says whether it is the best so far."""

    def test(self, done: int, count: int) -> None:
        """So many tasks of the test are done."""


def train(
    blueprint: Blueprint, data: Dataset, folder: Path, watcher: Watcher, init: Source | None = None
) -> dict[str, Any]:  # fmt: skip
    """Train in a run folder, from its last checkpoint if it has one, and return the test's result.

    `init` is the model that the recipe's `init` names, where it was found already: its address may have another one by now.

    Raises Interrupted on Ctrl-C (or SIGTERM), after saving, and TrainingFailed where the loss is not finite.
    """
    with run_folder.claimed(folder) if distributed.first() else contextlib.nullcontext():
        return _train(blueprint, data, folder, watcher, init)


def _train(
    blueprint: Blueprint, data: Dataset, folder: Path, watcher: Watcher, init: Source | None
) -> dict[str, Any]:  # fmt: skip
    recipe = blueprint.training()
    device = find_device(recipe.device)
    torch.manual_seed(recipe.seed)
    model = blueprint.model().to(device)
    optimizer = make_optimizer(recipe, model)
    if (folder / run_folder.LAST).exists():
        state = load_state(folder / run_folder.LAST, model, optimizer)
        # A run that other code went on with was made by both.
        if (now := run_folder.commit()) not in (None, state.commit):
            state.commit = ", ".join(filter(None, [state.commit, now]))
    else:
        state = State(commit=run_folder.commit())
        if recipe.init is not None:
            init = init or distributed.by_first(partial(find, recipe.init))
            start_from(init, model)
            state.init_sha256 = init.sha256
    if isinstance(data, ClassDataset):
        data.move(device)
    source = _training_source(data, blueprint, model)
    validation = data.tasks("val", recipe.ways, recipe.shots, recipe.queries, recipe.seed)

    began = time.monotonic() - state.seconds
    first = distributed.first()
    with Stopper() as stopper, _log(folder, state.step) as log:
        while state.step < recipe.steps and not (
            recipe.patience and state.stale >= recipe.patience
        ):
            loss = outer_step(model, optimizer, source, recipe, state.step, device)
            state.step += 1
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss is {loss} at step {state.step}",
                    "lower --lr (or the inner rate), or set --clip-grad 10",
                )
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            watcher.step(state.step, recipe.steps, loss)
            if state.step % LOG_EVERY == 0 or state.step == recipe.steps:
                state.seconds = time.monotonic() - began
                mean_loss, lr = (
                    state.loss_sum / state.loss_count,
                    learning_rate(recipe, state.step - 1),
                )
                log.write(state.step, loss=mean_loss, lr=lr, seconds=round(state.seconds, 3))
                state.loss_sum, state.loss_count = 0.0, 0
            asked = distributed.anyone(
                stopper.asked
            )  # read once: between two looks a signal may come
            if state.step % recipe.validate_every == 0 or state.step == recipe.steps:
                value = Score.of(
                    evaluate(model, validation, recipe.validation_episodes, device)
                ).mean
                # The best model is written before the state that speaks of it: a kill in between only means doing this again.
                merit = -value if data.regression else value
                improved = merit > state.best
                if improved:
                    state.best, state.best_step, state.stale = merit, state.step, 0
                    if first:
                        save_model(folder / run_folder.BEST, model, blueprint)
                else:
                    state.stale += 1
                state.seconds = time.monotonic() - began
                log.write(
                    state.step,
                    **{f"validation_{metric(data)}": value},
                    seconds=round(state.seconds, 3),
                )
                watcher.validation(state.step, value, improved)
            elif asked:
                state.seconds = time.monotonic() - began
            else:
                continue
            if first:
                save_state(folder / run_folder.LAST, model, optimizer, state)
            if asked:
                raise Interrupted(
                    f"stopped at step {state.step} of {recipe.steps}; everything is saved in {folder}",
                    f"`metazoo train --resume {folder}` goes on",
                )
    return test(blueprint, data, folder, state, device, watcher)


def outer_step(
    model: Algorithm, optimizer: torch.optim.Optimizer, source: TaskSource | BatchSampler, recipe: Recipe, step: int,
    device: torch.device,
) -> float:  # fmt: skip
    """Take outer step `step` and return its loss.

    Every process draws and varies all tasks of the step, which costs little, and learns from its share of them.
    """
    model.train()
    seeds = (random_words(recipe.seed, STEP_STREAM + step, 1 + distributed.size()) >> 1).tolist()
    torch.manual_seed(seeds[0])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    task: Episode | Batch = source.draw(step * recipe.meta_batch, recipe.meta_batch).to(device)
    task, weight = augmented(task, recipe.augment), 1.0
    if distributed.size() > 1:
        assert isinstance(task, Episode)
        share = task[distributed.share(len(task))]
        task, weight = share, len(share) / len(task)
        torch.manual_seed(seeds[1 + distributed.rank()])
    buffers = distributed.Buffers(model)
    model.backbone.low_precision = LOW_PRECISION[recipe.precision]
    try:
        loss = model.loss(task) * weight
    finally:
        model.backbone.low_precision = None  # validation and test compute in float32
    optimizer.zero_grad()
    loss.backward()
    total = distributed.add_up(model, loss)
    buffers.merge()
    if recipe.clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
    optimizer.step()
    return total


def test(
    blueprint: Blueprint,
    data: Dataset,
    folder: Path,
    state: State,
    device: torch.device,
    watcher: Watcher,
) -> dict[str, Any]:
    """Test the best model on the test split; write the result into the run folder and return it."""
    recipe = blueprint.training()
    distributed.wait()  # until the first process has written the best model
    model = load_model(folder / run_folder.BEST)[0].to(device)
    protocol = Protocol(
        "test", recipe.ways, recipe.shots, recipe.queries, recipe.seed, recipe.test_episodes
    )
    result = {
        **measure(model, data, protocol, device, watcher.test)[0],
        "best_step": state.best_step,
        "validation": abs(state.best),
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "machine": run_folder.machine(),
        "metazoo": VERSION,
        "commit": state.commit,
        "init_sha256": state.init_sha256,
    }
    if distributed.first():
        write_json(folder / run_folder.RESULT, result)
    return result


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the outer learning rate of a step."""
    progress = step / recipe.steps
    factor = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - progress,
        "halving": 0.5 ** (step // recipe.halve_every),
    }[recipe.schedule]
    return recipe.lr * factor


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return the outer optimizer of a model's parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise OptionError("this algorithm has nothing to train", "use it with `metazoo eval`")
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    nesterov = recipe.optimizer == "nesterov"
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=0.9 if nesterov else 0.0,
        nesterov=nesterov,
    )


def _log(folder: Path, step: int) -> run_folder.RunLog | _NoLog:
    """Return the log that this process keeps of a run."""
    distributed.wait()  # who sees a log may ask the run to stop: by now every process listens
    return run_folder.RunLog(folder, step) if distributed.first() else _NoLog()


class _NoLog:
    """What a process that is not the first keeps of a run."""

    def __enter__(self) -> _NoLog:
        return self

    def write(self, step: int, **values: float) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def _training_source(
    data: Dataset, blueprint: Blueprint, model: Algorithm
) -> TaskSource | BatchSampler:
    recipe, processes = blueprint.training(), distributed.size()
    if model.draws == "episodes":
        if recipe.meta_batch < processes:
            raise OptionError(
                f"{processes} processes cannot share out a meta-batch of {recipe.meta_batch}",
                f"--meta-batch {processes}, or a multiple of it",
            )
        return training_tasks(data, recipe)
    if processes > 1:
        raise OptionError(
            f"algorithm '{blueprint.algorithm}' trains on batches, and only tasks are shared out among processes",
            "train it without torchrun; PyTorch uses all cores of one process",
        )
    assert isinstance(data, ClassDataset)
    return BatchSampler(data.split("train"), recipe.batch_size, recipe.seed)
