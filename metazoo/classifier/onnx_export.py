"""A fitted classifier as one ONNX file: encoder, head and calibration."""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metazoo.base.algorithm import FeatureLearner
from metazoo.base.encoder import Encoder
from metazoo.classifier.fitted import Fitted
from metazoo.classifier.recording import recorded
from metazoo.errors import OptionError, first_line
from metazoo.io.files import json_text, write_atomically
from metazoo.version import VERSION

OPSET = 20
CHECKED = 20  # examples, more than an encoder takes at once
TOLERANCE = 1e-4  # of probabilities
INPUTS = {"image": "images", "text": "tokens", "numbers": "numbers"}


def export(state: Fitted, path: Path) -> None:
    """Write a fitted classifier as ONNX; see `FewShotClassifier.to_onnx`."""
    library = _library("onnx")
    _library("onnxscript")
    whole, x = _module(state), _made_up(state)
    name = INPUTS[state.model.kind]
    with _explained(state.model.name), _quiet():
        program: Any = torch.onnx.export(
            whole,
            (x[:2],),
            input_names=[name],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("examples")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    about = {
        "metazoo": VERSION,
        "model": state.model.name,
        "classes": json_text(state.classes),
        "input_format": json_text(dict(state.model.input_format)),
    }
    library.helper.set_model_props(proto, about)
    contents = proto.SerializeToString()
    _check(contents, state, x)
    write_atomically(path, contents)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            f"ONNX needs the package {name}, which is not installed",
            '`pip install "metazoo[onnx]"`',
        ) from error


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what torch and vmap raise for an operation without ONNX counterpart into OptionError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # any operation may raise anything
        raise OptionError(
            f"'{name}' cannot be exported to ONNX: {first_line(error)}",
            "use another algorithm, such as protonet or logistic",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.onnx from reporting what it did not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Direct(nn.Module):
    """An encoder without the cache of its embeddings."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self._encoder = [encoder]  # in a list, so that it is not a submodule

    def forward(self, x: Tensor) -> Tensor:
        encoder = self._encoder[0]
        if x.is_floating_point():
            return encoder.encode(encoder.network, x).float()
        return encoder.network(x).float()  # `encode` sorts texts by length, which saves time only


class _Whole(nn.Module):
    """Maps examples (N, *) to probabilities (N, ways)."""

    def __init__(self, embed: nn.Module, classify: nn.Module, places: Tensor):
        super().__init__()
        self.embed, self.classify = embed, classify
        self.register_buffer("places", places)

    def forward(self, x: Tensor) -> Tensor:
        # A class that the head does not see has probability 0.
        return self.classify(self.embed(x)).softmax(1) @ self.places


def _module(state: Fitted) -> _Whole:
    learner, head = state.model.learner, state.head
    if not isinstance(learner, FeatureLearner):
        raise OptionError(
            f"'{state.model.name}' cannot be exported to ONNX: "
            f"'{state.model.blueprint.algorithm}' changes the backbone for each task",
            "use a model that adapts in feature space, such as one of protonet",
        )
    direct: FeatureLearner = copy.copy(learner)
    if isinstance(learner.backbone, Encoder):
        direct._modules = {**learner._modules, "backbone": _Direct(learner.backbone)}

    def embed(x: Tensor) -> Tensor:
        z = direct.features(x)
        return z if state.scaling is None else state.scaling(z)

    def classify(z: Tensor) -> Tensor:
        return head.logits_of_seen(z) * state.measured.factor

    with _explained(state.model.name):
        x = _made_up(state)
        z = embed(x)
        places = torch.eye(head.ways, dtype=z.dtype, device=z.device)[head.seen]
        return _Whole(recorded(embed, x), recorded(classify, z), places).eval()


def _made_up(state: Fitted) -> Tensor:
    """Return examples to trace and check with: noise, texts of some length, or the support set."""
    model, generator = state.model, torch.Generator().manual_seed(0)
    shape = (CHECKED, *model.blueprint.spec.input_shape)
    if model.rows:
        rows = state.support.values
        return rows.repeat(-(-CHECKED // len(rows)), 1)[:CHECKED]
    if not model.blueprint.spec.integers:
        return torch.rand(shape, generator=generator).to(model.device)
    x = torch.randint(1, 1000, shape, generator=generator)
    # A gap, so that padding is masked although the whole length is read.
    x[:, -2:-1] = 0
    x[1:, shape[1] // 2 :] = 0
    return x.to(model.device)


def _check(contents: bytes, state: Fitted, x: Tensor) -> None:
    """Raise OptionError unless the file gives the probabilities of the classifier."""
    session = _library("onnxruntime").InferenceSession(contents, providers=["CPUExecutionProvider"])
    z = state.model.embed(x)
    z = z if state.scaling is None else state.scaling(z)
    expected = (state.head.logits(z) * state.measured.factor).softmax(1).cpu()
    for size in (len(x), 1):
        (found,) = session.run(None, {session.get_inputs()[0].name: x[:size].cpu().numpy()})
        difference = (torch.from_numpy(found) - expected[:size]).abs().max().item()
        if not difference <= TOLERANCE:
            raise OptionError(
                f"'{state.model.name}' cannot be exported to ONNX: "
                f"probabilities would differ by {difference:.2g}",
                "use another algorithm, such as protonet or logistic",
            )
