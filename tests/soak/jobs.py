"""Commands that write files, run in processes of their own: to be killed, or to find the disk full.

Each can be repeated after a stop, and then ends with what an undisturbed run writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from servers import FileHandler, Server

from metazoo import cli
from metazoo.datasets.packed import writer
from metazoo.zoo import run_folder
from metazoo.zoo.weights import load_tensors

from .material import NAME, Material, folder_options
from .readers import tensors_digest
from .subject import must

STEPS = 40


@dataclass(frozen=True)
class Job:
    """A command to disturb.

    Attributes:
        name: what it does.
        words: the command, which depends on what lies in the current folder.
        written: what it has written there, without times. Raises Fault if a file is not whole.
        folder: where it writes, in the current folder.
    """

    name: str
    words: Callable[[], list[Any]]
    written: Callable[[], dict[str, Any]]
    folder: str


def start(job: Job, limit: Callable[[], object] = lambda: None) -> tuple[int, int]:
    """Start a job in a process, after `limit` there; return its number and a pipe of what it prints."""
    words = [str(word) for word in job.words()]
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    status = 70
    try:
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        writer.SHARD = writer.PIECE = 1024  # more than one shard, of data as small as these
        limit()
        status = cli.run(words)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(pid: int, pipe: int) -> tuple[int, str]:
    """Wait for a job, and return its status and what it printed."""
    with os.fdopen(pipe, "rb") as file:
        told = file.read().decode("utf-8", "backslashreplace")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def undisturbed(job: Job) -> tuple[dict[str, Any], float]:
    """Run a job to its end; return what it wrote and how many seconds it took."""
    began = time.monotonic()
    status, told = finish(*start(job))
    must(status == 0, f"{job.name} fails undisturbed: {told[-500:]}")
    return job.written(), time.monotonic() - began


def jobs(material: Material, url: Callable[[], str]) -> list[Job]:
    """Return the jobs. `url` is where a slow server has the model."""
    return [
        Job("train", lambda: _train(material), _trained, "run"),
        Job(
            "pack",
            lambda: ["data", "pack", "folder", "packed", *folder_options(material.images)],
            _packed,
            "packed",
        ),
        Job(
            "export",
            lambda: [
                *("export", material.run, "--name", NAME, "--licence", "CC0-1.0"),
                *("--out", "model", "--episodes", 100, "--device", "cpu"),
            ],
            _exported,
            "model",
        ),
        Job("download", lambda: _predict(material, url()), lambda: _downloaded(material), "cache"),
    ]


def predicting(material: Material) -> Job:
    """Return the job that writes nothing."""
    return Job("predict", lambda: _predict(material, material.run), lambda: {}, ".")


def _train(material: Material) -> list[Any]:
    if Path("run", run_folder.CONFIG).exists():
        return ["train", "--resume", "run"]
    return [
        *(
            "train",
            "protonet",
            "--dataset",
            "packed",
            "--data-root",
            material.packed,
            "--out",
            "run",
        ),
        *("--ways", 2, "--queries", 2, "--train-ways", 3, "--train-queries", 2, "--meta-batch", 2),
        *("--steps", STEPS, "--validate-every", 4, "--validation-episodes", 2),
        *("--test-episodes", 4, "--backbone-width", 4, "--device", "cpu"),
    ]


def _predict(material: Material, model: Any) -> list[Any]:
    return [
        *("predict", "--model", model, "--support", material.support, "--query", material.query),
        *("--device", "cpu", "--json"),
    ]


def _trained() -> dict[str, Any]:
    """Return a run's weights, optimizer, metrics and result, without what tells the time."""
    found: dict[str, Any] = {}
    folder = Path("run")
    for name in (run_folder.BEST, run_folder.LAST):
        if (folder / name).exists():
            found[name] = tensors_digest(folder / name)
            state = load_tensors(folder / name)[1]
            found[f"{name} step"] = state.get("step")
    for name in (run_folder.CONFIG, run_folder.RESULT):
        if (folder / name).exists():
            found[name] = json.loads((folder / name).read_text())
            found[name].pop("seconds", None)
    if (folder / run_folder.CURVE).exists():
        Image.open(folder / run_folder.CURVE).load()
    lines = run_folder.read_metrics(folder) if folder.exists() else []
    found["metrics"] = [{**line, "seconds": 0} for line in lines]
    return found


def _packed() -> dict[str, Any]:
    if not Path("packed", "index.json").exists():
        return {}
    index = json.loads(Path("packed", "index.json").read_text())
    bins = {path.name: _sha(path.read_bytes()) for path in Path("packed").glob("*.bin")}
    return {"index": index, **bins}


def _exported() -> dict[str, Any]:
    found: dict[str, Any] = {}
    weights, card = Path("model", f"{NAME}.safetensors"), Path("model", f"{NAME}.json")
    if weights.exists():
        load_tensors(weights)
        found["weights"] = _sha(weights.read_bytes())
    if card.exists():
        found["card"] = json.loads(card.read_text())
        must(found["card"]["sha256"] == found.get("weights"), "the card is of other weights")
    return found


def _downloaded(material: Material) -> dict[str, Any]:
    sound = (material.model / f"{NAME}.safetensors").read_bytes()
    found = list(Path("cache").rglob("*.safetensors"))
    must(
        all(path.read_bytes() == sound for path in found), f"damaged under its final name: {found}"
    )
    return {path.name: _sha(sound) for path in found}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def slow_server(material: Material) -> Iterator[str]:
    """Serve the model slowly, from a process of its own, and yield its pinned address."""
    files = {
        f"/{NAME}.{kind}": (material.model / f"{NAME}.{kind}").read_bytes()
        for kind in ("json", "safetensors")
    }

    def slowly(handler: FileHandler, body: bytes, begin: int) -> None:
        handler.head(206 if begin else 200, Content_Length=len(body) - begin)
        for at in range(begin, len(body), 512):
            handler.wfile.write(body[at : at + 512])
            time.sleep(0.005)

    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        signal.setitimer(signal.ITIMER_PROF, 0)
        server = Server(files)
        server.answers[f"/{NAME}.safetensors"] = slowly
        os.write(theirs, server.url.encode())
        os.close(theirs)
        signal.pause()
    os.close(theirs)
    url = os.read(ours, 100).decode()
    os.close(ours)
    pin = json.loads(files[f"/{NAME}.json"])["sha256"]
    try:
        yield f"{url}/{NAME}.json#sha256={pin}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
