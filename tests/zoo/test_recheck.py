"""The zoo measured again beside its cards."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metazoo import pretrained, zoo
from metazoo.cli import run
from metazoo.errors import MetazooError
from metazoo.evaluation.protocol import Protocol
from metazoo.plugins.registry import registry
from metazoo.zoo.recheck import Recheck, recheck

NAME = "maml.tiny"


@pytest.fixture(scope="module")
def folder(maml_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model of glyphs with results in two variants."""
    out = tmp_path_factory.mktemp("zoo")
    protocols = [Protocol("test", 3, shots, 3, 0, 12) for shots in (1, 2)]
    zoo.export(
        maml_run,
        NAME,
        "",
        "CC0-1.0",
        out,
        protocols,
        "cpu",
        [{}, {"batch_norm": "support", "eval_inner_steps": 3}],
    )
    return out


@pytest.fixture
def card(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The card of a distribution that is installed, and the only one that has models."""
    package = tmp_path / "tiny_zoo"
    package.mkdir()
    for path in folder.iterdir():
        (package / path.name).write_bytes(path.read_bytes())
    (package / "__init__.py").write_text(
        "from pathlib import Path\nimport metazoo\n\n@metazoo.hookimpl\ndef register_pretrained():\n"
        "    return {path.stem: path for path in Path(__file__).parent.glob('*.json')}\n"
    )
    info = tmp_path / "tiny_zoo-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-zoo\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[metazoo]\ntiny_zoo = tiny_zoo\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.cache_clear()
    monkeypatch.setattr(
        registry(),
        "_kinds",
        {
            **registry()._kinds,
            "pretrained model": {NAME: registry()._kinds["pretrained model"][NAME]},
        },
    )
    yield package / f"{NAME}.json"
    sys.modules.pop("tiny_zoo", None)
    registry.cache_clear()


def change(card: Path, **values: object) -> None:
    card.write_text(json.dumps({**json.loads(card.read_text()), **values}))


def test_every_result_of_a_card_comes_again(card: Path) -> None:
    found = list(recheck(NAME))
    assert [one.card for one in found] == json.loads(card.read_text())["results"]
    assert len(found) == 4
    for one in found:
        assert one.agrees
        assert one.now is not None
        assert one.now["mean"] == one.card["mean"]
    assert [one.card["transductive"] for one in found] == [True, True, False, False]
    assert found[2].card["options"] == {"batch_norm": "support", "eval_inner_steps": 3}


def test_fewer_tasks_are_the_first_ones(card: Path) -> None:
    found = list(recheck(NAME, episodes=5))
    assert [one.now["tasks"] for one in found if one.now] == [5] * 4
    assert next(recheck(NAME, episodes=50)).now["tasks"] == 12  # type: ignore[index]


def test_a_number_that_is_not_so_is_found(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads(card.read_text())["results"]
    results[1] = {**results[1], "mean": 0.999, "interval": 0.0001}
    change(card, results=results)
    assert run(["eval", "--all", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["agrees", "DIFFERS", "agrees", "agrees"]
    assert "99.90 ± 0.01 %" in lines[2]
    assert "3 agree, 1 differ, 0 were not measured" in err
    # Each is told as it comes, too.
    told = [line for line in err.splitlines() if line.startswith("  ")]
    assert [line.split()[-1] for line in told] == ["agrees", "DIFFERS", "agrees", "agrees"]


def test_few_tasks_without_a_mistake_agree() -> None:
    """A few tasks that have hardly a mistake do not show how much the thousand of the card differ."""
    card = {"mean": 0.9970, "interval": 0.0005, "tasks": 1000}
    for mean, tasks, agrees in (
        (0.9995, 40, True),
        (0.9995, 1000, False),
        (0.9960, 1000, True),
        (0.9900, 40, False),
    ):
        assert (
            Recheck("some.model", card, {"mean": mean, "interval": 0.0006, "tasks": tasks}).agrees
            is agrees
        )


def test_the_interval_of_few_tasks_is_students() -> None:
    card = {"mean": 0.5, "interval": 0.01, "tasks": 1000}
    # A card with 1.96 for t says the same to two decimals.
    for width in (1.0, 1.96 / 1.9623):
        known = {**card, "interval": 0.01 * width}
        for difference, agrees in ((1.43, True), (1.48, False)):
            # 0.01 / 1.9623 * sqrt(1000) * 12.706 / sqrt(2) = 1.448; with 1.96 it would be 0.22.
            now = {"mean": 0.5 + difference, "interval": 0.0, "tasks": 2}
            assert Recheck("some.model", known, now).agrees is agrees


def test_other_classes_are_found(card: Path) -> None:
    change(card, split_sha256="0" * 64)
    found = list(recheck(NAME))
    assert [one.agrees for one in found] == [None] * 4
    assert "the classes of the data are not those" in (found[0].problem or "")


def test_a_model_that_cannot_be_read_does_not_stop_the_others(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(card, sha256="0" * 64)
    assert run(["eval", "--all", "--json", "--device", "cpu"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["agrees"] for one in told] == [None] * 4
    assert "another sha256" in told[0]["problem"]


@pytest.mark.parametrize(
    "results", [[{}], [5], [{"metric": "accuracy", "mean": "high", "interval": 1, "tasks": 5}]]
)
def test_odd_results_are_a_problem_of_their_model(
    card: Path, results: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    change(card, results=results)
    assert run(["eval", "--all", "--device", "cpu"]) == 1
    assert "not measured: a result of its card lacks mean" in capsys.readouterr().out


WRONG: list[object] = [None, "x", [5], {"x": []}, -1, float("nan")]
FIELDS = ["summary", "dataset", "dataset_options", "licence", "data_licence", "split_sha256"]
FIELDS += ["algorithm", "backbone", "parameters", "bytes", "training", "results", "weights", "name"]
RESULT = ["metric", "mean", "interval", "tasks", "transductive", "split", "ways", "shots"]
RESULT += ["queries", "seed", "options", "protocol"]


@pytest.mark.parametrize("key", [*FIELDS, *(f"results.{key}" for key in RESULT)])
def test_a_wrong_type_anywhere_in_a_card_is_told(
    card: Path, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command prints a traceback, and those for all models show the others."""
    whole = json.loads(card.read_text())
    *within, name = key.split(".")
    for number, value in enumerate(WRONG):
        results = [{**whole["results"][0], name: value}]
        card.write_text(json.dumps(whole | ({"results": results} if within else {name: value})))
        assert run(["list", "pretrained"]) == 0
        out = capsys.readouterr().out
        assert NAME in out
        for one in recheck(NAME, episodes=2):
            assert one.problem or one.now
        try:
            zoo.load(card)
        except MetazooError:
            named = ("name", "weights", "results", "algorithm", "backbone", "dataset")
            assert name in named
        status = run(["push", str(card), str(tmp_path / str(number))])
        err = capsys.readouterr().err
        assert status == 0 or err.startswith("error: "), err
        assert "Traceback" not in err


def test_what_a_plugin_raises_is_a_problem_of_its_model(
    card: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(self: object, *words: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(registry().algorithm("maml").value, "forward", raising)
    assert {one.problem for one in recheck(NAME, episodes=2)} == {"RuntimeError: a bug"}


def test_a_card_that_is_none_does_not_stop_the_others(
    folder: Path, card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = registry()._kinds
    (entry,) = kinds["pretrained model"][NAME]
    broken = card.with_name("broken.json")
    broken.write_text("{}")
    both = {"maml.a": [dataclasses.replace(entry, name="maml.a", value=broken)], NAME: [entry]}
    monkeypatch.setattr(registry(), "_kinds", {**kinds, "pretrained model": both})
    assert run(["eval", "--all", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "not measured" in lines[1]
    assert "is not a model card" in lines[1]
    assert [line.split()[-1] for line in lines[2:]] == ["agrees"] * 4
    assert "4 agree, 0 differ, 1 were not measured" in err


def test_all_is_all(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([NAME], ["--shots", "5"], ["-o", "x=1"], ["--split", "val"]):
        assert run(["eval", "--all", *words]) == 2
        assert "--all evaluates every model as its card says" in capsys.readouterr().err


SHIPPED = sorted(path.stem for path in Path(pretrained.__file__).parent.glob("*.json"))
TASKS = {"maml.omniglot_20w5s": 3, "protonet.omniglot_large": 3}  # seconds each


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(os.environ.get("METAZOO_DATA") or "nowhere") / "omniglot").exists(),
    reason="METAZOO_DATA names no Omniglot",
)
@pytest.mark.parametrize("name", SHIPPED)
def test_the_zoo_is_as_its_cards_say(name: str) -> None:
    """The quick part: the first tasks of every result. `metazoo eval --all` measures all tasks."""
    found = list(recheck(name, episodes=TASKS.get(name, 4)))
    assert found
    assert [one for one in found if not one.agrees] == []


def test_every_registered_model_is_rechecked() -> None:
    assert {entry.name for entry in registry().pretrained} == set(SHIPPED)
