"""Python programs in processes of their own, forked from one that has imported torch.

The import takes most of the time of a short program.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SERVER = """
import importlib, json, os, signal, sys, traceback

def child(job):
    signal.alarm(300)
    for number, file in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv[:] = ["-c", *job["arguments"]]
    sys.path[:0] = ["", *filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))]
    try:
        exec(compile(job["code"], "<forked>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1

sys.path.remove("")
sys.path[:0] = (added := json.loads(sys.argv[1]))
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
for path in added:
    sys.path.remove(path)
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = child(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 255)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    """Runs programs; `run` is to be used as `subprocess.run` with captured output."""

    def __init__(self, server: subprocess.Popen[str]):
        self._server = server

    def run(
        self,
        code: str,
        *arguments: Any,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory(prefix="metazoo-fork-") as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()
            err.touch()
            job = {
                "code": code,
                "arguments": list(map(str, arguments)),
                "env": dict(os.environ if env is None else env),
                "cwd": str(cwd or Path.cwd()),
                "out": str(out),
                "err": str(err),
            }
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
            assert answer, "the server of forks has ended"
            return subprocess.CompletedProcess(
                ["python", "-c", code, *job["arguments"]],
                int(answer),
                out.read_text(errors="replace"),
                err.read_text(errors="replace"),
            )


@contextlib.contextmanager
def forks(
    modules: Sequence[str] = ("torch",), path: Sequence[Path] = (), **environment: str
) -> Iterator[Forks]:
    """Start a process that has imported some modules, found on `path` too, and stop it in the end."""
    command = [sys.executable, "-c", SERVER, json.dumps(list(map(str, path))), json.dumps(modules)]
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield Forks(server)  # it ends with its stdin
