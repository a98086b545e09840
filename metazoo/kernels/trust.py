"""Whether another user could have written a file from which code is loaded.

A file is trusted if this user or root owns it and all folders above it, and nobody else may write to
them. In a folder like /tmp, which is sticky, others may add files but not replace ours.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from metazoo.kernels.toolchain import KernelBuildError
from metazoo.quoting import shell_word

try:
    import grp
    import pwd
except ImportError:  # on Windows, where files have other owners and modes
    pwd = None  # type: ignore[assignment]


def check_folder(folder: Path, *, whole_path: bool) -> None:
    """Raise KernelBuildError if another user could have written to a folder of libraries.

    Args:
        folder: the folder; the libraries in it and its parent are checked as well.
        whole_path: check every folder up to the root.
    """
    folder = folder.resolve()
    parents = folder.parents if whole_path else folder.parents[:1]
    for path in (*folder.glob("*.so"), folder, *parents):
        check_owner(path, path.lstat())


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raise KernelBuildError if another user could have written to a path, given its status."""
    if pwd is None:
        return
    # The owner of "/" is root, also where a container maps root to another number.
    if found.st_uid not in (0, os.geteuid(), os.stat("/").st_uid):
        raise KernelBuildError(
            f"{path} belongs to another user", "set METAZOO_CACHE to a folder of your own"
        )
    is_sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    by_group = found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid)
    if not is_sticky and (by_group or found.st_mode & stat.S_IWOTH):
        raise KernelBuildError(
            f"others may write to {path}",
            f"set METAZOO_CACHE to a folder of your own, or `chmod go-w {shell_word(path)}`",
        )


def _is_private(group: int) -> bool:
    """Return whether this user is the only member of a group, which many systems make for each user."""
    try:
        me = pwd.getpwuid(os.geteuid())
        members = {*grp.getgrgid(group).gr_mem}
    except KeyError:
        return False
    members |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == group}
    return group != 0 and members == {me.pw_name}
