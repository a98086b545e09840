"""Runs cases in processes forked from this one, which has imported torch, under limits of memory and time.

A process that dies or hangs costs one case: the one that it had begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metazoo.errors import MetazooError

from .subject import MIB, Case, Fault, Refused, Subject

# A case that sleeps, or starves beside other work, is given this much more than its processor time.
PATIENCE = 20.0
# Beyond the limit of a subject, which is checked afterwards, no process gets more than this.
HARD_LIMIT = 4096 * MIB


@dataclass
class Outcome:
    """What became of a case: "answer", "error" or "fault", with the fault in words."""

    case: int
    kind: str
    seconds: float = 0.0
    megabytes: float = 0.0
    words: str = ""
    done: Sequence[str] = ()


@dataclass
class _Worker:
    """A process that runs cases, one after the other, and writes a line at each start and end."""

    subject: Subject
    cases: list[int]
    folder: Path
    pid: int = 0
    heard: float = field(default_factory=time.monotonic)
    size: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def hangs(self) -> bool:
        """Return whether nothing was written for longer than a case may take."""
        if (size := self.log.stat().st_size) != self.size:
            self.size, self.heard = size, time.monotonic()
        return time.monotonic() - self.heard > self.subject.seconds + PATIENCE

    def outcomes(self, ending: str) -> list[Outcome]:
        """Return the outcomes of finished cases, and a fault for one that the process did not survive."""
        found: list[Outcome] = []
        begun: Outcome | None = None
        for line in self.log.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            if "kind" in values:
                found.append(Outcome(**values))
                begun = None
            elif begun is None:
                begun = Outcome(values["case"], "fault", words=ending)
            else:
                begun.done = [*begun.done, values["note"]]
        return found if begun is None else [*found, begun]


def run(subject: Subject, cases: Sequence[int], seed: int, jobs: int) -> list[Outcome]:
    """Run cases of a subject and return an outcome for each, in `jobs` processes at a time."""
    size = subject.together
    waiting = [list(cases[i : i + size]) for i in range(0, len(cases), size)]
    running: dict[int, _Worker] = {}
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="metazoo-soak-") as root:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    worker = _start(subject, waiting.pop(0), seed, Path(root))
                    running[worker.pid] = worker
                worker, ending = _next_ended(running)
                outcomes = worker.outcomes(ending)
                found += outcomes or [_not_begun(worker, ending)]
                if outcomes and (left := worker.cases[len(outcomes) :]):
                    waiting.append(left)
                _remove(worker.folder)
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return sorted(found, key=lambda outcome: outcome.case)


def _not_begun(worker: _Worker, ending: str) -> Outcome:
    """Return the fault of a process that failed at the sound input, before its first case."""
    told = (worker.folder / "stderr").read_text(errors="replace")
    return Outcome(worker.cases[0], "fault", words=f"no case began; {ending}: {told[-1000:]}")


def _next_ended(running: dict[int, _Worker]) -> tuple[_Worker, str]:
    """Wait for a process to end, kill those that hang, and return one that ended and how."""
    killed = set()
    while True:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                worker = running.pop(pid)
                return worker, "it hangs" if pid in killed else _ending(worker, status)
            if pid not in killed and running[pid].hangs():
                killed.add(pid)
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)


def _ending(worker: _Worker, status: int) -> str:
    """Return how a process ended, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGPROF:
        return f"it takes more than {2 * worker.subject.seconds:g} s"
    return f"it ends the process ({signal.Signals(-code).name if code < 0 else f'status {code}'})"


def _start(subject: Subject, cases: list[int], seed: int, root: Path) -> _Worker:
    worker = _Worker(subject, cases, Path(tempfile.mkdtemp(dir=root)))
    worker.log.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    worker.pid = os.fork()
    if not worker.pid:
        status = 1
        try:
            os.setpgid(0, 0)
            _work(worker, seed)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return worker


def _work(worker: _Worker, seed: int) -> None:
    """Run the cases of a worker, in its process."""
    with contextlib.suppress(ValueError, OSError):
        limit = _memory("VmSize") + HARD_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _redirect(worker.folder)
    with worker.log.open("a", encoding="utf-8", buffering=1) as log:
        case_folder = worker.folder / "case"
        with _inside(case_folder):
            worker.subject.warm()
        for number in worker.cases:
            log.write(json.dumps({"case": number}) + "\n")
            rng = random.Random(f"{seed} {worker.subject.name} {number}")
            case = Case(number, rng, case_folder)
            case.told = lambda what: log.write(json.dumps({"note": what}) + "\n")
            outcome = _try(worker, case)
            log.write(json.dumps(vars(outcome)) + "\n")


def _redirect(folder: Path) -> None:
    """Give this process files for stdin, stdout and stderr: what a plugin writes to descriptor 1 counts too."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
    # Strict, as a terminal's stdout is.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _try(worker: _Worker, case: Case) -> Outcome:
    """Run a case in an empty folder, and hold it to its limits."""
    subject = worker.subject
    with _inside(case.folder):
        before, began = _reset_peak(), _processor_time()
        # It ends the process, which an exception may not do in the middle of C.
        signal.setitimer(signal.ITIMER_PROF, 2 * subject.seconds)
        kind, words = _outcome(subject, case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = _processor_time() - began
        megabytes = max(0, _memory("VmHWM") - before) / MIB
    if kind != "fault" and seconds > subject.seconds:
        kind, words = "fault", f"{seconds:.1f} s; the limit is {subject.seconds:g} s"
    if kind != "fault" and megabytes > subject.megabytes:
        kind, words = "fault", f"{megabytes:.0f} MiB; the limit is {subject.megabytes} MiB"
    return Outcome(case.number, kind, round(seconds, 3), round(megabytes, 1), words, case.done)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make an empty folder the current one, with a cache of its own, and remove it afterwards."""
    folder.mkdir()
    os.chdir(folder)
    os.environ["METAZOO_CACHE"] = f"{folder.parent}/cache"
    try:
        yield
    finally:
        os.chdir(folder.parent)
        _remove(folder)
        _remove(folder.parent / "cache")


def _outcome(subject: Subject, case: Case) -> tuple[str, str]:
    try:
        subject.run(case)
        return "answer", ""
    except Refused as refusal:
        return "error", str(refusal)
    except MetazooError as error:
        if not error.message.strip():
            return "fault", "a MetazooError without a message"
        return "error", error.message
    except Fault as fault:
        return "fault", str(fault)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return "fault", f"{type(error).__name__}: {str(error)[:300]} ({place})"


def _remove(folder: Path) -> None:
    """Remove a folder, however deep it is."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except (OSError, RecursionError):
        subprocess.run(["rm", "-rf", folder], check=True)


def _processor_time() -> float:
    """Return the seconds that this process and its children have computed."""
    return sum(os.times()[:4])


def _memory(part: str) -> int:
    """Return a part of this process's memory in bytes: VmSize, VmRSS or VmHWM, the peak of the latter."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{part}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(part)


def _reset_peak() -> int:
    """Forget the peak of this process's memory, and return what it has now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmHWM")
