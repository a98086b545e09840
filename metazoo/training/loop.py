"""Meta-training: one loop for every algorithm.

Outer step i depends only on the weights before it and on (seed, i), from which its tasks and random
numbers are drawn. A run that is killed and resumed from its last checkpoint therefore ends with the
same weights, bit for bit; several processes that share the tasks of a step end with those of one
process, except for rounding.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metazoo import distributed, provenance
from metazoo.base.algorithm import Algorithm, BatchLearner, FeatureLearner
from metazoo.base.dataset import ClassDataset, Dataset
from metazoo.base.recipe import Recipe
from metazoo.device import find_device
from metazoo.errors import DataError, Interrupted, MetazooError, OptionError, disk_full
from metazoo.evaluation.measure import embedded_examples, evaluate, measure
from metazoo.evaluation.protocol import Protocol, metric
from metazoo.evaluation.score import Score
from metazoo.io.files import write_json
from metazoo.nn.augmentation import augmented
from metazoo.quoting import shell_word
from metazoo.tasks.episode import TaskSource
from metazoo.tasks.random import random_words
from metazoo.tasks.sampler import BatchSampler
from metazoo.training.plan import training_tasks
from metazoo.training.state import State, load_state, save_state
from metazoo.training.stopper import Stopper
from metazoo.version import VERSION
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.find import find, start_from
from metazoo.zoo.source import Source
from metazoo.zoo.weights import load_model, save_model

LOG_EVERY = 10
LOW_PRECISION = {"float32": None, "bf16": torch.bfloat16}
# Random numbers of steps and of tasks come from disjoint streams: tasks are numbered from 0.
STEP_STREAM = 2**62


class TrainingFailed(MetazooError):
    """Training cannot go on."""

    exit_code = 1


class Watcher:
    """Receives the progress of a run and does nothing with it; subclasses show it."""

    def step(self, step: int, steps: int, loss: float) -> None:
        """Called after each outer step."""

    def validation(self, step: int, value: float, improved: bool) -> None:
        """Called after each validation; `improved` says whether it is the best so far."""

    def test(self, done: int, count: int) -> None:
        """Called during the test with the number of tasks done and of all tasks."""


def train(
    blueprint: Blueprint,
    data: Dataset,
    folder: Path,
    watcher: Watcher,
    init: Source | None = None,
) -> dict[str, Any]:
    """Train in a run folder, from its last checkpoint if there is one, and return the test result.

    `init` is the model that the recipe's `init` names, if the caller has found it already.

    An algorithm that has no weights to train is saved and tested as it is.

    Raises Interrupted on Ctrl-C or SIGTERM, after saving, TrainingFailed if the loss is not finite
    or does not depend on the weights, or the disk is full, and DataError if a run is resumed on
    other data.
    """
    try:
        with run_folder.claimed(folder) if distributed.first() else contextlib.nullcontext():
            run = _start(blueprint, data, folder, watcher, init)
            _train(run)
            return _test(run)
    except OSError as error:
        if not disk_full(error):
            raise
        raise TrainingFailed(
            f"{error.strerror}: {error.filename}; the run in {folder} stopped",
            f"free some space; `metazoo train --resume {shell_word(folder)}` goes on from its last checkpoint",
        ) from error


@dataclass
class _Run:
    """A run in progress."""

    blueprint: Blueprint
    data: Dataset
    folder: Path
    watcher: Watcher
    device: torch.device
    model: Algorithm
    optimizer: torch.optim.Optimizer | None
    state: State

    @property
    def recipe(self) -> Recipe:
        return self.blueprint.recipe

    @property
    def finished(self) -> bool:
        patience = self.recipe.patience
        stopped_early = patience is not None and self.state.stale >= patience
        return self.state.step >= self.recipe.steps or stopped_early

    def due(self, every: int) -> bool:
        """Return whether something that happens every so many steps, and after the last, is due."""
        return self.state.step % every == 0 or self.state.step == self.recipe.steps


def _start(
    blueprint: Blueprint, data: Dataset, folder: Path, watcher: Watcher, init: Source | None
) -> _Run:
    recipe = blueprint.recipe
    begun = any((folder / name).exists() for name in (run_folder.LAST, run_folder.BEST))
    if begun and (change := blueprint.changed(data)):
        raise DataError(
            f"the data are not those that the run in {folder} began with: {change}",
            "restore them; to train on these data instead, start another run "
            f"(--init {shell_word(folder)} starts from the backbone of this one)",
        )
    device = find_device(recipe.device)
    torch.manual_seed(recipe.seed)
    model = blueprint.model().to(device)
    optimizer = make_optimizer(recipe, model)
    if optimizer is not None and (folder / run_folder.LAST).exists():
        state = load_state(folder / run_folder.LAST, model, optimizer)
        # Two versions of the code made this run, if it is resumed by another one.
        if (now := provenance.commit()) not in (None, state.commit):
            state.commit = ", ".join(filter(None, [state.commit, now]))
    else:
        state = State(commit=provenance.commit())
        if recipe.init is not None:
            init = init or distributed.on_first(partial(find, recipe.init))
            start_from(init, model)
            state.init_sha256 = init.sha256
    if isinstance(data, ClassDataset):
        data.move(device)
    return _Run(blueprint, data, folder, watcher, device, model, optimizer, state)


def _train(run: _Run) -> None:
    recipe, state = run.recipe, run.state
    if run.optimizer is None:
        with _open_log(run) as log:
            _validate(run, log)
        return
    source = _training_source(run)
    began = time.monotonic() - state.seconds
    with Stopper() as stopper, _open_log(run) as log:
        while not run.finished:
            loss = outer_step(run.model, run.optimizer, source, recipe, state.step, run.device)
            state.step += 1
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss is {loss} at step {state.step}",
                    "lower --lr (or the inner learning rate), or set --clip-grad 10",
                )
            state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
            state.seconds = time.monotonic() - began
            run.watcher.step(state.step, recipe.steps, loss)
            if run.due(LOG_EVERY):
                _log_loss(run, log)
            # Read once per step, because a signal may arrive at any time.
            stop = distributed.any_process(stopper.asked)
            if run.due(recipe.validate_every):
                _validate(run, log)
                state.seconds = time.monotonic() - began
                _save(run)
            elif stop:
                _save(run)
            if stop:
                raise Interrupted(
                    f"stopped at step {state.step} of {recipe.steps}; "
                    f"everything is saved in {run.folder}",
                    f"`metazoo train --resume {shell_word(run.folder)}` goes on",
                )


def outer_step(
    model: Algorithm,
    optimizer: torch.optim.Optimizer,
    source: TaskSource | BatchSampler,
    recipe: Recipe,
    step: int,
    device: torch.device,
) -> float:
    """Take outer step `step` and return its loss."""
    model.train()
    # One seed that all processes share, for augmentation, then one for each process.
    words = random_words(recipe.seed, STEP_STREAM + step, 1 + distributed.size())
    shared_seed, *own_seeds = (words >> 1).tolist()
    torch.manual_seed(shared_seed)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    buffers = distributed.Buffers(model)
    model.backbone.low_precision = LOW_PRECISION[recipe.precision]
    try:
        loss = _step_loss(model, source, recipe, step, device, own_seeds)
    finally:
        model.backbone.low_precision = None  # validation and test use float32
    if not loss.requires_grad:
        raise TrainingFailed(
            "the loss does not depend on the weights, so they cannot be trained",
            "if the algorithm is not meant to be trained, its weights must not require gradients "
            "(`self.requires_grad_(False)` in its constructor)",
        )
    optimizer.zero_grad()
    loss.backward()
    total = distributed.sum_gradients(model, loss)
    buffers.merge()
    if recipe.clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
    optimizer.step()
    return total


def _step_loss(
    model: Algorithm,
    source: TaskSource | BatchSampler,
    recipe: Recipe,
    step: int,
    device: torch.device,
    own_seeds: list[int],
) -> torch.Tensor:
    """Return this process's part of the loss of a step."""
    first = step * recipe.meta_batch
    if isinstance(source, BatchSampler):
        if not isinstance(model, BatchLearner):
            raise TypeError(f"{type(model).__name__} does not train on batches")
        batch = source.draw(first, recipe.meta_batch).to(device)
        return model.batch_loss(augmented(batch, recipe.augment))
    # Every process draws all tasks, which is cheap, and learns from its share.
    tasks = augmented(source.draw(first, recipe.meta_batch).to(device), recipe.augment)
    if distributed.size() == 1:
        return model.loss(tasks)
    torch.manual_seed(own_seeds[distributed.rank()])
    share = tasks[distributed.share(len(tasks))]
    return model.loss(share) * (len(share) / len(tasks))


def _log_loss(run: _Run, log: run_folder.RunLog | None) -> None:
    state = run.state
    if log is not None:
        log.write(
            state.step,
            loss=state.loss_sum / state.loss_count,
            lr=learning_rate(run.recipe, state.step - 1),
            seconds=round(state.seconds, 3),
        )
    state.loss_sum, state.loss_count = 0.0, 0


def _validate(run: _Run, log: run_folder.RunLog | None) -> None:
    """Measure the model on the validation split, and keep it if it is the best so far."""
    recipe, state = run.recipe, run.state
    _fit_base(run)
    tasks = run.data.tasks("val", recipe.ways, recipe.shots, recipe.queries, recipe.seed)
    value = Score.of(evaluate(run.model, tasks, recipe.validation_episodes, run.device)).mean
    merit = -value if run.data.regression else value
    improved = merit > state.best
    if improved:
        state.best, state.best_step, state.stale = merit, state.step, 0
        # Written before the state that mentions it: after a kill in between, this step is repeated.
        if distributed.first():
            save_model(run.folder / run_folder.BEST, run.model, run.blueprint)
    else:
        state.stale += 1
    if log is not None:
        name = f"validation_{metric(run.data)}"
        log.write(state.step, **{name: value}, seconds=round(state.seconds, 3))
    run.watcher.validation(state.step, value, improved)


def _fit_base(run: _Run) -> None:
    """Show the model the features of the training classes, if it wants to know about them."""
    model, data = run.model, run.data
    if not isinstance(model, FeatureLearner) or not isinstance(data, ClassDataset):
        return
    if type(model).fit_base is not FeatureLearner.fit_base:
        model.eval()
        base = embedded_examples(model, data.split("train"), run.device)
        counts = torch.tensor(base.counts, device=base.x.device)
        model.fit_base(
            base.x, torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        )


def _save(run: _Run) -> None:
    if distributed.first() and run.optimizer is not None:
        save_state(run.folder / run_folder.LAST, run.model, run.optimizer, run.state)


def _open_log(run: _Run) -> contextlib.AbstractContextManager[run_folder.RunLog | None]:
    """Return the log of the run; only the first process writes one."""
    # Whoever sees a log may ask the run to stop: every process must be listening by then.
    distributed.wait()
    if distributed.first():
        return run_folder.RunLog(run.folder, run.state.step)
    return contextlib.nullcontext()


def _test(run: _Run) -> dict[str, Any]:
    """Test the best model on the test split; write the result into the run folder and return it."""
    recipe, state = run.recipe, run.state
    distributed.wait()  # until the first process has written the best model
    model = load_model(run.folder / run_folder.BEST)[0].to(run.device)
    protocol = Protocol(
        "test", recipe.ways, recipe.shots, recipe.queries, recipe.seed, recipe.test_episodes
    )
    result = {
        **measure(model, run.data, protocol, run.device, run.watcher.test)[0],
        "best_step": state.best_step,
        "validation": abs(state.best),
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "machine": provenance.machine(),
        "metazoo": VERSION,
        "commit": state.commit,
        "init_sha256": state.init_sha256,
    }
    if distributed.first():
        write_json(run.folder / run_folder.RESULT, result)
    return result


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the outer learning rate of a step."""
    progress = step / recipe.steps
    factor = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "linear": 1 - progress,
    }[recipe.schedule]
    return recipe.lr * factor


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer | None:
    """Return the outer optimizer of a model's parameters, or None if there is nothing to train."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return None
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


def _training_source(run: _Run) -> TaskSource | BatchSampler:
    recipe, processes = run.recipe, distributed.size()
    if not isinstance(run.model, BatchLearner):
        if recipe.meta_batch < processes:
            raise OptionError(
                f"a meta-batch of {recipe.meta_batch} cannot be shared by {processes} processes",
                f"--meta-batch {processes}, or a multiple of it",
            )
        return training_tasks(run.data, recipe)
    if processes > 1:
        raise OptionError(
            f"algorithm '{run.blueprint.algorithm}' trains on batches, which processes cannot share",
            "train it without torchrun; PyTorch uses all cores in one process",
        )
    if not isinstance(run.data, ClassDataset):
        raise OptionError(
            f"algorithm '{run.blueprint.algorithm}' trains on classes, "
            f"and data set '{run.blueprint.dataset}' has none",
            "choose another data set",
        )
    return BatchSampler(run.data.split("train"), recipe.batch_size, recipe.seed)
