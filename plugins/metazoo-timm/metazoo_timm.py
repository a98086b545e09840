"""Encoders of images from timm (https://github.com/huggingface/pytorch-image-models)."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import metazoo

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ON_CPU, ON_GPU = 8, 128  # images at once; more take memory, and save no time on a CPU


class Timm(metazoo.Encoder):
    """An encoder of images from timm, by the name of its weights, such as resnet50.a1_in1k.

    The features are those before the classifier. The weights come from the Hugging Face Hub, or
    from a folder with `config.json` and `model.safetensors` as timm writes them.
    """

    @dataclass(frozen=True)
    class Config(metazoo.Encoder.Config):
        name: Annotated[str, "ARCHITECTURE.TAG, USER/NAME on the Hub, or a folder"] = ""
        revision: Annotated[str, "branch, tag or commit  [default: the main branch]"] = ""
        features: Annotated[
            int, "features of an image  [default: as the network has]", metazoo.Range(0)
        ] = 0

    config: Config

    def __init__(self, input_shape: tuple[int, ...], config: Any = None):
        super().__init__(input_shape, config)
        taken = self.input_format_of(self.config)
        shape = (taken["channels"], taken["size"], taken["size"])
        if self.input_shape != shape:
            raise metazoo.OptionError(
                f"encoder '{self.config.name}' takes images of shape {shape}; "
                f"these examples have shape {self.input_shape}",
                "choose other data, or another encoder",
            )
        # Counting them builds the network, so a model's file holds how many there are.
        self.out_features = self.config.features or _features(self.config)

    @classmethod
    def named(cls, name: str) -> dict[str, Any]:
        if Path(name).expanduser().is_dir():  # whose name may have an @
            return {"name": name}
        repository, _, revision = name.partition("@")
        return {"name": repository, "revision": revision}

    @classmethod
    def pinned(cls, config: Any) -> Config:
        folder = _folder(config)
        local = Path(config.name).expanduser().is_dir()
        return cls.Config(
            name=str(folder) if local else config.name,
            revision="" if local else folder.name,
            features=config.features or _features(config),
            sha256=config.sha256 or _sha256(folder),
        )

    @classmethod
    def input_format_of(cls, config: Any) -> dict[str, Any]:
        given = _described(config)["pretrained_cfg"]
        try:
            channels, height, width = given["input_size"]
            share, mode = float(given.get("crop_pct", 0.875)), given.get("crop_mode") or "center"
        except (KeyError, TypeError, ValueError) as error:
            raise metazoo.CheckpointError(
                f"the preprocessing of '{config.name}' cannot be read: {error!r}", "get it again"
            ) from error
        if height != width or channels not in (1, 3) or mode not in ("center", "squash"):
            raise metazoo.CheckpointError(
                f"'{config.name}' takes images of {width}x{height} pixels and {channels} channels "
                f"with the crop '{mode}'; metazoo gives square ones, with one or three channels",
                "choose another encoder",
            )
        crop = {} if mode == "squash" and share >= 1 else {"crop": min(share, 1.0)}
        return {"size": height, "channels": channels, "invert": False, **crop}

    @classmethod
    def load(cls, config: Any) -> nn.Module:
        folder = _folder(config)
        if config.sha256 and (found := _sha256(folder)) != config.sha256:
            raise metazoo.CheckpointError(
                f"the encoder '{config.name}' is not the one that the model was made with: the "
                f"sha256 of its weights is {found}, not {config.sha256}",
                f"restore {folder / WEIGHTS}, or make the model again",
            )
        try:
            network = _network(config, load_file(folder / WEIGHTS))
            return _Normalised(network, _described(config)["pretrained_cfg"])
        except metazoo.MetazooError:
            raise
        except Exception as error:  # a damaged file makes timm and safetensors raise anything
            raise metazoo.CheckpointError(
                f"the encoder '{config.name}' cannot be built: {error}",
                f"its files in {folder} may be damaged, or need a newer timm: `pip install -U timm`",
            ) from error

    def encode(self, network: nn.Module, x: Tensor) -> Tensor:
        size = ON_CPU if x.device.type == "cpu" else ON_GPU
        return torch.cat([network(part) for part in x.split(size)])


class _Normalised(nn.Module):
    def __init__(self, network: nn.Module, given: Mapping[str, Any]):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("mean", torch.tensor(given["mean"]).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(given["std"]).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        return self.network(x.contiguous(memory_format=torch.channels_last))


def _network(config: Any, weights: dict[str, Tensor] | None) -> nn.Module:
    """Return the network without its classifier, with weights if they are given."""
    timm = _library("timm")
    described = _described(config)
    architecture = described["architecture"]
    if not timm.is_model(architecture):  # nor a scheme, which would load something else
        raise metazoo.CheckpointError(
            f"timm has no architecture {architecture!r}", "`pip install -U timm`"
        )
    given = {**described["pretrained_cfg"], "source": "", "custom_load": False}
    if weights is not None:
        given["state_dict"] = weights
    network = timm.create_model(
        architecture,
        pretrained=weights is not None,
        pretrained_cfg=given,
        # With another number, timm would accept weights that lack some of the network's.
        num_classes=given.get("num_classes", 0),
        **described.get("model_args", {}),
    )
    network.reset_classifier(0)
    return network


def _features(config: Any) -> int:
    with torch.device("meta"):
        network: Any = _network(config, None)
    return getattr(network, "head_hidden_size", None) or network.num_features


def _described(config: Any) -> dict[str, Any]:
    """Return what config.json says of an encoder. Raises CheckpointError."""
    path = _folder(config) / CONFIG
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values["architecture"], str) and isinstance(values["pretrained_cfg"], dict):
            return values
        raise ValueError("it describes no model of timm")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise metazoo.CheckpointError(
            f"{path} cannot be read: {error!r}", "get it again"
        ) from error


def _folder(config: Any) -> Path:
    """Return the folder of an encoder's files, downloaded into huggingface_hub's cache if need be.

    Raises OptionError if there are none.
    """
    if not config.name:
        raise metazoo.OptionError(
            "backbone 'timm' needs the name of an encoder", "as in protonet@timm:resnet50.a1_in1k"
        )
    folder = Path(config.name).expanduser().absolute()
    if folder.is_dir():
        return _complete(folder, config.name)
    hub = _library("huggingface_hub")
    repository = config.name if "/" in config.name else f"timm/{config.name}"
    wanted = {"revision": config.revision or None, "allow_patterns": [CONFIG, WEIGHTS]}
    try:
        kept = Path(hub.snapshot_download(repository, local_files_only=True, **wanted))
        return _complete(kept, config.name)
    except Exception:  # it is not in the cache, or not whole
        pass
    try:
        found = Path(hub.snapshot_download(repository, **wanted))
    except Exception as error:  # each version of huggingface_hub raises those of another library
        raise metazoo.OptionError(
            f"'{repository}' is not in the cache, and cannot be got from the Hugging Face Hub: "
            f"{error}",
            "check the name and the network; or give a folder with its files",
        ) from error
    return _complete(found, config.name)


def _complete(folder: Path, name: str) -> Path:
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise metazoo.OptionError(
                f"'{name}' has no {file}",
                "choose another encoder: only safetensors are read, since a pickle can run code",
            )
    return folder


def _sha256(folder: Path) -> str:
    checksum = hashlib.sha256()
    with (folder / WEIGHTS).open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            checksum.update(block)
    return checksum.hexdigest()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision raises RuntimeError if it is built for another torch
        raise metazoo.OptionError(
            f"encoders of timm need {name}, which cannot be imported: {error}",
            "`pip install timm`; its torchvision must be built for the installed torch",
        ) from error


@metazoo.hookimpl
def register_backbones() -> Mapping[str, type[metazoo.Backbone]]:
    return {"timm": Timm}
