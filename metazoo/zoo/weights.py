"""A model's weights on disk: a safetensors file with JSON metadata, which cannot execute code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metazoo.base.algorithm import Algorithm
from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import write_atomically
from metazoo.quoting import shell_word
from metazoo.version import VERSION
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.overrides import check_overrides

KEY = "metazoo"
LONGEST_HEADER = 100_000_000  # the limit of safetensors itself
# How many numbers a network may create while it is built: this many, and each weight four times.
ALWAYS_ALLOWED = 2**20
CREATORS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Any) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically."""
    # The format refuses tensors that share memory, as tied weights do; hence copies.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_atomically(path, safetensors.torch.save(copies, {KEY: json.dumps(metadata)}))


def save_model(path: Path, model: Algorithm, blueprint: Blueprint) -> None:
    """Write a model's weights and its blueprint."""
    save_tensors(path, model.state_dict(), blueprint.portable().as_dict())


def read_weights(path: Path) -> bytes:
    """Return the bytes of a safetensors file; raise CheckpointError if it is missing or not one."""
    try:
        with path.open("rb") as file:
            # Another kind of file may be larger than memory: read no more than the header promises.
            size, start = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError("it does not start with a safetensors header")
            header = json.loads(file.read(length))
            ends = [
                entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
            ]
            if (promised := 8 + length + max(ends, default=0)) != size:
                raise ValueError(f"it has {size} bytes instead of {promised}")
            file.seek(0)
            return file.read(size)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}") from None
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise _damaged(str(path), error) from error


def metadata_of(contents: bytes, where: str) -> Any:
    """Return the metadata of a safetensors file's bytes; raise CheckpointError if damaged."""
    try:
        header = json.loads(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
        return json.loads(header["__metadata__"][KEY])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(where, error) from error


def tensors_of(contents: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file's bytes; raise CheckpointError if damaged."""
    try:
        return safetensors.torch.load(contents)
    except (
        safetensors.SafetensorError,
        RuntimeError,
        AssertionError,
        ArithmeticError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:
        raise _damaged(where, error) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and metadata of a file; raise CheckpointError if missing or damaged."""
    contents = read_weights(path)
    return tensors_of(contents, str(path)), metadata_of(contents, str(path))


def load_model(path: Path, **changes: Any) -> tuple[Algorithm, Blueprint]:
    """Return the model of a file, in eval mode, and its blueprint; see `build_model`."""
    contents = read_weights(path)
    blueprint = Blueprint.from_dict(metadata_of(contents, str(path)), str(path))
    return build_model(blueprint, contents, str(path), **changes), blueprint


def build_model(blueprint: Blueprint, contents: bytes, where: str, **changes: Any) -> Algorithm:
    """Return the model of a blueprint with the weights of a safetensors file's bytes, in eval mode.

    `changes` override options of the algorithm. Raises OptionError if the weights hold what one of
    them sets, CheckpointError if the weights are damaged or do not fit, UnknownNameError if a
    plugin that the model needs is not installed.
    """
    tensors = tensors_of(contents, where)
    try:
        with torch.random.fork_rng(devices=[]), _SizeLimit(tensors):
            model = blueprint.model(**changes)
        _check_fit(model, tensors)
        with torch.random.fork_rng(devices=[]):
            check_overrides(blueprint, changes)
        model.load_state_dict(tensors)
    except OptionError as error:
        if changes or blueprint.metazoo == VERSION:
            raise
        raise CheckpointError(
            f"{where} was made by metazoo {blueprint.metazoo}, this is {VERSION}: {error.message}",
            f"`pip install {shell_word(f'metazoo=={blueprint.metazoo}')}`, or train the model again",
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
    return model.eval()


class _SizeLimit(TorchFunctionMode):
    """Refuses to build a network that needs far more memory than the weights of its file.

    The options in a file may ask for any width.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.numbers = sum(tensor.numel() for tensor in tensors.values())
        self.created = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CREATORS:
            self.created += _product(kwargs.get("size", args))
        elif func == torch.Tensor.repeat:
            self.created += args[0].numel() * _product(kwargs.get("repeats", args[1:]))
        self._check(self.created)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._check(result.numel())
        return result

    def _check(self, numbers: int) -> None:
        if numbers > ALWAYS_ALLOWED + 4 * self.numbers:
            raise RuntimeError(
                f"they have {self.numbers} numbers in all, "
                f"but the options ask for {numbers} or more"
            )


def _product(size: Sequence[Any]) -> int:
    """Return the product of a size, given as numbers or as a sequence before other arguments."""
    return math.prod(size[0] if size and isinstance(size[0], Sequence) else size)


def _check_fit(model: Algorithm, tensors: Mapping[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        if name not in tensors:
            raise RuntimeError(f"they have no '{name}'")
        if tensors[name].shape != value.shape:
            raise RuntimeError(
                f"'{name}' has shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            )


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{where} is damaged, or not a metazoo checkpoint: {error}",
        "give another file; if this was a model, train or fetch it again",
    )
