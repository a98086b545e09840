"""Full disks: an error that says so and where, nothing lost, and the same end once there is room."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metazoo.zoo import run_folder

from . import jobs
from .commands import check_text
from .material import Material
from .subject import Case, Refused, Subject, must

FULL = ("No space left on device", "File too large", "disk is full")
LARGEST = 60_000  # bytes; the largest file of a job has fewer


def subjects(material: Material) -> list[Subject]:
    url: list[str] = []
    table = jobs.jobs(material, lambda: url[0])
    sound: dict[str, dict[str, Any]] = {}

    def warm() -> None:
        with jobs.slow_server(material) as address:
            url[:] = [address]
            os.environ["METAZOO_CACHE"] = str(Path("cache").resolve())
            for job in table:
                sound[job.name] = jobs.undisturbed(job)[0]

    def run(case: Case, small: Any, room: Any) -> Any:
        """Run a job where there is too little room, then with enough."""
        job = table[case.number % len(table)]
        os.environ["METAZOO_CACHE"] = str(Path("cache").resolve())
        with jobs.slow_server(material) as address:
            url[:] = [address]
            status, told = jobs.finish(*jobs.start(job, small))
            check_text(told)
            written = job.written()
            room()
            if status == 0:
                must(written == sound[job.name], f"{job.name} ends otherwise")
                return job.name
            check_error(job, told)
            must(jobs.undisturbed(job)[0] == sound[job.name], f"{job.name} ends otherwise")
        raise Refused(told)

    def limited(case: Case) -> Any:
        size = int(LARGEST ** case.rng.random()) - 1
        case.note(f"{table[case.number % len(table)].name}, files of {size} bytes")
        return run(
            case, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), lambda: None
        )

    def full(case: Case) -> Any:
        pages = 1 + int(12 * case.rng.random() ** 2)  # of 4 KiB; an empty file takes none
        case.note(f"{table[case.number % len(table)].name}, a disk of {4 * pages} KiB")
        with mounted(case.folder / "disk", 4 * pages) as disk:
            os.chdir(disk)
            try:
                return run(case, lambda: None, lambda: remount(disk, 65_536))
            finally:
                os.chdir(case.folder)

    found = [
        Subject("files", "files that cannot grow", limited, 50, 8, 30.0, together=13, warm=warm)
    ]
    if can_mount():
        found.append(Subject("disk", "full disks", full, 50, 8, 30.0, together=13, warm=warm))
    return found


def check_error(job: jobs.Job, told: str) -> None:
    """Raise Fault unless the error says that there is no room, where, and how to go on."""
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    must(len(errors) == 1, f"{job.name}: {len(errors)} errors: {told[-300:]}")
    must(any(words in told for words in FULL), f"{job.name}: it does not say why: {errors[0]}")
    must(job.folder in told, f"{job.name}: it does not say where: {errors[0]}")
    if job.name == "train" and Path("run", run_folder.CONFIG).exists():
        must("--resume" in told, f"train: it does not say how to go on: {told[-300:]}")


def can_mount() -> bool:
    """Return whether this user may mount a small disk."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder) / "disk", 4):
                return True
        except OSError:
            return False


@contextlib.contextmanager
def mounted(folder: Path, kibibytes: int) -> Iterator[Path]:
    """Mount a disk in memory; raise OSError if that is not allowed."""
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        _run("umount", "-l", folder)


def remount(folder: Path, kibibytes: int) -> None:
    """Give a disk another size."""
    _run("mount", "-o", f"remount,size={kibibytes}k", folder)


def _run(*words: Any) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
