"""Kills at random moments: nothing unfinished has a final name, and a repeated command ends the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from . import jobs
from .material import Material
from .subject import Case, Subject, must

ATTEMPTS = 25  # to kill a command before it ends by itself


def subjects(material: Material) -> list[Subject]:
    url: list[str] = []
    table = [*jobs.jobs(material, lambda: url[0]), jobs.predicting(material)]
    sound: dict[str, tuple[dict[str, Any], float]] = {}

    def warm() -> None:
        with jobs.slow_server(material) as address:
            url[:] = [address]
            os.environ["METAZOO_CACHE"] = str(Path("cache").resolve())
            for job in table:
                sound[job.name] = jobs.undisturbed(job)

    def run(case: Case) -> Any:
        job = table[case.number % len(table)]
        with jobs.slow_server(material) as address:
            url[:] = [address]
            for attempt in range(ATTEMPTS):
                place = case.folder / str(attempt)
                place.mkdir()
                os.chdir(place)
                os.environ["METAZOO_CACHE"] = str(place / "cache")
                if killed(case, job):
                    must(
                        jobs.undisturbed(job)[0] == sound[job.name][0], f"{job.name} ends otherwise"
                    )
                    return job.name
        must(False, f"{job.name} could not be killed before its end")

    def killed(case: Case, job: jobs.Job) -> int:
        """Kill a job once, and one that can be resumed up to three times; return how often."""
        count = 0
        for _ in range(case.rng.choice((1, 1, 3)) if job.name in ("train", "pack") else 1):
            moment = case.rng.random() * sound[job.name][1]
            pid, pipe = jobs.start(job)
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            status, _ = jobs.finish(pid, pipe)
            if status != -signal.SIGKILL:
                break
            case.note(f"{job.name} killed after {moment:.3f} s")
            count += 1
            job.written()
        return count

    about = "kills of train, pack, export, download, predict"
    return [Subject("kills", about, run, 200, 10, 30.0, together=20, warm=warm)]
