"""Pretrained models: exported, brought by an installed distribution, found by name, verified and measured again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_run

import metazoo
from metazoo import zoo
from metazoo.backbones.conv4 import Conv4
from metazoo.cli import run
from metazoo.errors import CheckpointError, OptionError, UnknownNameError
from metazoo.evaluation.protocol import Protocol
from metazoo.plugins.registry import registry
from metazoo.zoo import run_folder, weights
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.card import read_card
from metazoo.zoo.export import command
from metazoo.zoo.weights import load_tensors, save_tensors

NAME = "protonet.tiny_3w1s"
HOOK = """
from pathlib import Path
import metazoo

@metazoo.hookimpl
def register_pretrained():
    return {path.stem: path for path in Path(__file__).parent.glob("*.json")}
"""


@pytest.fixture(scope="module")
def exported(protonet_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card and its weights."""
    out = tmp_path_factory.mktemp("exported")
    protocols = [Protocol("test", 3, shots, 3, 0, 12) for shots in (1, 2)]
    told: list[tuple[int, int]] = []
    zoo.export(
        protonet_run,
        NAME,
        "a tiny one",
        "CC0-1.0",
        out,
        protocols,
        "cpu",
        watch=lambda *n: told.append(n),
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(protocol.count for protocol in protocols)
    return out


def test_a_card_is_loaded_by_its_path(exported: Path, protonet_run: Path) -> None:
    ours, theirs = zoo.load(exported / f"{NAME}.json"), zoo.load(protonet_run)
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values())
    )


@pytest.fixture
def site(exported: Path, tmp_path: Path) -> Path:
    """A folder for sys.path that holds an installed distribution with the exported model."""
    package = tmp_path / "site" / "strangers_zoo"
    shutil.copytree(exported, package)
    (package / "__init__.py").write_text(HOOK)
    info = tmp_path / "site" / "strangers_zoo-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers-zoo\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[metazoo]\nstrangers_zoo = strangers_zoo\n")
    return package.parent


@pytest.fixture
def installed(site: Path) -> Iterator[Path]:
    """The folder of the card, while its distribution is installed in this process."""
    sys.path.insert(0, str(site))
    registry.cache_clear()
    yield site / "strangers_zoo"
    sys.path.remove(str(site))
    sys.modules.pop("strangers_zoo", None)
    registry.cache_clear()


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / f"{NAME}.json").read_text())


def write_card(folder: Path, **changes: Any) -> None:
    (folder / f"{NAME}.json").write_text(json.dumps({**card_of(folder), **changes}))


def test_a_card_says_all_that_a_reader_must_know(exported: Path, protonet_run: Path) -> None:
    card = card_of(exported)
    weights = (exported / card["weights"]).read_bytes()
    assert weights == (protonet_run / run_folder.BEST).read_bytes()
    assert card["sha256"] == hashlib.sha256(weights).hexdigest()
    assert card["bytes"] == len(weights)
    assert (card["name"], card["summary"]) == (NAME, "a tiny one")
    assert (card["algorithm"], card["backbone"], card["dataset"]) == ("protonet", "conv4", "glyphs")
    assert card["licence"] == "CC0-1.0"
    assert card["data_licence"] == "made, no data"
    assert (
        card["training"]["machine"]
        == json.loads((protonet_run / run_folder.RESULT).read_text())["machine"]
    )
    assert card["parameters"] == sum(p.numel() for p in zoo.load(protonet_run).parameters())
    assert (card["training"]["seed"], card["training"]["steps"]) == (0, 40)
    for result, shots in zip(card["results"], (1, 2)):
        assert (result["ways"], result["shots"], result["tasks"], result["seed"]) == (
            3,
            shots,
            12,
            0,
        )
        assert 0 < result["interval"] < 0.5
        assert result["transductive"] is False
    assert len(card["results"]) == 2
    assert sorted(p.name for p in exported.iterdir()) == [f"{NAME}.json", f"{NAME}.safetensors"]


@pytest.mark.parametrize("name", ["protonet_run", "maml_run", "sinusoid_run"])
def test_the_command_of_a_card_makes_the_same_run(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    blueprint = run_folder.read_blueprint(request.getfixturevalue(name))
    words = shlex.split(command(blueprint))
    assert words[:2] == ["metazoo", "train"]
    assert run([*words[1:], "--device", "cpu", "--out", str(tmp_path / "again")]) == 0
    assert run_folder.read_blueprint(tmp_path / "again") == blueprint


def test_the_command_of_a_card_names_no_place_of_this_machine(protonet_run: Path) -> None:
    blueprint = run_folder.read_blueprint(protonet_run)
    for dataset, values in (
        ("folder", {"root": "/somewhere/private", "size": 32}),
        (
            "omniglot",
            {"root": "/somewhere/private", "url": "https://mirror.private/", "split": "vinyals"},
        ),
        ("mnist", {"root": "/somewhere/private", "url": "https://mirror.private/"}),
    ):
        recipe = dataclasses.replace(blueprint.recipe, clip_grad=None, device="cuda:3")
        moved = dataclasses.replace(
            blueprint, dataset=dataset, dataset_options=values, recipe=recipe
        )
        said = command(moved)
        assert f"--dataset {dataset}" in said
        assert "private" not in said
        assert "cuda" not in said
    assert "--data-split vinyals" in command(
        dataclasses.replace(blueprint, dataset="omniglot", dataset_options={"split": "vinyals"})
    )


def test_an_exported_model_names_no_place_of_this_machine(
    tree: Path, protonet_run: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "mine" / "start"
    shutil.copytree(protonet_run, moved)
    data = {"root": str(tree), "size": 28, "val_fraction": 0.25, "test_fraction": 0.25}
    data["channels"] = "grey"
    run_ = make_run(tmp_path / "mine" / "run", "protonet", "folder", data, init=str(moved))
    out = tmp_path / "zoo"
    zoo.export(run_, NAME, "", "CC0-1.0", out, [Protocol("test", 3, 1, 3, 0, 4)], "cpu")
    said = read_card(out / f"{NAME}.json")["training"]["command"]
    assert "--data-root DATA_ROOT" in said
    places = (str(tmp_path), str(tree), str(Path.home()), tempfile.gettempdir(), str(Path.cwd()))
    for path in out.iterdir():
        held = path.read_bytes()
        assert not [place for place in places if place.encode() in held and place != "/"], path


def test_a_model_that_needs_a_file_of_this_machine_is_not_exported(
    protonet_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(protonet_run, tmp_path / "run")
    config = tmp_path / "run" / run_folder.CONFIG
    values = json.loads(config.read_text())
    values["backbone_options"]["vocabulary"] = "/somewhere/words.txt"
    config.write_text(json.dumps(values))
    with pytest.raises(OptionError, match="option 'vocabulary' of backbone 'conv4' is /somewhere"):
        zoo.export(tmp_path / "run", NAME, "", "CC0-1.0", tmp_path / "zoo", [], "cpu")


def test_an_option_that_was_switched_off_is_switched_off_in_the_command(maml_run: Path) -> None:
    blueprint = run_folder.read_blueprint(maml_run)
    off = dataclasses.replace(
        blueprint,
        recipe=dataclasses.replace(blueprint.recipe, clip_grad=None),
        algorithm_options={**blueprint.algorithm_options, "first_order": True},
    )
    assert "--clip-grad none" in command(off)
    assert "--first-order" in command(off)
    assert "--clip-grad" not in command(blueprint)


def test_a_model_of_an_installed_distribution_is_found_by_name(
    installed: Path, protonet_run: Path
) -> None:
    model = zoo.load(NAME)
    ours = zoo.load(protonet_run)
    task = torch.rand(1, 4, 1, 28, 28), torch.tensor([[0, 1, 2, 2]]), torch.rand(1, 5, 1, 28, 28)
    assert not model.training
    torch.testing.assert_close(model(*task), ours(*task))
    assert registry().card(NAME).plugin.owner == "strangers-zoo 1.2"
    with pytest.raises(
        UnknownNameError, match=r"no pretrained model named 'protonet\.tiny_3w1z'"
    ) as caught:
        zoo.load("protonet.tiny_3w1z")
    assert f"did you mean '{NAME}'" in (caught.value.hint or "")


def test_a_run_folder_and_a_file_are_models_too(protonet_run: Path) -> None:
    for name in (
        protonet_run,
        str(protonet_run),
        protonet_run / run_folder.BEST,
        str(protonet_run / run_folder.BEST),
    ):
        source = zoo.find(name)
        assert source.name == str(name)
        assert source.blueprint.algorithm == "protonet"
        assert not zoo.load(name).training


@pytest.mark.slow
def test_eval_gives_the_number_of_the_card_again(site: Path, tmp_path: Path) -> None:
    """In a process of its own, in an empty folder, as its user would."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    words = ["eval", NAME, "--shots", "1,2", "--episodes", "12", "--json"]
    code = f"from metazoo.cli import main; main({words!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    said = {"model": NAME, "data": "glyphs", "data_options": {"alphabets": 6, "seed": 0}}
    assert results == [{**said, **result} for result in card_of(site / "strangers_zoo")["results"]]


def test_the_list_shows_the_model_with_its_number_and_owner(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["list", "pretrained", "--json"]) == 0
    listed = {item["name"]: item for item in json.loads(capsys.readouterr().out)["pretrained"]}
    result = card_of(installed)["results"][0]
    assert listed[NAME] == {
        "name": NAME,
        "summary": f"{100 * result['mean']:.2f} ± {100 * result['interval']:.2f} %  glyphs, 3-way 1-shot, inductive",
        "from": "strangers-zoo 1.2",
    }


@pytest.mark.parametrize("form", ["run", "file", "card", "name"])
def test_a_file_is_parsed_once_and_a_network_built_once(
    form: str, protonet_run: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def count(*words: Any, **more: Any) -> Any:
            calls.append(name)
            return original(*words, **more)

        monkeypatch.setattr(owner, name, count)

    counted(Blueprint, "model")
    counted(weights, "tensors_of")
    counted(Conv4, "__init__")
    metazoo.load(
        {
            "run": protonet_run,
            "file": protonet_run / run_folder.BEST,
            "card": installed / f"{NAME}.json",
            "name": NAME,
        }[form]
    )
    assert sorted(calls) == ["__init__", "model", "tensors_of"]


def test_a_shipped_model_of_the_first_format_loads() -> None:
    source = zoo.find("protonet.omniglot_large")
    stored = weights.metadata_of(source.contents, "")
    assert stored["format"] == 1
    assert stored["algorithm_options"]["views"] == "shifted"
    assert "halve_every" in stored["recipe"]
    assert source.blueprint.algorithm_options["tta"] == "shifted"
    model, plain = source.model(), source.model(tta="none")
    images = torch.rand(5, 1, 28, 28)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    moved = [
        torch.roll(padded, shift, (2, 3))[..., 1:-1, 1:-1]
        for shift in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    ]
    with torch.no_grad():
        mean = torch.stack([plain.embed(image) for image in moved]).mean(0)
        torch.testing.assert_close(model.features(images), mean)


@pytest.mark.parametrize(
    ("command", "form"),
    [
        *itertools.product(["eval", "init"], ["run", "file", "name"]),
        ("export", "run"),
        ("push", "name"),
    ],
)
def test_weights_are_read_once(
    command: str,
    form: str,
    protonet_run: Path,
    installed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever comes to lie there while the command works: what was checked is what is used."""
    folder = tmp_path / "run"
    shutil.copytree(protonet_run, folder)
    name, weights = {
        "run": (str(folder), folder / run_folder.BEST),
        "file": (str(folder / run_folder.BEST), folder / run_folder.BEST),
        "name": (NAME, installed / f"{NAME}.safetensors"),
    }[form]
    quick = "--ways 3 --queries 3 --train-ways 3 --steps 1 --validate-every 1 --validation-episodes 2 --test-episodes 2"

    def outcome(out: Path) -> tuple[int, list[float], dict[str, bytes]]:
        """Return the status of the command, what it measured, and the weights that it wrote."""
        words = {
            "eval": ["eval", name, "--episodes", "20", "--json"],
            "init": [
                "train",
                "protonet",
                "--init",
                name,
                *quick.split(),
                "--data-alphabets",
                "6",
                "--backbone-width",
                "4",
            ],
            "export": ["export", name, "--name", "protonet.x", "--episodes", "20", "--json"],
            "push": ["push", name, str(out), "--json"],
        }[command]
        status = run([*words, "--out", str(out)] if command in ("init", "export") else words)
        said = capsys.readouterr().out
        measured = (
            [row["mean"] for row in json.loads(said)["results"]]
            if command in ("eval", "export") and said
            else []
        )
        return (
            status,
            measured,
            {
                path.name: path.read_bytes()
                for path in out.glob("*.safetensors")
                if path.name != run_folder.LAST
            },
        )

    tensors, metadata = load_tensors(weights)
    random = torch.Generator().manual_seed(0)
    others = tmp_path / "others.safetensors"
    save_tensors(
        others,
        {key: torch.rand(value.shape, generator=random) for key, value in tensors.items()},
        metadata,
    )

    def and_then_replaced(read: Callable[..., Any], *words: Any) -> Any:
        result = read(*words)
        shutil.copy(others, weights)
        return result

    undisturbed = outcome(tmp_path / "undisturbed")
    assert undisturbed[0] == 0
    finding = importlib.import_module("metazoo.zoo.find")
    with monkeypatch.context() as patched:
        for reader in ("read_weights", "read_verified"):
            patched.setattr(finding, reader, partial(and_then_replaced, getattr(finding, reader)))
        assert outcome(tmp_path / "replaced") == undisturbed
    assert weights.read_bytes() == others.read_bytes()
    assert outcome(tmp_path / "others") != undisturbed


def test_weights_that_were_tampered_with_are_not_read(installed: Path) -> None:
    path = installed / f"{NAME}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"weights of '{NAME}' are not those of its card"):
        zoo.load(NAME)


def test_weights_that_are_missing_are_named(installed: Path) -> None:
    (installed / f"{NAME}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"there is no .*{NAME}\.safetensors"):
        zoo.load(NAME)


def test_a_card_leads_to_no_file_elsewhere(installed: Path, protonet_run: Path) -> None:
    path = protonet_run / run_folder.BEST
    write_card(installed, weights=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="are missing"):
        zoo.load(NAME)


@pytest.mark.parametrize(
    "change", [{"sha256": None}, {"weights": 5}, {"results": {}}, {"name": []}]
)
def test_a_damaged_card_is_named_by_load_and_borne_by_list(
    installed: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_card(installed, **change)
    with pytest.raises(
        CheckpointError,
        match=rf"{NAME}\.json is not a model card: it has no '{next(iter(change))}'",
    ):
        zoo.load(NAME)
    assert run(["list", "pretrained"]) == 0
    assert "unusable card" in capsys.readouterr().out


@pytest.mark.parametrize(
    "results", [[], [{}], [5], [{"metric": "accuracy", "mean": "high", "interval": 1}]]
)
def test_odd_results_of_a_card_are_borne_by_list(
    installed: Path, results: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_card(installed, results=results)
    assert run(["list", "pretrained"]) == 0
    assert "unusable card" in capsys.readouterr().out
    assert zoo.load(NAME) is not None


def test_what_is_no_card_at_all_is_named(installed: Path) -> None:
    for text in ("", "[]", "{", '"card"'):
        (installed / f"{NAME}.json").write_text(text)
        with pytest.raises(CheckpointError, match=NAME):
            zoo.load(NAME)


def test_names_that_lead_nowhere(tmp_path: Path, protonet_run: Path) -> None:
    for name in ("protonet.nothing", "a\0b"):
        with pytest.raises(UnknownNameError, match="no pretrained model named"):
            zoo.find(name)
    for name in ("runs/nothing", "nothing.safetensors"):
        with pytest.raises(UnknownNameError, match=f"no run folder or model file {name}"):
            zoo.find(name)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        zoo.find(tmp_path)
    shutil.copy(protonet_run / run_folder.CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match="has no model yet") as caught:
        zoo.find(tmp_path)
    assert f"--resume {tmp_path}" in (caught.value.hint or "")


def test_only_a_finished_run_can_be_exported(protonet_run: Path, tmp_path: Path) -> None:
    shutil.copytree(protonet_run, tmp_path / "run")
    (tmp_path / "run" / run_folder.RESULT).unlink()
    for source, what in (
        (tmp_path / "run", "is not finished"),
        (protonet_run / run_folder.BEST, "is not a run folder"),
    ):
        with pytest.raises(CheckpointError, match=what):
            zoo.export(source, NAME, "", "MIT", tmp_path / "out", [], "cpu")
    assert not (tmp_path / "out").exists()


def test_the_zoo_ships_what_it_promises() -> None:
    shipped = {
        entry.name for entry in registry().pretrained if entry.plugin.distribution == "metazoo"
    }
    assert shipped >= {
        "protonet.omniglot",
        "matching.omniglot",
        "maml.omniglot_5w1s",
        "maml.omniglot_20w5s",
        "maml.sinusoid",
    }


@pytest.mark.slow
def test_the_sinusoid_model_answers_as_its_card_says(capsys: pytest.CaptureFixture[str]) -> None:
    card = read_card(Path(registry().card("maml.sinusoid").value))
    assert run(["eval", "maml.sinusoid", "--shots", "10,5", "--json"]) == 0
    now = json.loads(capsys.readouterr().out)["results"]
    for ours, its in zip(now, card["results"]):
        assert ours["mean"] == pytest.approx(its["mean"], rel=1e-3)
        assert (ours["shots"], ours["tasks"], ours["seed"]) == (
            its["shots"],
            its["tasks"],
            its["seed"],
        )


@pytest.mark.parametrize("name", [entry.name for entry in registry().pretrained])
def test_every_shipped_card_is_true_of_its_weights(name: str) -> None:
    source = zoo.find(name)  # checks the sha256
    card = read_card(Path(registry().card(name).value))
    assert card["name"] == name
    assert name.startswith(card["algorithm"] + ".")
    assert card["parameters"] == sum(p.numel() for p in source.model().parameters())
    assert card["training"]["command"] == command(source.blueprint)
    assert card["training"]["commit"]
    assert not card["training"]["commit"].endswith("-dirty")
    assert bool(card["training"]["init_sha256"]) == bool(source.blueprint.recipe.init)
    if init := source.blueprint.recipe.init:
        assert (
            read_card(Path(registry().card(init).value))["sha256"]
            == card["training"]["init_sha256"]
        )
    assert card["results"]
    assert all(
        {"mean", "interval", "tasks", "transductive"} <= set(result) for result in card["results"]
    )
    assert card["licence"]


def test_export_measures_variants_and_other_queries(
    maml_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        str(maml_run),
        "--name",
        "maml.tiny",
        "--out",
        str(tmp_path),
        "--episodes",
        "4",
        "--device",
        "cpu",
    ]
    assert (
        run(
            [
                *words,
                "--queries",
                "2",
                "--variant",
                "batch_norm=support,eval_inner_steps=2",
                "--json",
            ]
        )
        == 0
    )
    first, second = json.loads(capsys.readouterr().out)["results"]
    assert (first["queries"], first["transductive"], "options" in first) == (2, True, False)
    assert (second["queries"], second["transductive"]) == (2, False)
    assert second["options"] == {"batch_norm": "support", "eval_inner_steps": 2}
    for variant, what in (
        ("batch_norm", "not of the form NAME=VALUE"),
        ("nothing=1", "has no option 'nothing'"),
    ):
        assert run([*words, "--variant", variant]) == 2
        assert what in capsys.readouterr().err
