"""A model's weights on disk: safetensors, with a blueprint as metadata, and nothing that can execute."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from metazoo.base.algorithm import Algorithm
from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import write_atomically
from metazoo.version import VERSION
from metazoo.zoo.blueprint import Blueprint

KEY = "metazoo"


LONGEST_HEADER = 100_000_000  # what safetensors itself reads


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Any) -> None:
    """Write named tensors and a value for JSON as one safetensors file, whole or not at all."""
    # Copies, because the format refuses tensors that share memory, as tied weights do.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_atomically(path, safetensors.torch.save(copies, {KEY: json.dumps(metadata)}))


def read_weights(path: Path) -> bytes:
    """Return what a safetensors file holds, or raise CheckpointError where it is missing or cannot be one."""
    try:
        with path.open("rb") as file:
            # A file of another sort may be larger than memory: no more is read than its beginning promises.
            size, start = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError("it does not begin as one")
            header = json.loads(file.read(length))
            ends = [
                tensor["data_offsets"][1]
                for name, tensor in header.items()
                if name != "__metadata__"
            ]
            if (promised := 8 + length + max(ends, default=0)) != size:
                raise ValueError(f"it has {size} bytes, and should have {promised}")
            file.seek(0)
            return file.read(size)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _damaged(str(path), error) from error


def parse_tensors(data: bytes, where: str) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the metadata of a file's contents, or raise CheckpointError where they are damaged or not ours."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, json.loads(header["__metadata__"][KEY])
    except (
        safetensors.SafetensorError, RuntimeError, AssertionError, ArithmeticError, ValueError, LookupError, TypeError,
    ) as error:  # fmt: skip
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{where} is damaged or no checkpoint of metazoo: {error}",
        "give another file; if this was a model, train or fetch it again",
    )


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the metadata of a file, or raise CheckpointError where it is missing, damaged or not ours."""
    return parse_tensors(read_weights(path), str(path))


def save_model(path: Path, model: Algorithm, blueprint: Blueprint) -> None:
    """Write a model's weights and the blueprint that it is made from."""
    save_tensors(path, model.state_dict(), blueprint.portable().as_dict())


def load_model(path: Path, **changes: Any) -> tuple[Algorithm, Blueprint]:
    """Return the model of a file, as `parse_model` does, or raise CheckpointError where there is none."""
    return parse_model(read_weights(path), str(path), **changes)


def parse_model(data: bytes, where: str, **changes: Any) -> tuple[Algorithm, Blueprint]:
    """Return the model of a file's contents, in eval mode, and its blueprint.

    `changes` are options of the algorithm to set otherwise, as far as the weights still fit. Raises CheckpointError
    where they are damaged or the weights do not fit, UnknownNameError where a plugin that it needs is not installed.
    """
    tensors, metadata = parse_tensors(data, where)
    blueprint = Blueprint.from_dict(metadata, where)
    try:
        _check_sizes(blueprint, tensors, changes)
        with torch.random.fork_rng(devices=[]):
            model = blueprint.model(**changes)
        model.load_state_dict(tensors)
    except OptionError as error:
        if changes or metadata["metazoo"] == VERSION:
            raise
        made = (
            f"{where} was made by metazoo {metadata['metazoo']}, this is {VERSION}: {error.message}"
        )
        raise CheckpointError(
            made, f"`pip install metazoo=={metadata['metazoo']}`, or train the model again"
        ) from error
    except (
        RuntimeError,
        TypeError,
        ValueError,
        MemoryError,
        ArithmeticError,
        LookupError,
    ) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise CheckpointError(
            f"the weights in {where} do not fit algorithm '{blueprint.algorithm}': {cause}",
            "an option that changes the network cannot be changed after training",
        ) from error
    return model.eval(), blueprint


def _check_sizes(
    blueprint: Blueprint, tensors: Mapping[str, Tensor], changes: Mapping[str, Any]
) -> None:
    """Raise RuntimeError where the weights are not those of the model, before it takes memory: a file may claim any width."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            outline = blueprint.model(**changes).state_dict()
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(
            error
        ):  # an algorithm that computes with values while it is built has no outline
            return
        raise
    for name, value in outline.items():
        if name not in tensors:
            raise RuntimeError(f"they have no '{name}'")
        if tensors[name].shape != value.shape:
            raise RuntimeError(
                f"'{name}' has shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            )
