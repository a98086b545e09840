"""What the JSON files of an encoder say: how examples become tensors, and what is pooled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metazoo.backbones.hf.files import CONFIG, TOKENIZER, Place
from metazoo.errors import CheckpointError

LENGTH = 256  # the most tokens of a text; attention to more takes long, and few texts have them
POOLING = re.compile(r"\d+_Pooling")
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken")
# The same before sentence-transformers 6.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Steps of preprocessing that are not applied, so that their encoders would give other features.
STEPS = ("do_flip_channel_order", "rescale_offset")
OTHER = "choose another encoder"


@dataclass(frozen=True)
class Images:
    """How an encoder takes images: (scale * x - mean) / std for pixels x in [0, 1]."""

    size: int
    crop: float | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Texts:
    """How an encoder takes texts, and what it does with the features of their tokens."""

    length: int
    lower: bool
    prompt: str
    pooling: tuple[str, ...]
    normalized: bool


def takes_images(place: Place) -> bool:
    """Return whether an encoder is for images; otherwise it is for texts."""
    config = place.json(CONFIG, dict)
    return any(key in config for key in ("vision_config", "image_size", "num_channels"))


def features(place: Place) -> int:
    """Return how many features an encoder gives. Raises CheckpointError if it does not say so."""
    config = place.json(CONFIG, dict)
    if isinstance(towers := config.get("vision_config"), dict):
        found = config.get("projection_dim") or towers.get("hidden_size")
    else:
        # DistilBERT has "dim", T5 "d_model", EfficientNet "hidden_dim".
        names = ("hidden_sizes", "hidden_size", "dim", "d_model", "hidden_dim")
        found = next((config[name] for name in names if name in config), None)
    if isinstance(found, list) and found:
        found = found[-1]
    if not isinstance(found, int) or found < 1:
        raise CheckpointError(
            f"{CONFIG} of '{place.name}' does not say how many features it gives", OTHER
        )
    return found if takes_images(place) else found * len(texts(place).pooling)


def images(place: Place) -> Images:
    """Return how an encoder takes images. Raises CheckpointError if they cannot be given so."""
    values = place.json("preprocessor_config.json", dict)
    values = values or place.json("processor_config.json", dict).get("image_processor", {})
    try:
        return _images(values)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the preprocessing of '{place.name}' cannot be applied: {error!r} in its "
            "preprocessor_config.json",
            OTHER,
        ) from error


def _images(values: Mapping[str, Any]) -> Images:
    for step in STEPS:
        if values.get(step):
            raise ValueError(step)
    resized, stretched = _side(values["size"])
    size, crop = resized, None
    if values.get("do_center_crop"):
        size = _side(values["crop_size"])[0]
        crop = min(1.0, size / resized)
    elif "crop_pct" in values and resized < 384:  # as ConvNeXt's
        crop = size / int(size / values["crop_pct"])
    elif not stretched and "crop_pct" not in values:
        crop = 1.0
    scale = 255 * values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 255
    normalized = values.get("do_normalize", True)
    mean = tuple(map(float, values["image_mean"] if normalized else (0, 0, 0)))
    std = tuple(map(float, values["image_std"] if normalized else (1, 1, 1)))
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(std):
        raise ValueError("image_mean")
    return Images(size, crop, float(scale), mean, std)


def _side(size: Any) -> tuple[int, bool]:
    """Return the side of a square image, and whether images are stretched to it.

    Raises ValueError for other shapes.
    """
    if isinstance(size, int):
        return size, True
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), False
    if size["height"] != size["width"]:
        raise ValueError(f"size {size}")
    return int(size["height"]), True


def texts(place: Place) -> Texts:
    """Return how an encoder takes texts. Raises CheckpointError if it cannot be read."""
    try:
        return _texts(place)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the settings of '{place.name}' cannot be read: {error!r}",
            "it is damaged, or no encoder of texts",
        ) from error


def _texts(place: Place) -> Texts:
    pooling, normalized = _pooling(place)
    sentences = place.json("sentence_bert_config.json", dict)
    prompts = place.json("config_sentence_transformers.json", dict)
    limits = [sentences.get("max_seq_length")]
    if limits == [None]:
        limits = [
            place.json("tokenizer_config.json", dict).get("model_max_length"),
            place.json(CONFIG, dict).get("max_position_embeddings"),
        ]
    known = [int(limit) for limit in limits if limit is not None and limit > 0]
    named = prompts.get("default_prompt_name")
    return Texts(
        length=min(LENGTH, *known) if known else LENGTH,
        lower=bool(sentences.get("do_lower_case")),
        prompt=prompts["prompts"][named] if named else "",
        pooling=pooling,
        normalized=normalized,
    )


def _pooling(place: Place) -> tuple[tuple[str, ...], bool]:
    """Return the modes of pooling, and whether the features are scaled to length 1.

    Without modules of sentence-transformers, they are the mean of the tokens'.
    """
    modes: tuple[str, ...] = ("mean",)
    normalized = False
    for module in place.json("modules.json", list):
        kind, path = module["type"].rpartition(".")[2], module["path"]
        if kind == "Pooling" and POOLING.fullmatch(path):
            modes = _modes(place.json(f"{path}/config.json", dict))
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer" or path:
            raise ValueError(f"module {kind} of modules.json is not supported")
    return modes, normalized


def _modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    if not config.get("include_prompt", True):
        raise ValueError("pooling without the prompt is not supported")
    found = config.get("pooling_mode")
    if found is None:
        found = [mode for flag, mode in FLAGS.items() if config.get(flag)] or ["mean"]
    modes = (found,) if isinstance(found, str) else tuple(found)
    if not set(modes) <= set(MODES):
        raise ValueError(f"pooling {modes} is not supported")
    return modes


def tokenizer_of(place: Place) -> bytes:
    """Return the contents of an encoder's tokenizer.json. Raises CheckpointError if it has none."""
    path = place.folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"'{place.name}' has no {TOKENIZER}",
            "transformers.AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) may write one",
        )
    return path.read_bytes()
