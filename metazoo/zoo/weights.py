"""A model's weights on disk: a safetensors file with JSON metadata, which cannot execute code.

The metadata begin with a sha256 of the whole file, in which the digits of the sha256 itself count
as zeros. Files from before that have none.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metazoo.base.algorithm import Algorithm
from metazoo.errors import CheckpointError, OptionError
from metazoo.io.files import json_text, parse_json, write_atomically
from metazoo.quoting import shell_word
from metazoo.version import VERSION
from metazoo.zoo.blueprint import LIFT, Blueprint, limited
from metazoo.zoo.overrides import check_overrides

KEY = "metazoo"
SHA256 = "sha256"
UNKNOWN = "0" * 64
LONGEST_HEADER = 2**24  # bytes; names and shapes of a thousand tensors take a hundredth of it
# How many numbers a network may create while it is built: this many, and each weight four times.
ALWAYS_ALLOWED = 2**20
# Weights of these types are converted to the type of the network.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# How a file of `torch.save` begins: a zip archive, or the pickle of old versions.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
CREATORS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file with a sha256, atomically."""
    write_atomically(path, _to_bytes(tensors, metadata))


def _to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    # The format refuses tensors that share memory, as tied weights do; hence copies.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json_text({SHA256: UNKNOWN, **metadata})
    contents = safetensors.torch.save(copies, {KEY: text})
    sha256 = hashlib.sha256(contents).hexdigest()
    return contents.replace(UNKNOWN.encode(), sha256.encode(), 1)


def save_model(path: Path, model: Algorithm, blueprint: Blueprint) -> None:
    """Write a model's weights and its blueprint."""
    write_atomically(path, model_bytes(model, blueprint))


def model_bytes(model: Algorithm, blueprint: Blueprint) -> bytes:
    """Return a model's file: its weights and its blueprint."""
    return _to_bytes(model.state_dict(), blueprint.portable().as_dict())


def read_weights(path: Path) -> bytes:
    """Return the bytes of a safetensors file.

    Raises CheckpointError if it is missing, not such a file, or not the one that was written.
    """
    start = b""
    try:
        with path.open("rb") as file:
            # Another kind of file may be larger than memory: read no more than the header promises.
            size, start = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, LONGEST_HEADER):
                raise ValueError("it does not start with a safetensors header")
            header = parse_json(file.read(length))
            ends = [
                entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
            ]
            if (promised := 8 + length + max(ends, default=0)) != size:
                raise ValueError(f"it has {size} bytes instead of {promised}")
            file.seek(0)
            contents = file.read(size)
        _check_sha256(header, contents, 8 + length)
        return contents
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}") from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise (
            _pickle(path) if start.startswith(PICKLES) else _damaged(str(path), error)
        ) from error


def _check_sha256(header: Any, contents: bytes, start: int) -> None:
    """Raise ValueError if the header, or the tensors from byte `start`, are not those written."""
    metadata = _parse_metadata(header)
    if not isinstance(metadata, dict) or (written := metadata.get(SHA256)) is None:
        return
    sha256 = hashlib.sha256(contents[:start].replace(str(written).encode(), UNKNOWN.encode(), 1))
    sha256.update(memoryview(contents)[start:])
    if sha256.hexdigest() != written:
        raise ValueError("its contents changed after it was written (its sha256 is another)")


def _parse_metadata(header: Any) -> Any:
    if KEY not in header.get("__metadata__", ()):
        raise ValueError("it does not say which model its weights belong to")
    return parse_json(header["__metadata__"][KEY])


def metadata_of(contents: bytes, where: str) -> Any:
    """Return the metadata of a safetensors file's bytes; raise CheckpointError if damaged."""
    try:
        header = parse_json(contents[8 : 8 + int.from_bytes(contents[:8], "little")])
        metadata = _parse_metadata(header)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from error
    if isinstance(metadata, dict):
        metadata.pop(SHA256, None)
    return metadata


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
        limit = _SizeLimit(tensors) if limited() else contextlib.nullcontext()
        with torch.random.fork_rng(devices=[]), limit:
            model = blueprint.model(**changes)
            check_overrides(blueprint, changes)
        load_into(model, tensors, where)
    except OptionError as error:
        if changes:
            raise
        if blueprint.metazoo == VERSION:
            raise CheckpointError(f"{where}: {error.message}", error.hint) from error
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
                f"but the options ask for {numbers} or more ({LIFT})"
            )


def _product(size: Sequence[Any]) -> int:
    """Return the product of a size, given as numbers or as a sequence before other arguments."""
    return math.prod(size[0] if size and isinstance(size[0], Sequence) else size)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a newly built network, in its types.

    Raises RuntimeError if a name or shape differs, CheckpointError if a value cannot be used.
    """
    for name, value in model.state_dict().items():
        if name not in tensors:
            raise RuntimeError(f"they have no '{name}'")
        given = tensors[name]
        if given.shape != value.shape:
            raise RuntimeError(f"'{name}' has shape {tuple(given.shape)}, not {tuple(value.shape)}")
        _check_values(f"'{name}' in {where}", given, value)
    model.load_state_dict(tensors)


def _check_values(what: str, given: Tensor, new: Tensor) -> None:
    """Raise CheckpointError if a tensor cannot replace the one of a new network."""
    if given.dtype != new.dtype and not (given.dtype in FLOATS and new.dtype in FLOATS):
        raise CheckpointError(
            f"{what} has the type {_kind(given)}, and the network needs {_kind(new)}",
            f"weights can be {', '.join(str(kind).removeprefix('torch.') for kind in FLOATS)}; "
            "convert them, or get or train the model again",
        )
    values = given.to(new.dtype)
    odd = ~values.isfinite()
    # A mask may hold infinity, but then it does from the start.
    if odd.any() and not torch.equal(values[odd], new.to(values.device)[odd]):
        raise CheckpointError(
            f"{what} holds NaN or infinity, so the model cannot be used",
            "get the model again, or train it again with a lower --lr",
        )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _pickle(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a file of torch.save, or another archive; reading one can run code",
        "convert it: read its tensors by torch.load with weights_only=True into a model, and save "
        "that with metazoo.zoo.weights.save_model (docs/models.md has the lines)",
    )


def _damaged(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{where} is damaged, or not a metazoo checkpoint: {error}",
        "give another file; if this was a model, train or fetch it again",
    )
