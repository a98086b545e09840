"""Errors say what, which one and what to do next."""

from __future__ import annotations

import pytest
import torch

import metazoo
from metazoo.errors import MetazooError, did_you_mean, first_line, out_of_memory, too_large


def test_an_error_reads_as_message_and_hint() -> None:
    assert str(MetazooError("it broke", "mend it")) == "it broke\n  hint: mend it"
    assert str(MetazooError("it broke")) == "it broke"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("UnknownNameError", 2),
        ("OptionError", 2),
        ("PluginError", 1),
        ("DataError", 1),
        ("CheckpointError", 1),
    ],
)
def test_every_error_is_public_with_its_exit_status(kind: str, status: int) -> None:
    error = getattr(metazoo, kind)
    assert issubclass(error, metazoo.MetazooError)
    assert error("what").exit_code == status


def test_the_first_line_of_a_message() -> None:
    assert first_line(ValueError("\n\n  what\nand more")) == "what"
    assert first_line(ValueError()) == first_line(ValueError(" \n ")) == "ValueError"


@pytest.mark.parametrize(
    ("error", "memory", "large"),
    [
        (MemoryError(), True, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True, True),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
            True,
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True, True),
        (RuntimeError("MPS backend: Out of Memory"), True, True),
        (OverflowError("cannot fit 'int' into an index-sized integer"), False, True),
        (
            RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
            False,
            True,
        ),
        (
            TypeError(
                'failed to unpack the object at pos 1 with error "Overflow when unpacking long'
            ),
            False,
            True,
        ),
        (RuntimeError("size mismatch, got input (2), mat (2), vec (3)"), False, False),
        (KeyError("memory"), False, False),
    ],
)
def test_what_has_no_room_is_recognised(error: Exception, memory: bool, large: bool) -> None:
    assert (out_of_memory(error), too_large(error)) == (memory, large)


def test_the_closest_name_is_guessed_and_nothing_far_off() -> None:
    assert did_you_mean("mamel", ["protonet", "maml"]) == "did you mean 'maml'? "
    assert did_you_mean("xyz", ["protonet", "maml"]) == ""
    assert did_you_mean("x", []) == ""
