"""Commands run in this process."""

from __future__ import annotations

import pytest

from metazoo.cli import run

Capture = pytest.CaptureFixture[str]


def output(capsys: Capture, *arguments: str) -> tuple[str, str]:
    """Run a command that must succeed; return stdout and stderr."""
    status = run(list(arguments))
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out, captured.err


def failure(capsys: Capture, status: int, *arguments: str) -> tuple[str, str]:
    """Run a command that must fail in words, with nothing on stdout; return its error and its hint."""
    assert run(list(arguments)) == status, arguments
    out, err = capsys.readouterr()
    assert out == "", arguments
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert lines[0].startswith("error: "), err
    assert "Traceback" not in err
    assert len(lines) <= 3, err
    hints = [line for line in lines[1:] if line.startswith("hint: ")]
    return lines[0], hints[0] if hints else ""
