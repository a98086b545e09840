"""Encoders of the Hugging Face Hub give what transformers and sentence-transformers give."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from encoders import (
    SIDES,
    TEXTS,
    WORDS,
    quiet,
    transformers,
    write_image_encoder,
    write_modules,
    write_text_encoder,
)
from hubs import HubHandler, commit, new
from once import once
from PIL import Image

from metazoo import inputs
from metazoo.backbones.hf.encoder import HuggingFace
from metazoo.errors import CheckpointError, MetazooError, OptionError
from metazoo.zoo.find import find

pytest.importorskip("transformers", reason='needs `pip install "metazoo[hf]"`')
OLD, NEW = "sentence_transformers.models", "sentence_transformers.base.modules.x"


@pytest.fixture(scope="session")
def image_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of an image encoder of a kind, which is not to be changed."""
    return lambda kind: once(
        tmp_path_factory, f"hf-{kind}", lambda folder: write_image_encoder(folder, kind)
    )


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a text encoder of a kind, which is not to be changed."""
    return lambda kind: once(
        tmp_path_factory, f"hf-{kind}", lambda folder: write_text_encoder(folder, kind)
    )


@pytest.fixture
def bert(text_encoder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A text encoder to be changed."""
    return Path(shutil.copytree(text_encoder("bert"), tmp_path / "bert"))


@pytest.fixture
def vit(image_encoder: Callable[[str], Path], tmp_path: Path) -> Path:
    """An image encoder to be changed."""
    return Path(shutil.copytree(image_encoder("vit"), tmp_path / "vit"))


def pictures(side: int) -> list[Image.Image]:
    numbers = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    return [Image.fromarray(each) for each in numbers]


def encoder(name: Path | str) -> tuple[HuggingFace, dict[str, Any]]:
    """Return an encoder and its input format, found as ALGORITHM@hf:NAME."""
    source = find(f"protonet@hf:{name}")
    backbone = source.model().backbone
    assert isinstance(backbone, HuggingFace)
    return backbone, source.blueprint.input_format


def features(name: Path | str, raw: list[Any]) -> torch.Tensor:
    """Return the features of raw examples, as `metazoo predict` computes them."""
    backbone, taken = encoder(name)
    x = inputs.read(raw, taken)
    z = backbone(x.float() / 255 if x.dtype == torch.uint8 else x)
    assert z.shape == (len(raw), backbone.out_features)
    return z


def change(path: Path, **values: Any) -> None:
    """Set values in a JSON file; None removes one."""
    held = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))


def refused(error: type[MetazooError], name: Path | str, message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        features(name, ["w1 w2"])
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("kind", SIDES)
@torch.no_grad()
def test_features_of_images_are_those_of_transformers(
    kind: str, image_encoder: Callable[[str], Path]
) -> None:
    folder, raw = image_encoder(kind), pictures(SIDES[kind])
    t = transformers()
    with quiet():
        pixels = t.AutoImageProcessor.from_pretrained(folder)(raw, return_tensors="pt")
        model = t.AutoModel.from_pretrained(folder)
    if kind in ("clip", "siglip"):
        expected = model.get_image_features(**pixels).pooler_output
    elif kind == "vit":
        expected = model(**pixels).last_hidden_state[:, 0]
    else:
        expected = model(**pixels).pooler_output.flatten(1)
    assert expected.std(0).min() > 0  # the images differ
    torch.testing.assert_close(features(folder, raw), expected, rtol=1e-4, atol=1e-5)


def test_a_masked_autoencoder_sees_the_whole_image(
    image_encoder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    folder, raw = image_encoder("vit-mae"), pictures(32)
    torch.testing.assert_close(features(folder, raw), features(folder, raw), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "size", "crop"),
    [
        ({"size": 24}, 24, None),
        ({"size": {"height": 24, "width": 24}}, 24, None),
        ({"size": {"shortest_edge": 24}}, 24, 1.0),
        ({"size": 32, "do_center_crop": True, "crop_size": 24}, 24, 0.75),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 25}, 25, 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, 0.875),
        ({"size": {"shortest_edge": 384}, "crop_pct": 1.0}, 384, None),
    ],
)
def test_sizes_and_crops_are_read(
    values: dict[str, Any], size: int, crop: float | None, vit: Path
) -> None:
    change(vit / "preprocessor_config.json", **values)
    taken = HuggingFace.input_format_of(HuggingFace.Config(name=str(vit)))
    assert (taken["size"], taken.get("crop")) == (size, crop)
    assert inputs.check_input_format(taken) == taken


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@torch.no_grad()
def test_features_of_texts_are_the_mean_of_their_tokens(
    kind: str, text_encoder: Callable[[str], Path]
) -> None:
    folder = text_encoder(kind)
    t = transformers()
    with quiet():
        model = t.AutoModel.from_pretrained(folder)
        tokenizer = t.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:  # one at a time, so that nothing is padded
        words = tokenizer(text, truncation=True, return_tensors="pt")
        words.pop("token_type_ids", None)
        expected.append(model(**words).last_hidden_state[0].mean(0))
    assert 0 in tokenizer("a <pad> w7")["input_ids"]  # not to be taken for padding
    torch.testing.assert_close(features(folder, TEXTS), torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_pooling_is_that_of_sentence_transformers(
    text_encoder: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    with quiet():
        from sentence_transformers import SentenceTransformer
    cases: list[tuple[str, dict[str, Any], list[str]]] = [
        (OLD, {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, ["Normalize"]),
        (OLD, {"pooling_mode_cls_token": True, "word_embedding_dimension": 32}, []),
        (OLD, {"pooling_mode_max_tokens": True, "word_embedding_dimension": 32}, ["Normalize"]),
        (NEW, {"pooling_mode": "mean_sqrt_len_tokens", "embedding_dimension": 32}, []),
        (NEW, {"pooling_mode": "lasttoken", "embedding_dimension": 32}, []),
        (NEW, {"pooling_mode": ["cls", "mean"], "embedding_dimension": 32}, ["Normalize"]),
    ]
    for i, (package, pooling, others) in enumerate(cases):
        folder = Path(shutil.copytree(text_encoder("bert"), tmp_path / str(i)))
        write_modules(folder, pooling, *others, package=OLD)
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
        prompts = {"prompts": {"query": "w11 "}, "default_prompt_name": "query"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
        with quiet():
            theirs = SentenceTransformer(str(folder), device="cpu")
            expected = theirs.encode(TEXTS, convert_to_tensor=True)
        write_modules_again(folder, package)
        torch.testing.assert_close(features(folder, TEXTS), expected, atol=1e-5, rtol=1e-4)


def write_modules_again(folder: Path, package: str) -> None:
    """Name the modules as another version of sentence-transformers does."""
    path = folder / "modules.json"
    path.write_text(path.read_text().replace(OLD, package))


def test_a_folder_of_images_needs_no_name_of_a_model(
    image_encoder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_encoder("vit"), tmp_path / "a@b")
    monkeypatch.chdir(tmp_path)
    backbone, _ = encoder("a@b")
    assert backbone.config.name == str(tmp_path / "a@b")  # another working directory finds it
    assert backbone.config.sha256 == sha256(tmp_path / "a@b" / "model.safetensors")


def sha256(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_weights_in_shards_are_those_in_one_file(vit: Path) -> None:
    whole = features(vit, pictures(32))
    state = safetensors.torch.load_file(vit / "model.safetensors")
    (vit / "model.safetensors").unlink()
    names = sorted(state)
    parts = {
        "model-00001-of-2.safetensors": names[::2],
        "model-00002-of-2.safetensors": names[1::2],
    }
    for file, held in parts.items():
        safetensors.torch.save_file({name: state[name] for name in held}, vit / file)
    files = {name: file for file, held in parts.items() for name in held}
    index = vit / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    backbone, _ = encoder(vit)
    assert backbone.config.sha256 == sha256(index, *(vit / file for file in sorted(parts)))
    torch.testing.assert_close(features(vit, pictures(32)), whole)

    (vit / "model-00002-of-2.safetensors").unlink()
    refused(CheckpointError, vit, "has no model-00002-of-2", "get it again")
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    refused(CheckpointError, vit, "does not name files of weights", "get it again")


def test_half_precision_is_read_as_float32(vit: Path) -> None:
    exact = features(vit, pictures(32))
    path = vit / "model.safetensors"
    state = {name: x.half() for name, x in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(state, path)
    z = features(vit, pictures(32))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, exact, atol=1e-2, rtol=1e-2)


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="needs the name of an encoder") as caught:
        find("protonet@hf")
    assert "protonet@hf:facebook/dinov2-small" in (caught.value.hint or "")
    refused(OptionError, tmp_path / "none", "there is no folder", "USER/NAME")
    refused(OptionError, tmp_path, "has no config.json", "save_pretrained")


def test_pickles_are_refused(bert: Path) -> None:
    path = bert / "model.safetensors"
    path.rename(bert / "pytorch_model.bin")
    refused(OptionError, bert, "no model.safetensors.*pickles", "save_pretrained")


def test_damaged_and_incomplete_folders_are_refused(bert: Path, tmp_path: Path) -> None:
    def damaged(file: str, *contents: bytes) -> Path:
        folder = Path(shutil.copytree(bert, tmp_path / "damaged", dirs_exist_ok=True))
        (folder / file).unlink(missing_ok=True)
        for data in contents:
            (folder / file).write_bytes(data)
        return folder

    weights = (bert / "model.safetensors").read_bytes()
    config = json.loads((bert / "config.json").read_text())
    again = "get it again"
    refused(CheckpointError, damaged("config.json", b"{"), "config.json cannot be read", again)
    refused(CheckpointError, damaged("config.json", b"[]"), "is not what it should be", again)
    narrow = {key: value for key, value in config.items() if key != "hidden_size"}
    narrow_json = json.dumps(narrow).encode()
    refused(CheckpointError, damaged("config.json", narrow_json), "how many features", "another")
    for changed in ({"hidden_size": 34}, {"model_type": "t5"}, {"pad_token_id": 1000}):
        folder = damaged("config.json", json.dumps({**config, **changed}).encode())
        refused(CheckpointError, folder, "cannot be built|do not have", "")
    (tmp_path / "damaged" / "config.json").write_bytes((bert / "config.json").read_bytes())
    for data in (weights[:-100], b"not safetensors", weights[:100]):
        refused(CheckpointError, damaged("model.safetensors", data), "cannot be built", "damaged")
    damaged("model.safetensors", weights)
    refused(CheckpointError, damaged("tokenizer.json"), "has no tokenizer.json", "AutoTokenizer")
    refused(CheckpointError, damaged("tokenizer.json", b"{}"), "tokenizer cannot be read", again)


def test_an_unknown_type_is_named(bert: Path) -> None:
    change(bert / "config.json", model_type="mammoth", auto_map={"AutoConfig": "code.Config"})
    (bert / "code.py").write_text("raise SystemExit('this must not run')")
    refused(CheckpointError, bert, "type 'mammoth' cannot be built", "pip install -U transformers")


def test_weights_of_another_model_are_refused(bert: Path) -> None:
    change(bert / "config.json", num_hidden_layers=3)
    refused(CheckpointError, bert, r"do not have encoder\.layer\.2", "another model")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("preprocessor_config.json", {"size": {"height": 32, "width": 16}}, "size"),
        ("preprocessor_config.json", {"size": None}, "size"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean"),
        ("preprocessor_config.json", {"do_flip_channel_order": True}, "do_flip_channel_order"),
    ],
)
def test_preprocessing_that_cannot_be_applied_is_refused(
    file: str, values: dict[str, Any], message: str, vit: Path
) -> None:
    change(vit / file, **values)
    with pytest.raises(CheckpointError, match=f"preprocessing of .* cannot be applied.*{message}"):
        encoder(vit)


@pytest.mark.parametrize(
    ("pooling", "others", "message"),
    [
        ({"pooling_mode": "weightedmean"}, [], "weightedmean"),
        ({"pooling_mode": "mean", "include_prompt": False}, [], "prompt"),
        ({}, ["Dense"], "module Dense"),
    ],
)
def test_modules_that_cannot_be_applied_are_refused(
    pooling: dict[str, Any], others: list[str], message: str, bert: Path
) -> None:
    write_modules(bert, pooling, *others, package=OLD)
    refused(CheckpointError, bert, message, "")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_another_encoder_in_the_same_folder_is_refused(
    file: str, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAZOO_EMBEDDINGS", "off")
    backbone, taken = encoder(bert)
    x = inputs.read(TEXTS, taken)
    if file == "model.safetensors":
        state = safetensors.torch.load_file(bert / file)
        safetensors.torch.save_file({k: x + 1 for k, x in state.items()}, bert / file)
    else:
        (bert / file).write_text((bert / file).read_text() + "\n")
    again = HuggingFace(backbone.input_shape, backbone.config)
    with pytest.raises(CheckpointError, match="is not the one that the model was made with"):
        again(x)


def test_a_missing_package_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, use in (
        ("huggingface_hub", lambda: find("protonet@hf:us/none")),
        ("transformers", lambda: HuggingFace.load(HuggingFace.Config(name=str(bert)))),
        ("tokenizers", lambda: HuggingFace.tokenize(HuggingFace.Config(name=str(bert)), ["x"], 3)),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(OptionError, match=name) as caught:
                use()
        assert caught.value.hint == '`pip install "metazoo[hf]"`'


def test_shapes_that_do_not_fit_are_refused(vit: Path, bert: Path) -> None:
    with pytest.raises(OptionError, match="images of 32x32 pixels and 3 channels"):
        HuggingFace((1, 28, 28), HuggingFace.Config(name=str(vit)))
    with pytest.raises(OptionError, match="texts of at most 24 tokens"):
        HuggingFace((3, 32, 32), HuggingFace.Config(name=str(bert)))
    with pytest.raises(OptionError, match="needs the name"):
        HuggingFace((3, 32, 32))


FIND = """
import json, sys
from metazoo import inputs
from metazoo.errors import MetazooError
from metazoo.zoo.find import find

for name in sys.argv[1:]:
    try:
        blueprint = find(name).blueprint
        tokens = inputs.read(["lost card"], blueprint.input_format)
        print(json.dumps([blueprint.backbone_options, blueprint.input_format, tokens.tolist()]))
    except MetazooError as error:
        print(json.dumps([type(error).__name__, error.message, error.hint]))
"""


@pytest.fixture
def find_in_process(fresh_python: Any, tmp_path: Path) -> Callable[..., list[list[Any]]]:
    """Finds models of texts in a process whose Hub is the one of the tests, or none."""

    def start(*names: str, **environment: str) -> list[list[Any]]:
        variables = {
            "HF_HOME": str(tmp_path / "hf"),
            "METAZOO_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "*",
            **environment,
        }
        done = fresh_python.run(FIND, *names, env={**os.environ, **variables})
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return start


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def snapshot(tmp_path: Path, files: dict[str, bytes]) -> Path:
    """Return where huggingface_hub keeps the files of us/bert."""
    return tmp_path / "hf" / "hub" / "models--us--bert" / "snapshots" / commit(files)


def test_a_repository_is_downloaded_once_and_then_needs_no_network(
    bert: Path, serve: Any, find_in_process: Callable[..., list[list[Any]]], tmp_path: Path
) -> None:
    write_modules(bert, {"pooling_mode_cls_token": True}, "Normalize", package=OLD)
    wanted = files_of(bert)
    files = {**wanted, "pytorch_model.bin": b"cos\nsystem\n", "code.py": b"", "x/config.json": b""}
    server = serve(handler=HubHandler)
    server.repos = {"us/bert": new(main=files), "us/gated": new(gated=True, main=files)}
    server.cdn, server.tokens_at_cdn = {}, []
    first, *others = find_in_process(
        *(f"protonet@hf:us/{name}" for name in ("bert", "none", "gated")), HF_ENDPOINT=server.url
    )
    options, taken, tokens = first
    assert options["revision"] == commit(files)
    assert options["sha256"] == sha256(bert / "model.safetensors")
    assert taken == {"tokenizer": f"hf:us/bert@{commit(files)}", "length": 24}
    assert tokens[0][:4] == [WORDS.index(word) + 1 for word in ("<s>", "lost", "card", "</s>")]
    assert files_of(snapshot(tmp_path, files)) == wanted
    for name, (error, message, hint) in zip(("none", "gated"), others):
        assert error == "OptionError"
        assert f"there is no encoder 'us/{name}' on the Hugging Face Hub, or you may not" in message
        assert "hf auth login" in hint

    server.asked.clear()
    assert find_in_process("protonet@hf:us/bert", HF_ENDPOINT=server.url) == [first]
    assert not server.asked
    server.stop()
    pinned = f"protonet@hf:us/bert@{commit(files)}"
    again, (error, message, hint) = find_in_process(
        pinned, "protonet@hf:us/other", HF_ENDPOINT=server.url
    )
    assert again == first
    assert error == "OptionError"
    assert "'us/other' is not in the cache, and the Hugging Face Hub cannot be reached" in message
    assert "hf download us/other" in hint


def test_a_snapshot_that_another_program_left_incomplete_is_completed(
    bert: Path, serve: Any, find_in_process: Callable[..., list[list[Any]]], tmp_path: Path
) -> None:
    write_modules(bert, {"pooling_mode_cls_token": True}, package=OLD)
    files = files_of(bert)
    held = snapshot(tmp_path, files)
    shutil.copytree(bert, held, ignore=shutil.ignore_patterns("modules.json", "1_Pooling"))
    (held.parents[1] / "refs").mkdir()
    (held.parents[1] / "refs" / "main").write_text(commit(files))
    # Without the Hub it is used as it is.
    (alone,) = find_in_process("protonet@hf:us/bert", HF_HUB_OFFLINE="1")
    assert alone[0]["revision"] == commit(files)
    server = serve(handler=HubHandler)
    server.repos, server.cdn, server.tokens_at_cdn = {"us/bert": new(main=files)}, {}, []
    (whole,) = find_in_process("protonet@hf:us/bert", HF_ENDPOINT=server.url)
    assert files_of(held) == files
    assert alone[0]["settings"] != whole[0]["settings"]  # so cached embeddings are kept apart


def test_words_are_those_of_the_tokenizer(bert: Path) -> None:
    config = HuggingFace.Config(name=str(bert))
    x = HuggingFace.tokenize(config, ["lost CARD", "\ud800"], 6)
    ids = [WORDS.index(word) + 1 for word in ("<s>", "lost", "card", "</s>")]
    assert x[0].tolist() == [*ids, 0, 0]
    assert x[1].tolist() == [3, 2, 4, 0, 0, 0]  # a lone surrogate is an unknown word

    change(bert / "tokenizer.json", normalizer=None)
    assert HuggingFace.tokenize(config, ["lost CARD"], 6)[0, 2] == WORDS.index("<unk>") + 1
    (bert / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert HuggingFace.tokenize(config, ["lost CARD"], 6)[0].tolist() == [*ids, 0, 0]


def test_a_text_without_tokens_has_finite_features(bert: Path) -> None:
    change(bert / "tokenizer.json", post_processor=None)
    z = features(bert, ["", "lost card"])
    assert z.isfinite().all()
