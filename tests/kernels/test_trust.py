"""No library is loaded that another user could have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metazoo.kernels.toolchain import KernelBuildError
from metazoo.kernels.trust import check_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
STRANGER = 12345


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache below folders of ours, with a library in it."""
    cache = tmp_path / "above" / "cache"
    (cache / "kernels" / "key").mkdir(parents=True)
    for path in (tmp_path / "above", cache, cache / "kernels", cache / "kernels" / "key"):
        path.chmod(0o755)
    library(cache).touch(0o644)
    return cache


def library(cache: Path) -> Path:
    return cache / "kernels" / "key" / "_emulated.x.so"


def places(cache: Path) -> list[Path]:
    """The library, its folders and the folder above the cache."""
    return [library(cache), *library(cache).parents[:4]]


@pytest.mark.parametrize("mode", [0o020, 0o002, 0o022])
@pytest.mark.parametrize("depth", range(5))
def test_what_others_may_write_is_refused(cache: Path, depth: int, mode: int) -> None:
    check_folder(library(cache).parent, whole_path=True)
    path = places(cache)[depth]
    if os.geteuid() == 0:
        os.chown(path, 0, STRANGER)
    elif mode == 0o020:
        pytest.skip("this user's own group may be private")
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(KernelBuildError, match=f"others may write to {path}") as caught:
        check_folder(library(cache).parent, whole_path=True)
    assert caught.value.hint is not None
    assert f"chmod go-w {path}" in caught.value.hint


@as_root
@pytest.mark.parametrize("depth", range(5))
def test_what_belongs_to_another_user_is_refused(cache: Path, depth: int) -> None:
    os.chown(places(cache)[depth], STRANGER, -1)
    with pytest.raises(KernelBuildError, match="belongs to another user"):
        check_folder(library(cache).parent, whole_path=True)


def test_a_sticky_folder_above_is_like_tmp(cache: Path) -> None:
    cache.parent.chmod(0o1777)
    check_folder(library(cache).parent, whole_path=True)


@as_root
def test_a_link_counts_as_what_it_leads_to(cache: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(cache)
    check_folder(link / "kernels" / "key", whole_path=True)
    os.chown(cache, STRANGER, -1)
    with pytest.raises(KernelBuildError, match="belongs to another user"):
        check_folder(link / "kernels" / "key", whole_path=True)
