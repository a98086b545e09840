"""A fitted classifier on disk: one safetensors file, which cannot execute code.

It holds the model's weights (for an encoder, only what identifies it), the support set as the model
classifies it, what was measured, and the parameters of the classifier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from metazoo.appearance import Look
from metazoo.classifier import models
from metazoo.classifier.fitted import Fitted, Measured, fit
from metazoo.classifier.honesty import LeftOut
from metazoo.classifier.labels import sorted_classes
from metazoo.classifier.looks import Pictures
from metazoo.classifier.models import Model
from metazoo.classifier.support import Support
from metazoo.errors import CheckpointError, OptionError
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.source import Source
from metazoo.zoo.weights import load_tensors, save_tensors

FORMAT = 1
MODEL = "model."  # before the names of the model's own tensors
SUPPORT, DIGESTS = "support", "digests"
DIGEST_SIZE = 32
PARAMS = ("options", "calibrate", "reject", "invert")  # beside model and names
Label = str | bool | int | float


def save(path: Path, state: Fitted, params: Mapping[str, Any], columns: list[str] | None) -> None:
    """Write what was fitted, and the parameters of its classifier.

    `columns` are the names of the features, if they have names. Raises OptionError if a label or an
    option is not a string, number or truth value.
    """
    for label in state.classes:
        if not isinstance(label, Label):
            raise _unsaved(f"the label {label!r}")
    model, support, measured = state.model, state.support, state.measured
    tensors = {f"{MODEL}{name}": t for name, t in model.learner.state_dict().items()}
    digests = np.frombuffer(b"".join(support.digests), np.uint8).reshape(-1, DIGEST_SIZE)
    tensors |= {SUPPORT: support.values, DIGESTS: torch.from_numpy(digests.copy())}
    names = params["names"]
    metadata = {
        "classifier": FORMAT,
        "model": "auto" if isinstance(params["model"], str) and params["model"] == "auto" else "",
        "name": model.name,
        "blueprint": model.blueprint.portable().as_dict(),
        "classes": state.classes,
        "labels": [state.classes.index(label) for label in support.labels],
        "raw": support.raw,
        "looks": [support.pictures.looks[look] for look in Look],
        "blank": [support.pictures.count, support.pictures.blank],
        "left_out": [measured.left_out.measured, measured.left_out.correct],
        "chance": measured.left_out.chance,
        "factor": measured.factor,
        "threshold": measured.threshold,
        "names": [*map(list, names.items())] if isinstance(names, Mapping) else names,
        "columns": columns,
        **{name: params[name] for name in PARAMS},
    }
    try:
        save_tensors(path, tensors, metadata)
    except TypeError as error:
        raise _unsaved(f"an option: {error}") from error


def _unsaved(what: str) -> OptionError:
    return OptionError(
        f"{what} cannot be saved", "use strings, numbers or truth values as labels and options"
    )


def load(path: Path, device: str) -> tuple[Fitted, dict[str, Any], list[str] | None]:
    """Return what `save` was given.

    Raises CheckpointError if the file is missing, damaged or not a classifier.
    """
    tensors, metadata = load_tensors(path)
    if not isinstance(metadata, dict) or "classifier" not in metadata:
        raise CheckpointError(
            f"{path} is not a fitted classifier", "give a file of FewShotClassifier.save"
        )
    if metadata["classifier"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata['classifier']}; this metazoo reads format {FORMAT}",
            "`pip install -U metazoo`",
        )
    try:
        params = _params(metadata)
        model = _model(path, tensors, metadata, params, device)
        support = _support(tensors, metadata, model)
        state = fit(model, support, metadata["classes"], params["names"], True, _measured(metadata))
        return state, params, metadata["columns"]
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or was edited: {error}", "fit and save the classifier again"
        ) from error


def _params(metadata: Mapping[str, Any]) -> dict[str, Any]:
    names = metadata["names"]
    return {
        "model": metadata["model"] or metadata["name"],
        "names": dict(names) if isinstance(names, list) else names,
        **{name: metadata[name] for name in PARAMS},
    }


def _model(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    params: Mapping[str, Any],
    device: str,
) -> Model:
    own = {name.removeprefix(MODEL): t for name, t in tensors.items() if name.startswith(MODEL)}
    blueprint = Blueprint.from_dict(metadata["blueprint"], str(path))
    source = Source(str(metadata["name"]), path, safetensors.torch.save(own), blueprint)
    return models.build(source, params["options"], params["invert"], device)


def _support(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], model: Model) -> Support:
    classes, raw = metadata["classes"], metadata["raw"]
    if classes != sorted_classes(classes) or not all(isinstance(c, Label) for c in classes):
        raise ValueError("its classes are not sorted labels")
    labels = [classes[int(number)] for number in metadata["labels"]]
    values, digests = tensors[SUPPORT].to(model.device), tensors[DIGESTS]
    expected = model.empty()
    if values.shape[1:] != expected.shape[1:] or values.dtype != expected.dtype:
        raise ValueError(f"its examples have shape {tuple(values.shape)} and type {values.dtype}")
    if not len(values) == len(labels) == len(raw) == len(digests) or not values.isfinite().all():
        raise ValueError("its examples and labels do not fit together")
    looks = dict(zip(Look, map(float, metadata["looks"])))
    count, blank = map(int, metadata["blank"])
    pictures = Pictures(count, blank, looks)
    return Support(values, [bytes(row.tolist()) for row in digests], pictures, labels, raw)


def _measured(metadata: Mapping[str, Any]) -> Measured:
    # JSON has no infinity.
    threshold = math.inf if metadata["threshold"] is None else float(metadata["threshold"])
    count, correct = map(int, metadata["left_out"])
    left_out = LeftOut(count, correct, float(metadata["chance"]))
    return Measured(left_out, float(metadata["factor"]), threshold)
