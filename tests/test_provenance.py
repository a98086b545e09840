"""The commit of a result, read from a repository that may be somebody else's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from metazoo import provenance

PROGRAMS = {
    "core.fsmonitor": "touch MARK; false",
    "core.hooksPath": "HOOKS",
    "core.sshCommand": "touch MARK; false",
    "core.pager": "touch MARK; cat",
    "diff.external": "touch MARK",
    "diff.x.textconv": "touch MARK; cat",
    "filter.x.clean": "touch MARK; cat",
    "filter.x.smudge": "touch MARK; cat",
    "alias.ls-tree": "!touch MARK",
    "remote.origin.url": "ssh://localhost/x",
    "remote.origin.uploadpack": "touch MARK; false",
    "remote.origin.promisor": "true",
    "remote.origin.partialclonefilter": "tree:0",
    "extensions.partialClone": "origin",
    "protocol.allow": "always",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of this module, which thinks that it runs from there."""
    file = tmp_path / "outer" / "inner" / "metazoo" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("first\n")
    monkeypatch.setattr(provenance, "__file__", str(file))
    return file.parent


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def hostile_repository(root: Path, mark: Path) -> None:
    """Make a repository that tracks everything in a folder and runs programs at any occasion."""
    git(root, "init", "-q")
    (root / ".gitattributes").write_text("* filter=x diff=x\n")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    hooks = root / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (hooks / name).chmod(0o755)
    for name, value in PROGRAMS.items():
        git(root, "config", name, value.replace("MARK", str(mark)).replace("HOOKS", str(hooks)))


@pytest.mark.parametrize("lost", [False, True], ids=["whole", "partial"])
@pytest.mark.parametrize("place", ["outer", "outer/inner"])
def test_no_program_of_a_repository_is_run(
    package: Path, tmp_path: Path, place: str, lost: bool
) -> None:
    root, mark = tmp_path / place, tmp_path / "mark"
    hostile_repository(root, mark)
    (package / "provenance.py").write_text("second\n")
    if lost:  # git would fetch what is missing
        tree = git(root, "-c", "core.fsmonitor=false", "rev-parse", "HEAD^{tree}")
        (root / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    found = provenance.commit()
    assert (found is not None and found.endswith("-dirty")) == (place == "outer/inner" and not lost)
    assert not mark.exists()
    # The repository is as hostile as it means to be.
    subprocess.run(["git", "status"], cwd=root, check=False, capture_output=True)
    assert mark.exists()


def test_the_environment_does_not_name_another_repository(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = package.parent
    hostile_repository(tmp_path, tmp_path / "mark")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    (root / ".git").mkdir()  # not a repository
    assert provenance.commit() is None
