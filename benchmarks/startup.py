"""How long metazoo takes to start: fresh processes of `import metazoo` and of the command line."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from .harness import Bench

TORCH = "import torch"
LIBRARY = "import metazoo"
ALL = "import metazoo and all that needs torch"
# All that needs torch: a class of the contract, a function of the zoo, and every built-in plugin.
EVERYTHING = (
    "import metazoo; metazoo.load; metazoo.Algorithm; metazoo.FewShotClassifier; "
    "from metazoo.plugins.registry import registry; "
    "registry().algorithms, registry().datasets, registry().backbones"
)
WORDS = ("--help", "--version", "nosuchcommand", "--nosuchoption")
COMMANDS = {f"metazoo {word}": word for word in WORDS}
# What the installed script does, and in the end whether torch was imported.
SCRIPT = "import sys; from metazoo.cli import main; sys.argv[0] = 'metazoo'; main()"
LIMITS = {LIBRARY: 0.2, **dict.fromkeys(COMMANDS, 0.4)}
EXTRA = 0.3  # seconds that metazoo may add to `import torch`


def start(code: str, *words: str) -> tuple[float, bool]:
    """Return the seconds that a new process takes, and whether it imports torch."""
    watched = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n{code}"
    command, folder = [sys.executable, "-c", watched, *words], tempfile.gettempdir()
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout.endswith("True\n")


def run(bench: Bench) -> None:
    bench.cpu_only()
    bench.work = "wall time of a fresh Python process; the ratio is to `import torch`"
    programs: dict[str, tuple[str, ...]] = {TORCH: (TORCH,), LIBRARY: (LIBRARY,)}
    programs |= {name: (SCRIPT, word) for name, word in COMMANDS.items()}
    programs |= {ALL: (EVERYTHING,)}
    with bench.part("start"):
        times: dict[str, list[float]] = {name: [] for name in programs}
        for i in range(bench.pick(8, 1)):
            found = {name: start(*program) for name, program in programs.items()}
            if i or bench.quick:  # the first round reads the files from the disk
                for name, (seconds, _) in found.items():
                    times[name].append(seconds)
        bench.add(times, unit="s")
        for row in bench.rows:
            row.more["imports torch"] = "yes" if found[row.way][1] else "no"
            if row.way in LIMITS:
                row.more["goal"] = f"< {LIMITS[row.way]} s"
            elif row.way == ALL:
                added = statistics.median(a - b for a, b in zip(times[ALL], times[TORCH]))
                row.more["goal"] = f"at most {EXTRA} s over `import torch`"
                row.note = f"{added:+.2f} s over `import torch`, median of the rounds"
