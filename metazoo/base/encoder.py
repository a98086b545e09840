"""The base class of encoders: pretrained backbones that stay frozen."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from metazoo import options
from metazoo.base.backbone import Backbone
from metazoo.errors import OptionError
from metazoo.io.embedding_cache import remembered


class Encoder(Backbone):
    """A pretrained backbone that is neither trained nor copied into a model's file.

    The options name it and hold the sha256 of its weights. Embeddings are cached on disk
    (`metazoo.io.embedding_cache`). A subclass extends `Encoder.Config` and implements `pinned`,
    `input_format_of`, `load` and `encode`; one that has several encoders implements `named`, one of
    texts `tokenize`. Constructing an encoder reads no weights.
    """

    @dataclass(frozen=True)
    class Config(options.Config):
        sha256: Annotated[str, "sha256 of the weights  [default: of those found]"] = (
            dataclasses.field(default="", kw_only=True)
        )

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        # Moves with the model; the network itself is shared by all encoders of these options.
        self.register_buffer("_place", torch.empty(0), persistent=False)

    @classmethod
    def named(cls, name: str) -> dict[str, Any]:
        """Return the options for a name, as in `protonet@BACKBONE:NAME`; "" if none was given.

        Raises OptionError if there cannot be such an encoder.
        """
        if name:
            raise OptionError(
                f"this backbone is a single encoder, and the name '{name}' follows it",
                "leave out the colon and the name",
            )
        return {}

    @classmethod
    def pinned(cls, config: Any) -> Any:
        """Return the options with the sha256 of the weights, and of all else that identifies them.

        Raises OptionError if the encoder is not installed or cannot be read.
        """
        raise NotImplementedError

    @classmethod
    def input_format_of(cls, config: Any) -> dict[str, Any]:
        """Return how a raw example becomes a tensor; see `metazoo.inputs`."""
        raise NotImplementedError

    @classmethod
    def tokenize(cls, config: Any, texts: list[str], length: int) -> Tensor:
        """Return the token ids of texts, (N, length) int64; 0 pads at the end."""
        raise NotImplementedError

    @classmethod
    def load(cls, config: Any) -> nn.Module:
        """Read the weights and return the network.

        Raises CheckpointError if their sha256 is not that of the options.
        """
        raise NotImplementedError

    def encode(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return the features (N, out_features) of examples (N, *input_shape)."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The frozen network, on the device of this module, in eval mode."""
        return _network(type(self), self.config, self._place.device)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        identity = json.dumps([type(self).__qualname__, options.as_dict(self.config)])
        # Cached embeddings must not depend on the precision of a training around them.
        with torch.autocast(x.device.type, enabled=False):
            return remembered(identity, x, self._encode, self.out_features)

    def _encode(self, x: Tensor) -> Tensor:
        return self.encode(self.network, x.float() if x.is_floating_point() else x).float()


@functools.lru_cache(maxsize=2)
def _network(encoder: type[Encoder], config: Any, device: torch.device) -> nn.Module:
    return encoder.load(config).eval().requires_grad_(False).to(device)
