"""Encoders of the Hugging Face Hub, or of a folder, as frozen backbones."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from metazoo import options
from metazoo.backbones.hf import settings
from metazoo.backbones.hf.files import Place, find
from metazoo.backbones.hf.networks import ImageNetwork, TextNetwork
from metazoo.base.backbone import Backbone
from metazoo.base.encoder import Encoder
from metazoo.errors import CheckpointError, OptionError, first_line
from metazoo.io.files import expand_user
from metazoo.nn.by_length import by_length
from metazoo.plugins.marker import hookimpl
from metazoo.texts import read_tokenizer, token_ids

ON_CPU, ON_GPU = 8, 128  # images at once; more take memory, and save no time on a CPU


class HuggingFace(Encoder):
    """An encoder of images or texts from the Hugging Face Hub, or from a folder of that layout.

    Images: DINOv2, ViT, ConvNeXt, the image towers of CLIP and SigLIP, and other models of
    transformers. Their features are the projection (CLIP), a pooler that was trained, or the CLS
    token; preprocessing is the encoder's, with a Lanczos filter. Texts: BERT and its relatives, and
    folders of sentence-transformers with their pooling, by default the mean of the tokens; at most
    256 tokens are read. Only safetensors are read, and no code of a repository runs. An encoder in
    huggingface_hub's cache needs no network. `pip install "metazoo[hf]"`.
    """

    @dataclass(frozen=True)
    class Config(Encoder.Config):
        name: Annotated[str, "USER/NAME on the Hub, or a folder"] = ""
        revision: Annotated[str, "branch, tag or commit  [default: the main branch]"] = ""
        settings: Annotated[
            str, "sha256 of its configuration and tokenizer  [default: of those found]"
        ] = ""

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: options.Config | None = None):
        super().__init__(input_shape, config)
        place = _place(self.config)
        taken = self.input_format_of(self.config)
        if settings.takes_images(place):
            fits = self.input_shape == (taken["channels"], taken["size"], taken["size"])
            what = (
                f"images of {taken['size']}x{taken['size']} pixels and {taken['channels']} channels"
            )
        else:
            fits = len(self.input_shape) == 1 and self.input_shape[0] <= taken["length"]
            what = f"texts of at most {taken['length']} tokens"
        if not fits:
            raise OptionError(
                f"encoder '{place.name}' takes {what}; these examples have shape {self.input_shape}",
                "choose other data, or another encoder",
            )
        self.out_features = settings.features(place)

    @classmethod
    def named(cls, name: str) -> dict[str, Any]:
        if expand_user(name, "the encoder").is_dir():  # whose name may have an @
            return {"name": name}
        repository, _, revision = name.partition("@")
        return {"name": repository, "revision": revision}

    @classmethod
    def pinned(cls, config: Any) -> Config:
        place = _place(config)
        cls.input_format_of(config)
        return cls.Config(
            name=place.name,
            revision=place.commit,
            settings=config.settings or place.settings(),
            sha256=config.sha256 or place.sha256(),
        )

    @classmethod
    def input_format_of(cls, config: Any) -> dict[str, Any]:
        place = _place(config)
        if settings.takes_images(place):
            taken = settings.images(place)
            crop = {} if taken.crop is None else {"crop": taken.crop}
            return {"size": taken.size, "channels": len(taken.mean), "invert": False, **crop}
        pinned = f"@{place.commit}" if place.commit else ""
        length = settings.texts(place).length
        return {"tokenizer": f"hf:{place.name}{pinned}", "length": length}

    @classmethod
    def tokenize(cls, config: Any, texts: list[str], length: int) -> Tensor:
        place = _place(config)
        taken = settings.texts(place)
        tokenizer = _tokenizer(settings.tokenizer_of(place), length)
        raw = [taken.prompt + text for text in texts]
        return token_ids(tokenizer, [t.lower() for t in raw] if taken.lower else raw, length)

    @classmethod
    def load(cls, config: Any) -> nn.Module:
        place = _place(config)
        for what, pin, found in (
            ("weights", config.sha256, place.sha256),
            ("settings", config.settings, place.settings),
        ):
            if pin and (actual := found()) != pin:
                raise CheckpointError(
                    f"the encoder '{place.name}' is not the one that the model was made with: "
                    f"the sha256 of its {what} is {actual}, not {pin}",
                    f"restore the files in {place.folder}, or make the model again",
                )
        if settings.takes_images(place):
            return ImageNetwork(place, settings.images(place))
        return TextNetwork(place, settings.texts(place))

    def encode(self, network: nn.Module, x: Tensor) -> Tensor:
        try:
            if x.is_floating_point():
                size = ON_CPU if x.device.type == "cpu" else ON_GPU
                z = torch.cat([network(part) for part in x.split(size)])
            else:
                z = by_length(network, x)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"the encoder '{self.config.name}' cannot be used: {first_line(error)}",
                settings.OTHER,
            ) from error
        if z.dim() != 2 or z.shape[1] != self.out_features:
            raise CheckpointError(
                f"the encoder '{self.config.name}' gives features of shape {tuple(z.shape[1:])}; "
                f"its configuration says {self.out_features}",
                settings.OTHER,
            )
        return z


def _place(config: Any) -> Place:
    if not config.name:
        raise OptionError(
            "backbone 'hf' needs the name of an encoder",
            "as in protonet@hf:facebook/dinov2-small or protonet@hf:FOLDER; in training, "
            "--backbone-name has the name or the folder",
        )
    return find(config.name, config.revision)


@functools.lru_cache(maxsize=2)
def _tokenizer(contents: bytes, length: int) -> Any:
    return read_tokenizer(contents, length, "hf")


@hookimpl
def register_backbones() -> Mapping[str, type[Backbone]]:
    return {"hf": HuggingFace}
