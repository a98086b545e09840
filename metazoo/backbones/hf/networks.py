"""The networks of transformers, with what an encoder needs around them: normalisation, pooling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metazoo.backbones.hf.files import CONFIG, Place, library
from metazoo.backbones.hf.settings import OTHER, Images, Texts
from metazoo.errors import CheckpointError, MetazooError, first_line

# Vision transformers without a token that stands for the image.
WITHOUT_CLS = ("ijepa",)


class ImageNetwork(nn.Module):
    """Features of images in [0, 1]: those of the projection, of a trained pooler, or of the CLS token."""

    factor: Tensor
    offset: Tensor

    def __init__(self, place: Place, settings: Images):
        super().__init__()
        self.model, missing = _model(place)
        self.towers = hasattr(self.model, "get_image_features")
        if self.towers and not hasattr(self.model, "get_text_features"):
            raise CheckpointError(f"'{place.name}' generates text; it is not an encoder", OTHER)
        self.pools = not any(name.startswith("pooler.") for name in missing)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (settings.mean, settings.std))
        self.register_buffer("factor", settings.scale / std)
        self.register_buffer("offset", mean / std)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.factor - self.offset
        if self.towers:
            found = self.model.get_image_features(pixel_values=x)
            return getattr(found, "pooler_output", found)
        output = self.model(pixel_values=x)
        pooled = getattr(output, "pooler_output", None)
        if self.pools and pooled is not None:
            return pooled.flatten(1)
        tokens = output.last_hidden_state
        return tokens.mean(1) if self.model.config.model_type in WITHOUT_CLS else tokens[:, 0]


class TextNetwork(nn.Module):
    """Features of texts, pooled from those of their tokens as sentence-transformers does."""

    def __init__(self, place: Place, settings: Texts):
        super().__init__()
        self.model, _ = _model(place)
        if self.model.config.is_encoder_decoder:
            raise CheckpointError(f"'{place.name}' generates text; it is not an encoder", OTHER)
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        real = x != 0  # (N, L); ids are those of the tokenizer plus 1
        real[:, 0] = True  # some tokenizers make no token of an empty text
        ids = (x - 1).clamp(min=0)
        tokens = self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        z = torch.cat([_pooled(mode, tokens, real) for mode in self.settings.pooling], -1)
        return F.normalize(z) if self.settings.normalized else z


def _pooled(mode: str, tokens: Tensor, real: Tensor) -> Tensor:
    """Return features (N, D) of tokens (N, L, D), of which some are real (N, L)."""
    if mode == "cls":
        return tokens[:, 0]
    if mode == "max":
        return tokens.masked_fill(~real.unsqueeze(-1), float("-inf")).amax(1)
    count = real.sum(1, keepdim=True)
    if mode == "lasttoken":
        return tokens[torch.arange(len(tokens), device=tokens.device), count.squeeze(1) - 1]
    total = (tokens * real.unsqueeze(-1)).sum(1)
    return total / (count if mode == "mean" else count.sqrt())


def _model(place: Place) -> tuple[Any, set[str]]:
    """Return a model of transformers in float32, and the names of weights that its file lacks.

    Only weights of a pooler may be missing. Raises CheckpointError.
    """
    transformers = library("transformers")
    with _explained(place), _quiet(transformers):
        # Neither call runs code of the repository.
        config = transformers.AutoConfig.from_pretrained(
            place.folder, local_files_only=True, trust_remote_code=False
        )
        if hasattr(config, "mask_ratio"):  # of patches that a masked autoencoder leaves out
            config.mask_ratio = 0.0
        kind = transformers.MODEL_MAPPING[type(config)]
        state: dict[str, Tensor] = {}
        for path in place.weights():
            if path.suffix == ".safetensors":
                state |= safetensors.torch.load_file(path)
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    missing = set(info["missing_keys"])
    if needed := sorted(name for name in missing if not name.startswith("pooler.")):
        raise CheckpointError(
            f"the weights of '{place.name}' do not have {needed[0]}, nor {len(needed) - 1} others",
            "they are those of another model; get them again",
        )
    return model, missing


@contextlib.contextmanager
def _explained(place: Place) -> Iterator[None]:
    """Turn what transformers and safetensors raise into CheckpointError."""
    try:
        yield
    except (MetazooError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes them raise anything
        kind = place.json(CONFIG, dict).get("model_type")
        raise CheckpointError(
            f"the encoder '{place.name}' of type {kind!r} cannot be built: {first_line(error)}",
            "if the type is a new one: `pip install -U transformers`; if it needs code of its own, "
            "metazoo does not run it; otherwise its files are damaged",
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from printing its progress and its reports of weights."""
    logging = transformers.utils.logging
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
