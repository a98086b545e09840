"""Training: what a run leaves, what it stops for, and that a broken run ends as one that was never broken."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import failure, output
from PIL import Image

from metazoo import provenance, zoo
from metazoo.algorithms.protonet import ProtoNet
from metazoo.base.recipe import Recipe
from metazoo.device import find_device
from metazoo.errors import CheckpointError, DataError, OptionError
from metazoo.evaluation.measure import evaluate
from metazoo.evaluation.score import NotANumber
from metazoo.io.files import write_json
from metazoo.plugins.registry import registry
from metazoo.training.loop import TrainingFailed, Watcher, learning_rate, train
from metazoo.training.plan import plan
from metazoo.zoo import run_folder
from metazoo.zoo.find import find, start_from
from metazoo.zoo.weights import load_model, load_tensors

TINY: dict[str, Any] = {
    "ways": 3,
    "train_ways": 3,
    "train_queries": 2,
    "queries": 2,
    "meta_batch": 1,
    "steps": 9,
    "validate_every": 3,
    "validation_episodes": 4,
    "test_episodes": 4,
    "device": "cpu",
}
GLYPHS = {"alphabets": 6}


def tiny(algorithm: str, **recipe: Any) -> tuple[Any, Any]:
    if algorithm == "baseline":
        given = {name: value for name, value in TINY.items() if not name.startswith("train_")}
        return plan(
            "baseline", "glyphs", {}, GLYPHS, {"width": 4}, {**given, "batch_size": 12, **recipe}
        )
    if algorithm == "maml":
        return plan("maml", "sinusoid", {"learned_rates": "per-step"}, {}, {}, {**TINY, **recipe})
    return plan(algorithm, "glyphs", {}, GLYPHS, {"width": 4}, {**TINY, **recipe})


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / run_folder.LAST)[0]


def same_ending(folder: Path, other: Path) -> None:
    """Two runs end alike: weights, optimizer, best model and metrics, but for the clock."""
    ours, theirs = state_of(folder), state_of(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert (folder / run_folder.BEST).read_bytes() == (other / run_folder.BEST).read_bytes()
    clockless = [
        [{k: v for k, v in m.items() if k != "seconds"} for m in run_folder.read_metrics(f)]
        for f in (folder, other)
    ]
    assert clockless[0] == clockless[1]
    results = [json.loads((f / run_folder.RESULT).read_text()) for f in (folder, other)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


class Crash(Exception):
    pass


class CrashAt(Watcher):
    """Breaks the run off after a step, or in a validation (behind the best model's file, before the state's)."""

    def __init__(self, step: int, in_validation: bool):
        self.at, self.in_validation = step, in_validation

    def step(self, step: int, steps: int, loss: float) -> None:
        if step == self.at and not self.in_validation:
            raise Crash

    def validation(self, step: int, value: float, improved: bool) -> None:
        if step == self.at and self.in_validation:
            raise Crash


@pytest.mark.parametrize("algorithm", ["protonet", "matching", "baseline", "maml"])
def test_a_broken_run_resumes_to_the_same_weights(algorithm: str, tmp_path: Path) -> None:
    blueprint, data = tiny(algorithm)
    run_folder.create(tmp_path / "whole", blueprint)
    train(blueprint, data, tmp_path / "whole", Watcher())
    for at, in_validation in ((2, False), (3, True), (4, False), (6, True), (9, False)):
        folder = tmp_path / f"broken-{at}-{in_validation}"
        run_folder.create(folder, blueprint)
        with pytest.raises(Crash):
            train(blueprint, data, folder, CrashAt(at, in_validation))
        # A new process would build everything anew, too.
        blueprint_again = run_folder.read_blueprint(folder)
        train(blueprint_again, blueprint_again.data(), folder, Watcher())
        same_ending(folder, tmp_path / "whole")


def test_bf16_computes_the_backbone_of_training_alone(tmp_path: Path) -> None:
    """It trains otherwise than float32, though hardly, and leaves float32 weights that are validated in float32."""
    endings = []
    for precision in ("float32", "bf16"):
        folder = tmp_path / precision
        blueprint, data = tiny("protonet", precision=precision, optimizer="sgd", lr=1e-2)
        run_folder.create(folder, blueprint)
        train(blueprint, data, folder, Watcher())
        endings.append(state_of(folder))
        model = load_model(folder / run_folder.BEST)[0]
        assert model.backbone.low_precision is None
        best = max(
            m["validation_accuracy"]
            for m in run_folder.read_metrics(folder)
            if "validation_accuracy" in m
        )
        again = evaluate(model, data.tasks("val", 3, 1, 2, 0), 4).double().mean().item()
        assert again == best
    assert all(value.dtype in (torch.float32, torch.int64) for value in endings[1].values())
    weights = [name for name in endings[0] if name.startswith("model.") and name.endswith("weight")]
    assert any(not torch.equal(endings[0][name], endings[1][name]) for name in weights)
    losses = [
        m["loss"]
        for p in ("float32", "bf16")
        for m in run_folder.read_metrics(tmp_path / p)
        if "loss" in m
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_second_derivatives_are_refused_in_bf16() -> None:
    with pytest.raises(OptionError, match="second derivatives") as caught:
        plan("maml", "glyphs", {}, GLYPHS, {"width": 4}, {**TINY, "precision": "bf16"})
    assert "leave out --precision" in (caught.value.hint or "")
    for allowed in ({"first_order": True}, {"adapt": "head"}):
        plan("maml", "glyphs", allowed, GLYPHS, {"width": 4}, {**TINY, "precision": "bf16"})


COMMAND = [sys.executable, "-m", "metazoo", "train"]
SINUSOIDS = [
    "maml",
    "--dataset",
    "sinusoid",
    "--learned-rates",
    "per-step",
    "--meta-batch",
    "4",
    "--steps",
    "400",
]
OFTEN = [
    "--validate-every",
    "20",
    "--validation-episodes",
    "10",
    "--test-episodes",
    "10",
    "--device",
    "cpu",
]


def run_until(
    arguments: list[str], log: Path, lines: int, pause: float, number: int
) -> tuple[int, str]:
    """Start a run, send it a signal a pause after its metrics have so many lines, and return its status and stderr."""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 200
        while process.poll() is None and not (
            log.exists() and log.read_bytes().count(b"\n") >= lines
        ):
            assert time.monotonic() < deadline, "the run did not get on"
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(number)
        told = process.communicate(timeout=100)[1]
    return process.returncode, told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(
        [*COMMAND, *SINUSOIDS, *OFTEN, "--out", str(folder)], check=True, capture_output=True
    )
    return folder


@pytest.mark.slow
def test_killed_at_any_moment_resumes_to_the_same_weights(whole: Path, tmp_path: Path) -> None:
    killed, moments = tmp_path / "killed", random.Random(0)
    # The first kill comes before any checkpoint; each other one in a step, a validation, or between two files.
    status, _ = run_until(
        [*SINUSOIDS, *OFTEN, "--out", str(killed)],
        killed / run_folder.CONFIG,
        1,
        0.5,
        signal.SIGKILL,
    )
    assert status == -signal.SIGKILL
    for lines in (3, 9, 20):
        resume = ["--resume", str(killed)]
        status, _ = run_until(
            resume, killed / run_folder.METRICS, lines, moments.random() * 0.05, signal.SIGKILL
        )
        assert status == -signal.SIGKILL, "it ended before it could be killed"
        assert not (killed / run_folder.RESULT).exists()
    subprocess.run([*COMMAND, "--resume", str(killed)], check=True, capture_output=True)
    same_ending(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(number: int, whole: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    status, told = run_until(
        [*SINUSOIDS, *OFTEN, "--out", str(stopped)], stopped / run_folder.METRICS, 3, 0.01, number
    )
    assert status == 130
    assert "everything is saved" in told
    assert f"hint: `metazoo train --resume {stopped}` goes on" in told
    assert "Traceback" not in told
    assert (stopped / run_folder.CURVE).read_bytes().startswith(b"\x89PNG")
    assert 20 <= load_tensors(stopped / run_folder.LAST)[1]["step"] < 400
    subprocess.run([*COMMAND, "--resume", str(stopped)], check=True, capture_output=True)
    same_ending(stopped, whole)


def test_a_run_folder_holds_what_it_says(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    blueprint, data = tiny("protonet", steps=20, validate_every=10)
    run_folder.create(tmp_path / "run", blueprint)
    result = train(blueprint, data, tmp_path / "run", Watcher())
    config = json.loads((tmp_path / "run" / run_folder.CONFIG).read_text())
    assert config["recipe"] == {
        **TINY,
        **{k: config["recipe"][k] for k in config["recipe"] if k not in TINY},
    } | {
        "steps": 20,
        "validate_every": 10,
    }
    assert set(config["recipe"]) == {field for field in Recipe.__dataclass_fields__}
    assert config["dataset_options"] == {"alphabets": 6, "seed": 0}
    metrics = run_folder.read_metrics(tmp_path / "run")
    assert [m["step"] for m in metrics if "loss" in m] == [10, 20]
    assert [m["step"] for m in metrics if "validation_accuracy" in m] == [10, 20]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # TensorBoard's reader leaves its file open
        events = EventAccumulator(str(tmp_path / "run")).Reload()
    logged = [(e.step, e.value) for e in events.Scalars("validation_accuracy")]
    assert logged == [
        (m["step"], pytest.approx(m["validation_accuracy"]))
        for m in metrics
        if "validation_accuracy" in m
    ]
    assert json.loads((tmp_path / "run" / run_folder.RESULT).read_text()) == result
    assert 0 <= result["mean"] <= 1
    assert result["interval"] > 0
    assert result["tasks"] == 4
    assert result["transductive"] is False
    names = {
        p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(("events", ".lock"))
    }
    assert names == {
        run_folder.CONFIG,
        run_folder.METRICS,
        run_folder.BEST,
        run_folder.LAST,
        run_folder.RESULT,
    }


def test_the_best_model_is_that_of_the_best_validation(tmp_path: Path) -> None:
    blueprint, data = tiny("protonet", steps=30, lr=0.01, validation_episodes=20)
    run_folder.create(tmp_path / "run", blueprint)
    result = train(blueprint, data, tmp_path / "run", Watcher())
    values = {
        m["step"]: m["validation_accuracy"]
        for m in run_folder.read_metrics(tmp_path / "run")
        if "validation_accuracy" in m
    }
    assert len(set(values.values())) > 1
    assert result["validation"] == max(values.values())
    assert result["best_step"] == min(
        step for step, value in values.items() if value == max(values.values())
    )
    best = load_model(tmp_path / "run" / run_folder.BEST)[0]
    again = evaluate(best, data.tasks("val", 3, 1, 2, 0), 20).double().mean().item()
    assert again == pytest.approx(result["validation"])


def test_early_stopping_counts_validations_without_improvement(tmp_path: Path) -> None:
    blueprint, data = tiny("maml", lr=0.0, steps=30, patience=2)
    run_folder.create(tmp_path / "run", blueprint)
    assert train(blueprint, data, tmp_path / "run", Watcher())["steps"] == 9
    # Resumed, it is still stopped.
    assert train(blueprint, data, tmp_path / "run", Watcher())["steps"] == 9


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    blueprint, data = tiny(
        "maml", optimizer="sgd", lr=1e30, schedule="constant", clip_grad=None, validate_every=9
    )
    run_folder.create(tmp_path / "run", blueprint)
    with pytest.raises(TrainingFailed, match=r"loss is (nan|inf) at step") as error:
        train(blueprint, data, tmp_path / "run", Watcher())
    assert "--lr" in str(error.value.hint)


def test_plan_takes_options_from_the_user_then_the_data_then_the_algorithm() -> None:
    recipe = plan("maml", "sinusoid")[0].recipe
    assert recipe.backbone == "mlp"  # the data's
    assert recipe.meta_batch == 25  # the data's before the algorithm's
    assert recipe.clip_grad == 10.0  # the algorithm's
    assert (
        plan("maml", "sinusoid", recipe={"clip_grad": None, "meta_batch": 2})[0].recipe.clip_grad
        is None
    )
    blueprint = plan("maml", "sinusoid", recipe={"clip_grad": None, "meta_batch": 2})[0]
    assert blueprint.recipe.meta_batch == 2


def test_train_ways_fit_the_data_unless_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, classes in (("train", 7), ("val", 5), ("test", 5)):
        for c in range(classes):
            for i in range(8):
                folder = tmp_path / split / f"{split}{c}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("L", (20, 20), (31 * c + i) % 256).save(folder / f"{i}.png")
    options = {"root": str(tmp_path), "size": 20}
    monkeypatch.chdir(tmp_path.parent)
    fit = plan(
        "protonet",
        "folder",
        dataset_options={**options, "root": tmp_path.name},
        recipe={"queries": 3},
    )[0]
    assert fit.dataset_options["root"] == str(
        tmp_path.resolve()
    )  # so that the run resumes from anywhere
    assert fit.recipe.train_ways == 7
    with pytest.raises(DataError, match="7 classes, but a task needs 8"):
        plan("protonet", "folder", dataset_options=options, recipe={"queries": 3, "train_ways": 8})
    with pytest.raises(
        DataError, match=r"train0.*8 examples, but a task needs 1 for support and 15"
    ):
        plan(
            "protonet",
            "folder",
            dataset_options=options,
            recipe={"queries": 3, "train_queries": 15},
        )


def test_a_classifier_is_not_given_regression() -> None:
    for algorithm in ("protonet", "matching", "baseline"):
        with pytest.raises(
            OptionError, match=r"has regression tasks, and algorithm .* only classifies"
        ) as error:
            plan(algorithm, "sinusoid")
        assert "maml" in str(error.value.hint)


def test_a_head_too_small_for_the_test_is_found_before_training() -> None:
    with pytest.raises(OptionError, match="head has 3 outputs, but the task has 5 classes"):
        plan("maml", "glyphs", {}, GLYPHS, {"width": 4}, {"train_ways": 3})


@pytest.mark.parametrize(
    ("algorithm", "recipe"),
    [
        ("protonet", {"batch_size": 8}),
        ("baseline", {"train_ways": 5}),
        ("baseline", {"train_queries": 5}),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(
    algorithm: str, recipe: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="does not read --"):
        plan(algorithm, "glyphs", {}, GLYPHS, {"width": 4}, recipe)


def test_a_network_too_large_is_refused() -> None:
    with pytest.raises(OptionError, match="the network cannot be built"):
        plan("protonet", "glyphs", {}, GLYPHS, {"width": 10**7})


def test_a_validation_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    blueprint, data = plan(
        "maml", "sinusoid", {"inner_lr": 50.0, "eval_inner_steps": 60}, {}, {}, {**TINY, "lr": 0.0}
    )
    run_folder.create(tmp_path / "run", blueprint)
    with pytest.raises(NotANumber, match="NaN or infinity"):
        train(blueprint, data, tmp_path / "run", Watcher())


def test_schedules() -> None:
    def rates(schedule: Any) -> list[float]:
        recipe = Recipe(schedule=schedule, steps=4, lr=2.0)
        return [learning_rate(recipe, step) for step in range(4)]

    assert rates("constant") == [2.0] * 4
    assert rates("linear") == [2.0, 1.5, 1.0, 0.5]
    assert rates("cosine") == pytest.approx([1 + math.cos(math.pi * step / 4) for step in range(4)])


def test_an_unusable_device_is_named() -> None:
    for name in ("cuda:99", "mps:7", "meta", "hpu"):
        with pytest.raises(OptionError, match=f"device '{name}' cannot be used"):
            find_device(name)
    with pytest.raises(OptionError, match="there is no device 'gpu'") as caught:
        find_device("gpu")
    assert "auto" in str(caught.value.hint)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    blueprint, data = tiny("protonet")
    run_folder.create(tmp_path / "run", blueprint)
    train(blueprint, data, tmp_path / "run", Watcher())
    other = plan("protonet", "glyphs", {}, GLYPHS, {"width": 5}, TINY)[0]
    with pytest.raises(CheckpointError, match=r"last\.safetensors does not fit"):
        train(other, data, tmp_path / "run", Watcher())


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(os.environ.get("METAZOO_DATA") or "nowhere") / "omniglot").exists(),
    reason="METAZOO_DATA names no Omniglot",
)
def test_learns_omniglot(tmp_path: Path) -> None:
    recipe = {
        "train_ways": 20,
        "steps": 50,
        "validate_every": 50,
        "validation_episodes": 20,
        "test_episodes": 100,
    }
    blueprint, data = plan(
        "protonet", "omniglot", dataset_options={"rotations": False}, recipe=recipe
    )
    run_folder.create(tmp_path / "run", blueprint)
    result = train(blueprint, data, tmp_path / "run", Watcher())
    assert result["mean"] > 0.66  # an untrained network has 0.56, this one 0.74 to 0.77


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve classes of small images, not divided into splits."""
    noise = random.Random(0)
    for c in range(12):
        (tmp_path / "photos" / f"class{c:02}").mkdir(parents=True)
        for i in range(4):
            image = Image.frombytes("L", (8, 8), noise.randbytes(64))
            image.save(tmp_path / "photos" / f"class{c:02}" / f"{i}.png")
    return tmp_path / "photos"


def on_photos(photos: Path, folder: Path) -> tuple[Any, Any]:
    """Begin a run on a folder of images and break it off after its first checkpoint."""
    options = {"root": str(photos), "size": 16, "val_fraction": 0.25, "test_fraction": 0.25}
    recipe = {**TINY, "backbone": "mlp", "queries": 2, "train_queries": 2}
    blueprint, data = plan("protonet", "folder", {}, options, {}, recipe)
    run_folder.create(folder, blueprint)
    with pytest.raises(Crash):
        train(blueprint, data, folder, CrashAt(5, False))
    return blueprint, data


CHANGES: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda photos: Image.new("L", (8, 8)).save(photos / "class03" / "0.png"),
    "a class more": lambda photos: shutil.copytree(photos / "class03", photos / "class99"),
    "a class less": lambda photos: shutil.rmtree(photos / "class03"),
    "a name": lambda photos: (photos / "class03").rename(photos / "class98"),
    "an image less": lambda photos: (photos / "class03" / "0.png").unlink(),
    "two classes exchanged": lambda photos: [
        (photos / a).rename(photos / b)
        for a, b in (("class03", "x"), ("class04", "class03"), ("x", "class04"))
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_on_other_data(
    change: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_photos(photos, tmp_path / "run")
    CHANGES[change](photos)
    error, hint = failure(capsys, 1, "train", "--resume", str(tmp_path / "run"))
    assert f"the data are not those that the run in {tmp_path / 'run'} began with" in error
    assert "--init" in hint
    words = ["eval", str(tmp_path / "run"), "--episodes", "2", "--ways", "2", "--queries", "1"]
    assert "warning: these are not the data" in output(capsys, *words)[1]
    # The same place, named otherwise.
    relative = os.path.relpath(photos)
    assert "warning: these are not the data" in output(capsys, *words, "--data-root", relative)[1]


def test_a_run_is_not_exported_on_other_data(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_photos(photos, tmp_path / "run")
    output(capsys, "train", "--resume", str(tmp_path / "run"))
    CHANGES["a name"](photos)
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "run"), "--name", "protonet.x", "--out", str(out)]
    error, _ = failure(capsys, 1, *words)
    assert f"the data are not those that the run in {tmp_path / 'run'} was trained on" in error
    assert not out.exists()


def test_a_run_is_resumed_on_the_same_data_elsewhere(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blueprint, _ = on_photos(photos, tmp_path / "run")
    photos.rename(tmp_path / "moved")
    options = {**blueprint.dataset_options, "root": str(tmp_path / "moved")}
    moved = dataclasses.replace(blueprint, dataset_options=options)
    write_json(tmp_path / "run" / run_folder.CONFIG, moved.as_dict())
    _, err = output(capsys, "train", "--resume", str(tmp_path / "run"))
    assert "warning" not in err
    _, err = output(capsys, "eval", str(tmp_path / "run"), "--episodes", "2")
    assert "warning" not in err


def test_a_run_without_a_record_of_its_data_is_resumed_with_a_warning(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_photos(photos, tmp_path / "run")
    config = tmp_path / "run" / run_folder.CONFIG
    values = json.loads(config.read_text())
    del values["split_sha256"], values["data_sha256"]
    config.write_text(json.dumps(values))
    _, err = output(capsys, "train", "--resume", str(tmp_path / "run"))
    assert err.count("has no record of its data") == 1


class Frozen(ProtoNet):
    """A learner that has nothing to train."""

    def __init__(self, *words: Any):
        super().__init__(*words)
        self.requires_grad_(False)


class Detached(ProtoNet):
    """A learner that should have something to train, and has not."""

    def loss(self, task: Any) -> torch.Tensor:
        return super().loss(task).detach()


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = registry()._kinds
    (entry,) = kinds["algorithm"]["protonet"]
    more = {
        name: [dataclasses.replace(entry, name=name, value=value)]
        for name, value in (("frozen", Frozen), ("detached", Detached))
    }
    both = {**kinds, "algorithm": {**kinds["algorithm"], **more}}
    monkeypatch.setattr(registry(), "_kinds", both)


QUICK = ["--backbone-width", "4", "--device", "cpu", "--train-ways", "3", "--test-episodes", "4"]


def test_a_learner_without_training_is_saved_evaluated_exported_and_loaded(
    untrained: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, name = str(tmp_path / "run"), "frozen.as_made"
    out, err = output(capsys, "train", "frozen", *QUICK, "--out", run)
    assert "5-way 1-shot test accuracy" in out
    assert "'frozen' has no weights to train" in err
    assert not (tmp_path / "run" / run_folder.LAST).exists()
    whole = (tmp_path / "run" / run_folder.BEST).read_bytes()
    result = (tmp_path / "run" / run_folder.RESULT).read_text()
    (tmp_path / "run" / run_folder.RESULT).unlink()  # as if it had been killed
    output(capsys, "train", "--resume", run)
    assert (tmp_path / "run" / run_folder.BEST).read_bytes() == whole
    clockless = [
        {**json.loads(text), "seconds": 0}
        for text in (result, (tmp_path / "run" / run_folder.RESULT).read_text())
    ]
    assert clockless[0] == clockless[1]
    assert clockless[0]["steps"] == 0
    output(capsys, "eval", run, "--episodes", "4")
    output(capsys, "export", run, "--name", name, "--episodes", "4", "--out", str(tmp_path / "zoo"))
    card = tmp_path / "zoo" / f"{name}.json"
    output(capsys, "eval", str(card), "--episodes", "4")
    ours, theirs = (zoo.load(path).state_dict() for path in (run, card))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_loss_without_a_gradient_is_named(
    untrained: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "detached", *QUICK, "--out", str(tmp_path / "run")]
    error, hint = failure(capsys, 1, *words)
    assert "the loss does not depend on the weights" in error
    assert "requires_grad_(False)" in hint


def test_a_run_starts_from_another_models_backbone(protonet_run: Path, tmp_path: Path) -> None:
    theirs = load_model(protonet_run / run_folder.BEST)[0].backbone.state_dict()
    blueprint, data = plan(
        "maml",
        "glyphs",
        {},
        GLYPHS,
        {"width": 4},
        {**TINY, "init": str(protonet_run), "lr": 0.0, "steps": 1},
    )
    run_folder.create(tmp_path / "run", blueprint)
    result = train(blueprint, data, tmp_path / "run", Watcher())
    ours = load_model(tmp_path / "run" / run_folder.BEST)[0].backbone.state_dict()
    assert ours
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert (
        result["init_sha256"]
        == hashlib.sha256((protonet_run / run_folder.BEST).read_bytes()).hexdigest()
    )
    # The path is this machine's own; a name of the zoo is everybody's.
    assert blueprint.recipe.init == str(protonet_run)
    assert load_model(tmp_path / "run" / run_folder.BEST)[1].recipe.init == protonet_run.name


def test_a_resumed_run_does_not_start_over_from_the_other_model(
    protonet_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(protonet_run, tmp_path / "other")
    blueprint, data = tiny("protonet", init=str(tmp_path / "other"))
    for name in ("whole", "broken"):
        run_folder.create(tmp_path / name, blueprint)
    train(blueprint, data, tmp_path / "whole", Watcher())
    with pytest.raises(Crash):
        train(blueprint, data, tmp_path / "broken", CrashAt(7, False))
    shutil.rmtree(tmp_path / "other")
    train(blueprint, data, tmp_path / "broken", Watcher())
    same_ending(tmp_path / "broken", tmp_path / "whole")


def test_a_backbone_that_does_not_fit_is_refused(protonet_run: Path, maml_run: Path) -> None:
    wide = plan("protonet", "glyphs", {}, GLYPHS, {"width": 8}, TINY)[0].model()
    with pytest.raises(
        OptionError,
        match=r"does not fit: 'blocks\.0\.weight' must have shape \(8, 1, 3, 3\), but has shape \(4, 1, 3, 3\)",
    ):
        start_from(find(protonet_run), wide)
    # MAML keeps no running statistics, which a ProtoNet needs.
    with pytest.raises(
        OptionError, match=r"'blocks\.1\.running_mean' must have shape \(4,\), but is missing"
    ):
        start_from(find(maml_run), tiny("protonet")[0].model())


def test_augmentation_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    blueprint, data = tiny("protonet", augment="drawing")
    for name in ("whole", "broken", "plain"):
        run_folder.create(tmp_path / name, tiny("protonet")[0] if name == "plain" else blueprint)
    train(blueprint, data, tmp_path / "whole", Watcher())
    with pytest.raises(Crash):
        train(blueprint, data, tmp_path / "broken", CrashAt(5, False))
    train(blueprint, data, tmp_path / "broken", Watcher())
    same_ending(tmp_path / "broken", tmp_path / "whole")
    plain, data = tiny("protonet")
    train(plain, data, tmp_path / "plain", Watcher())
    assert (tmp_path / "plain" / run_folder.BEST).read_bytes() != (
        tmp_path / "whole" / run_folder.BEST
    ).read_bytes()


def test_only_images_are_augmented() -> None:
    with pytest.raises(OptionError, match="the examples of data set 'sinusoid' are not images"):
        plan("maml", "sinusoid", {}, {}, {}, {**TINY, "augment": "photo"})


def test_a_result_names_the_commit_of_its_code(
    protonet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = json.loads((protonet_run / run_folder.RESULT).read_text())
    assert result["commit"] == provenance.commit()

    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    file = tmp_path / "metazoo" / "provenance.py"
    file.parent.mkdir()
    file.write_text("first")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.commit() is None  # no repository
    git("init", "-q")
    assert provenance.commit() is None  # somebody else's: the file is not in it
    git("add", ".")
    git("commit", "-qm", "first")
    assert provenance.commit() == git("rev-parse", "HEAD")
    file.write_text("second")
    assert provenance.commit() == git("rev-parse", "HEAD") + "-dirty"
