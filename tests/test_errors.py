"""Errors say what, which one and what to do next."""

from __future__ import annotations

import pytest

import metazoo
from metazoo.errors import MetazooError, did_you_mean


def test_an_error_reads_as_message_and_hint() -> None:
    assert str(MetazooError("it broke", "mend it")) == "it broke\n  hint: mend it"
    assert str(MetazooError("it broke")) == "it broke"


@pytest.mark.parametrize(
    ("kind", "status"),
    [("UnknownNameError", 2), ("OptionError", 2), ("PluginError", 1), ("DataError", 1), ("CheckpointError", 1)],
)
def test_every_error_is_public_with_its_exit_status(kind: str, status: int) -> None:
    error = getattr(metazoo, kind)
    assert issubclass(error, metazoo.MetazooError)
    assert error("what").exit_code == status


def test_the_closest_name_is_guessed_and_nothing_far_off() -> None:
    assert did_you_mean("mamel", ["protonet", "maml"]) == "did you mean 'maml'? "
    assert did_you_mean("xyz", ["protonet", "maml"]) == ""
    assert did_you_mean("x", []) == ""
