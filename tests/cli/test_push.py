"""`metazoo push` into folders: what is there can be loaded, and nothing that is another's is lost."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from metazoo import zoo
from metazoo.cli import run
from metazoo.plugins.registry import registry

NAME = "protonet.tiny_3w1s"
CARD, WEIGHTS = f"{NAME}.json", f"{NAME}.safetensors"
Capture = pytest.CaptureFixture[str]


def failure(capsys: Capture, *words: str) -> str:
    assert run(["push", *words]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "hint: " in err
    return err


@pytest.mark.parametrize("form", ["path", "url"])
def test_the_line_that_push_prints_loads_the_model(
    form: str, exported: Path, tmp_path: Path, capsys: Capture, protonet_run: Path
) -> None:
    folder = tmp_path / "a new folder"
    assert (
        run(["push", str(exported / CARD), str(folder) if form == "path" else folder.as_uri()]) == 0
    )
    where, line = capsys.readouterr().out.splitlines()
    assert where == f"{NAME} is in {folder}"
    assert sorted(os.listdir(folder)) == [CARD, WEIGHTS]
    for name in (CARD, WEIGHTS):
        assert (folder / name).read_bytes() == (exported / name).read_bytes()
    address = line.removeprefix('metazoo.load("').removesuffix('")')
    assert address.partition("#")[0] == (folder / CARD).as_uri()
    task = torch.rand(1, 4, 1, 28, 28), torch.tensor([[0, 1, 2, 2]]), torch.rand(1, 5, 1, 28, 28)
    torch.testing.assert_close(zoo.load(address)(*task), zoo.load(protonet_run)(*task))


def test_a_model_of_the_zoo_is_pushed_by_its_name(tmp_path: Path, capsys: Capture) -> None:
    assert run(["push", "maml.sinusoid", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    card = json.loads(Path(registry().card("maml.sinusoid").value).read_text())
    size = (tmp_path / "maml.sinusoid.safetensors").stat().st_size
    assert json.loads((tmp_path / "maml.sinusoid.json").read_text()) == {**card, "bytes": size}
    assert said == {
        "name": "maml.sinusoid",
        "where": str(tmp_path),
        "address": f"{(tmp_path / 'maml.sinusoid.json').as_uri()}#sha256={card['sha256']}",
        "sha256": card["sha256"],
    }


def test_only_the_same_model_is_replaced(exported: Path, tmp_path: Path, capsys: Capture) -> None:
    words = (str(exported / CARD), str(tmp_path))
    # What a push that was interrupted leaves; weights of another's are not replaced.
    (tmp_path / WEIGHTS).write_bytes(b"theirs")
    assert "exists and belongs to another model" in failure(capsys, *words)
    assert (tmp_path / WEIGHTS).read_bytes() == b"theirs"
    (tmp_path / WEIGHTS).write_bytes((exported / WEIGHTS).read_bytes())
    assert run(["push", *words]) == 0
    (tmp_path / CARD).write_text(
        json.dumps({**json.loads((exported / CARD).read_text()), "summary": "older"})
    )
    assert run(["push", *words]) == 0
    assert (tmp_path / CARD).read_bytes() == (exported / CARD).read_bytes()
    capsys.readouterr()
    whole = (exported / CARD).read_text()
    sha256 = json.loads(whole)["sha256"]
    for text, what in (
        ("{}", "is not a model card"),
        (whole.replace(NAME, "protonet.x", 1), "protonet.x"),
        (whole.replace(sha256, sha256[::-1]), "another model of that name"),
    ):
        (tmp_path / CARD).write_text(text)
        (tmp_path / WEIGHTS).write_bytes(b"theirs")
        assert what in failure(capsys, *words)
        assert (tmp_path / CARD).read_text() == text
        assert (tmp_path / WEIGHTS).read_bytes() == b"theirs"


def test_the_weights_come_before_the_card(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    export = importlib.import_module("metazoo.zoo.export")  # metazoo.zoo.export is its function
    monkeypatch.setattr(export, "write_atomically", lambda path, data: written.append(path.name))
    assert run(["push", str(exported / CARD), str(tmp_path)]) == 0
    assert written == [WEIGHTS, CARD]


def test_what_cannot_be_pushed(
    exported: Path, protonet_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    card = str(exported / CARD)
    out = str(tmp_path / "out")
    assert "no pretrained model named" in failure(capsys, "protonet.nothing", out)
    assert "there is no card" in failure(capsys, str(tmp_path / "nothing.json"), out)
    assert "metazoo export" in failure(capsys, str(protonet_run), out)
    assert "cannot push to" in failure(capsys, card, "https://host/folder")
    assert "is not a valid address" in failure(capsys, card, "file://[x")
    assert "another machine" in failure(capsys, card, "file://host/folder")
    assert "more than a repository" in failure(capsys, card, f"hf://us/zoo/{NAME}")
    assert "--private" in failure(capsys, card, out, "--private")
    shutil.copytree(exported, tmp_path / "bad")
    data = bytearray((exported / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "bad" / WEIGHTS).write_bytes(data)
    assert "another sha256" in failure(capsys, str(tmp_path / "bad" / CARD), out)
    (tmp_path / "bad" / WEIGHTS).write_bytes((exported / WEIGHTS).read_bytes())
    (tmp_path / "bad" / CARD).write_text(
        (exported / CARD).read_text().replace(f'"name": "{NAME}"', '"name": "../x.y"', 1)
    )
    assert "is refused" in failure(capsys, str(tmp_path / "bad" / CARD), out)
    assert not (tmp_path / "out").exists()
