"""How long metazoo takes to start: fresh processes of `import metazoo` and of the command line."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from .harness import ROOT, Bench

TORCH = "import torch"
LIBRARY = "import metazoo"
ALL = "import metazoo and all that needs torch"
# All that needs torch: a class of the contract, a function of the zoo, and every built-in plugin.
EVERYTHING = (
    "import metazoo; metazoo.load; metazoo.Algorithm; metazoo.FewShotClassifier; "
    "from metazoo.plugins.registry import registry; "
    "registry().algorithms, registry().datasets, registry().backbones"
)
COMMANDS = {
    "metazoo --help": ["--help"],
    "metazoo --version": ["--version"],
    "metazoo nosuchcommand": ["nosuchcommand"],
    "metazoo --nosuchoption": ["--nosuchoption"],
}
# What the installed script does, and in the end whether torch was imported.
SCRIPT = "import sys; from metazoo.cli import main; sys.argv[0] = 'metazoo'; main()"
LIMITS = {LIBRARY: 0.2, **dict.fromkeys(COMMANDS, 0.4)}
EXTRA = 0.3  # seconds that metazoo may add to `import torch`


def spend(code: str, *words: str) -> float:
    """Return the seconds that a new process takes."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tempfile.gettempdir(), capture_output=True
    )
    return time.perf_counter() - began


def imports_torch(code: str, *words: str) -> bool:
    """Return whether a process that runs this code imports torch."""
    watched = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", watched, *words], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.split()[-1] == "True"


def run(bench: Bench) -> None:
    bench.cpu_only()
    bench.work = "wall time of a fresh Python process; the ratio is to `import torch`"
    programs: dict[str, tuple[str, ...]] = {
        TORCH: (TORCH,),
        LIBRARY: (LIBRARY,),
        **{name: (SCRIPT, *words) for name, words in COMMANDS.items()},
        ALL: (EVERYTHING,),
    }
    with bench.part("start"):
        times: dict[str, list[float]] = {name: [] for name in programs}
        for program in programs.values():
            spend(*program)
        for _ in range(bench.pick(7, 1)):
            for name, program in programs.items():
                times[name].append(spend(*program))
        bench.add(times, unit="s")
        rows = {row.way: row for row in bench.rows}
        for name, limit in LIMITS.items():
            rows[name].more["goal"] = f"< {limit} s"
            rows[name].more["imports torch"] = "yes" if imports_torch(*programs[name]) else "no"
        added = statistics.median(a - b for a, b in zip(times[ALL], times[TORCH]))
        rows[ALL].more["goal"] = f"at most {EXTRA} s over `import torch`"
        rows[ALL].note = f"{added:+.2f} s over `import torch`, median of the rounds"
