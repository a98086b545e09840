"""Tiny encoders with random weights, in folders as transformers and sentence-transformers write them."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SMALL, "intermediate_size": 37}
# Of each kind, images of this side need no resizing, which differs between libraries.
SIDES = {"dinov2": 32, "vit": 32, "vit-pooler": 32, "convnext": 36, "clip": 32, "siglip": 32}
WORDS = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{i}" for i in range(40)), "lost", "card"]
TEXTS = ["lost card", "w1 w2 w3 w4 w5 W6", "", "nowhere", "a <pad> w7", "w8 " * 60, "</s> w9"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from warning of odd sizes, and from drawing progress bars."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def transformers() -> Any:
    return pytest.importorskip("transformers", reason='needs `pip install "metazoo[hf]"`')


def write_image_encoder(folder: Path, kind: str) -> Path:
    """Write an encoder of a kind in SIDES, or a `vit-mae`, with its preprocessing."""
    t = transformers()
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model, processor = _image_encoder(t, kind)
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def _image_encoder(t: Any, kind: str) -> tuple[Any, Any]:
    vision = {**WIDE, "image_size": 32, "patch_size": 8}
    text = {**WIDE, "vocab_size": 99, "max_position_embeddings": 16}
    square, edge = {"height": 32, "width": 32}, {"shortest_edge": 32}
    if kind == "dinov2":
        config = t.Dinov2Config(image_size=42, patch_size=14, **SMALL)
        crop = {"height": 28, "width": 28}
        return t.Dinov2Model(config), t.BitImageProcessorPil(size=edge, crop_size=crop)
    if kind == "vit":  # a classifier has no pooler
        return t.ViTForImageClassification(t.ViTConfig(**vision)), t.ViTImageProcessorPil(
            size=square
        )
    if kind == "vit-pooler":
        return t.ViTModel(t.ViTConfig(**vision)), t.ViTImageProcessorPil(size=square)
    if kind == "vit-mae":
        return t.ViTMAEModel(t.ViTMAEConfig(**vision)), t.ViTImageProcessorPil(size=square)
    if kind == "convnext":
        config = t.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        return t.ConvNextModel(config), t.ConvNextImageProcessorPil(size=edge)
    if kind == "clip":
        config = t.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
        return t.CLIPModel(config), t.CLIPImageProcessorPil(size=edge, crop_size=square)
    config = t.SiglipConfig(vision_config=vision, text_config=text)
    return t.SiglipModel(config), t.SiglipImageProcessorPil(size=square)


def write_text_encoder(folder: Path, kind: str = "bert") -> Path:
    """Write a `bert` or `roberta` with a tokenizer of words, whose padding has the id 0."""
    t = transformers()
    sizes = {**WIDE, "vocab_size": len(WORDS), "max_position_embeddings": 40, "pad_token_id": 0}
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = {
            "bert": lambda: t.BertModel(t.BertConfig(**sizes)),
            "roberta": lambda: t.RobertaModel(t.RobertaConfig(**sizes)),
        }[kind]()
        model.eval().save_pretrained(folder)
        _tokenizer(t).save_pretrained(folder)
    return folder


def _tokenizer(t: Any) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"}
    special = {f"{name}_token": token for name, token in names.items()}
    return t.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=24, **special)


def write_modules(folder: Path, pooling: dict[str, Any], *others: str, package: str) -> None:
    """Write what sentence-transformers adds to a folder: pooling, and other modules by name."""
    modules = ["Transformer", "Pooling", *others]
    paths = ["", *(f"{i + 1}_{name}" for i, name in enumerate(modules[1:]))]
    values = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{name}"}
        for i, (name, path) in enumerate(zip(modules, paths))
    ]
    (folder / "modules.json").write_text(json.dumps(values))
    for path in paths[1:]:
        (folder / path).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
