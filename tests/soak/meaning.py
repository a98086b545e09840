"""Answers that mean what they seem to: what was asked is done, or it is said why not."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metazoo import provenance
from metazoo.evaluation.score import Score
from metazoo.io.files import json_text
from metazoo.zoo import run_folder

from . import jobs
from .commands import answer, command, read_json
from .material import NAME, Material, copied, folder_options, picture
from .readers import classified
from .subject import Case, Refused, Subject, must

# The 97.5 % quantile of Student's t with n - 1 degrees of freedom.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 10: 2.262, 20: 2.093, 100: 1.984}


def subjects(material: Material) -> list[Subject]:
    def run(case: Case) -> Any:
        check = CHECKS[case.number % len(CHECKS)]
        case.note(check.__name__[1:])
        try:
            return check(material)
        except Refused as error:
            must(False, f"it is refused: {error}")

    return [Subject("meaning", "answers that mislead", run, len(CHECKS), len(CHECKS), 20.0)]


def _predicted(
    material: Material, model: Any, query: Path, support: Path | None = None, options: Any = ()
) -> Any:
    """Return the rows of `metazoo predict` and what it says on stderr."""
    words = ("--model", model, "--support", support or material.support, "--query", query)
    out, err = command("predict", *words, *options, "--device", "cpu", "--json")
    return json.loads(out), err


def _one_by_one(material: Material) -> None:
    """An answer depends on the other queries only if that was asked for, and it is said for one too."""
    for options in ((), ("-o", "batch_norm=batch")):
        together, _ = _predicted(material, material.maml, material.query, options=options)
        for row in together:
            path = Path(row["file"])
            (alone,), err = _predicted(material, material.maml, path, options=options)
            same = all(
                abs(alone["probabilities"][key] - value) < 0.01
                for key, value in row["probabilities"].items()
            )
            must(same or (options and err.strip()), f"{path.name}: another answer when it is alone")


def _unequal(material: Material) -> None:
    """That classes have different numbers of examples is said."""
    root = copied(material.support, Path("support"))
    for number in range(2, 4):
        name = f"c00_{number}.png"
        shutil.copy(material.query / name, root / "c00" / name)
    sorted(root.glob("c04/*"))[0].unlink()
    _, usual = _predicted(material, material.maml, material.query)
    _, err = _predicted(material, material.maml, material.query, root)
    must(err != usual, "4, 1 and 2 examples a class: nothing is said")


def _other_light(material: Material) -> None:
    """Pictures whose ground is light where a dark one is expected, or the reverse, are spoken of."""
    _, err = _predicted(material, "protonet.omniglot", material.query)
    must(err.strip(), "light on dark, for a model of ink on paper: nothing is said")
    Path("query").mkdir()
    for path in sorted(material.query.iterdir()):
        Image.fromarray(255 - np.array(Image.open(path))).save(Path("query", path.name))
    _, err = _predicted(material, material.run, Path("query"))
    must(err.strip(), "dark on light, where the examples are light on dark: nothing is said")


def _options(material: Material) -> None:
    """An option is refused, or it changes the result."""
    words = ("eval", material.maml, "--episodes", 20, "--device", "cpu")
    usual = answer(*words)["results"][0]
    for name, value in (("inner_lr", 30.0), ("inner_steps", 9), ("eval_inner_steps", 9)):
        try:
            changed = answer(*words, "-o", f"{name}={value}")["results"][0]
        except Refused:
            continue
        same = changed["mean"] == usual["mean"] and changed["interval"] == usual["interval"]
        must(not same, f"{name}={value} is ignored")
    try:
        command(*words, "-o", "eval_inner_steps=0", "-o", "adapt=head")
    except Refused:
        return
    must(False, "adapt is ignored where no inner step is taken")


def _student(material: Material) -> None:
    """Intervals are Student's."""
    for count, quantile in STUDENT.items():
        values = torch.arange(count).double()
        wanted = quantile * values.std().item() / math.sqrt(count)
        found = Score.of(values).interval
        must(abs(found / wanted - 1) < 1e-3, f"n = {count}: {found:.4f} instead of {wanted:.4f}")


def _begun_on(data: Path) -> None:
    """Begin a run on a folder of images, as if it had been stopped before its end."""
    words = ("--ways", 2, "--queries", 1, "--steps", 4, "--validate-every", 2, "--meta-batch", 2)
    few = ("--validation-episodes", 2, "--test-episodes", 4, "--train-queries", 1)
    command(
        *("train", "protonet", "--dataset", "folder", *folder_options(data), *words, *few),
        *("--backbone-width", 4, "--out", "run", "--device", "cpu"),
    )
    Path("run", run_folder.RESULT).unlink()


def _resumed_on_other_data(material: Material) -> None:
    """A run does not go on with classes or pixels that have changed."""
    for change in ("a class", "pixels"):
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("data", ignore_errors=True)
        data = copied(material.images, Path("data"))
        _begun_on(data)
        if change == "a class":
            (data / "c00").rename(data / "c50")
        else:
            Image.fromarray(255 - picture(0, 0)).save(data / "c00" / "0.png")
        try:
            command("train", "--resume", "run")
        except Refused as error:
            must("changed" in str(error), f"{change} changed, and the error is: {error}")
        else:
            must(False, f"{change} changed: the run goes on")


def _two_exports(material: Material) -> None:
    """Of two models that are exported under one name at once, one is refused, and the other is whole."""
    other = copied(material.run, Path("other"))
    shutil.copy(material.begun / run_folder.BEST, other / run_folder.BEST)
    (first,) = (job for job in jobs.jobs(material, str) if job.name == "export")
    second = dataclasses.replace(first, words=lambda: ["export", other, *first.words()[2:]])
    for _ in range(4):
        shutil.rmtree("model", ignore_errors=True)
        running = [jobs.start(job) for job in (first, second)]
        statuses = sorted(jobs.finish(*one)[0] for one in running)
        must(statuses in ([0, 1], [0, 2]), f"two exports of one name end with {statuses}")
        must(first.written(), "nothing was exported")


def _own_classes(material: Material) -> None:
    """A model can be tested on a folder of one's own classes, all of which are used."""
    row = answer(
        *("eval", material.run, "--dataset", "folder", "--data-root", material.support),
        *("--ways", 3, "--shots", 1, "--queries", 1, "--episodes", 4, "--device", "cpu"),
    )["results"][0]
    must(row["ways"] == 3, f"{row['ways']} ways")


def _hostile_repository(material: Material) -> None:
    """The commit of the package is found without running what the repository around it asks for."""
    package = Path("repository", "metazoo")
    package.mkdir(parents=True)
    source = Path(provenance.__file__)
    shutil.copy(source, package / source.name)
    Path("repository", "run.sh").write_text(f"#!/bin/sh\ntouch {Path('ran').resolve()}\n")
    Path("repository", "run.sh").chmod(0o755)
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for words in (
        *(("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "x")),
        ("config", "core.fsmonitor", str(Path("repository", "run.sh").resolve())),
    ):
        subprocess.run(["git", *words], cwd="repository", check=True, capture_output=True)
    code = "import importlib.util as u, sys; s = u.spec_from_file_location('metazoo.provenance', sys.argv[1])\n"
    code += "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.commit())"
    subprocess.run(
        [sys.executable, "-c", code, package / source.name],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(provenance.__file__).parents[1])},
    )
    must(not Path("ran").exists(), "core.fsmonitor of the repository around it was run")


def _lists_are_json(material: Material) -> None:
    """JSON is strict, and holds null where there is no number."""
    for value in (math.nan, math.inf, -math.inf):
        read_json(json_text({"mean": value, "each": [value]}))
    for words in (("info",), ("list",), ("plugins",)):
        answer(*words)
    answer("eval", material.run, "--episodes", 2, "--device", "cpu")
    classified(material.model / f"{NAME}.json", material.support, material.query)


CHECKS: tuple[Callable[[Material], None], ...] = (
    _one_by_one,
    _unequal,
    _other_light,
    _options,
    _student,
    _resumed_on_other_data,
    _two_exports,
    _own_classes,
    _hostile_repository,
    _lists_are_json,
)
