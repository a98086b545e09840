"""all-MiniLM-L6-v2: its embeddings, how it is found, and what goes wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import quiet
from once import once

from metazoo import inputs
from metazoo.backbones import minilm
from metazoo.backbones.minilm import MiniLM
from metazoo.errors import CheckpointError, OptionError
from metazoo.zoo.find import find

installed = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, (minilm.PACKAGE, "tokenizers"))),
    reason='needs `pip install "metazoo[text]"`',
)
TEXTS = [
    "I lost my card",
    "my card is gone, what now?",
    "The weather is lovely today.",
    "",
    "[PAD] is a word here",
    "Ünïcödé, 日本語 and \U0001f600",
    "word " * 400,
]


def features(texts: list[str]) -> torch.Tensor:
    source = find("protonet@minilm")
    return source.model().backbone(inputs.read(texts, source.blueprint.input_format))


@installed
@pytest.mark.slow
def test_embeddings_are_those_of_sentence_transformers(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pytest.importorskip("sentence_transformers")

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(minilm._archive()) as archive:
            archive.extractall(folder)

    with quiet():
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(once(tmp_path_factory, "minilm", unpack)), device="cpu")
        expected = theirs.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(features(TEXTS), expected, atol=1e-5, rtol=0)


@installed
def test_a_text_has_the_same_embedding_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    z = features(TEXTS)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(len(TEXTS)))
    torch.testing.assert_close(features(TEXTS[::-1]).flip(0), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(features(TEXTS[3:4]), z[3:4], atol=1e-5, rtol=0)
    assert z[0] @ z[1] > z[0] @ z[2] + 0.3


@installed
def test_the_package_that_prints_is_not_imported_nor_transformers(fresh_python: Any) -> None:
    code = """
import sys
from metazoo import inputs
from metazoo.zoo.find import find
source = find("protonet@minilm")
z = source.model().backbone(inputs.read(["one", "two"], source.blueprint.input_format))
print(tuple(z.shape), {"all_minilm_l6_v2", "transformers", "sentence_transformers"} & set(sys.modules))
"""
    done = fresh_python.run(code)
    assert (done.stdout, done.stderr) == ("(2, 384) set()\n", "")


@installed
def test_the_weights_are_unpacked_once_and_a_damaged_copy_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    weights = minilm._weights()
    assert hashlib.sha256(weights).hexdigest() == minilm.WEIGHTS_SHA256
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    with monkeypatch.context() as patch:
        patch.setattr(minilm, "_archive", lambda: tmp_path / "none.zip")
        assert minilm._weights() == weights
    kept.write_bytes(weights[:-1])
    assert minilm._weights() == weights == kept.read_bytes()

    nowhere = tmp_path / "file"
    nowhere.touch()
    monkeypatch.setenv("METAZOO_CACHE", str(nowhere))
    assert minilm._weights() == weights


def test_a_damaged_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.zip"
    monkeypatch.setattr(minilm, "_archive", lambda: path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.safetensors", b"others")
        archive.writestr("../tokenizer.json", b"{}")
    for use, message in (
        (lambda: MiniLM.load(MiniLM.Config()), "is not the expected one: its sha256 is another"),
        (lambda: MiniLM.tokenize(MiniLM.Config(), ["x"], 7), "cannot be read: .*tokenizer.json"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            use()
        assert "--force-reinstall" in (caught.value.hint or "")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        MiniLM.load(MiniLM.Config())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    minilm._archive.cache_clear()
    with pytest.raises(
        OptionError, match="weights of all-MiniLM-L6-v2 are not installed"
    ) as caught:
        find("protonet@minilm")
    assert caught.value.hint == '`pip install "metazoo[text]"`'


def test_other_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match=f"their sha256 is {'0' * 64}, not 53aa"):
        MiniLM.load(MiniLM.Config(sha256="0" * 64))


@pytest.mark.parametrize("shape", [(3, 224, 224), (513,)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="texts of at most 512 tokens"):
        MiniLM(shape)


@installed
def test_it_is_one_encoder() -> None:
    with pytest.raises(OptionError, match="single encoder") as caught:
        find("protonet@minilm:base")
    assert "leave out the colon" in (caught.value.hint or "")
    blueprint = find("protonet@minilm").blueprint
    assert blueprint.backbone_options == {"sha256": minilm.WEIGHTS_SHA256}
    assert blueprint.input_format == {"tokenizer": "minilm", "length": 256}
    assert json.loads(json.dumps(blueprint.as_dict()))["spec"]["integers"]
    assert os.environ.get("TOKENIZERS_PARALLELISM") is None
