"""Plugins as distributions that pip installs, and calls of metazoo with them on its path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ALGORITHM = """
from dataclasses import dataclass
from typing import Annotated
import metazoo

class Nearest(metazoo.FeatureLearner):
    def classify(self, support_z, support_y, query_z):
        return -metazoo.ops.pairwise_sqdist(query_z, metazoo.class_means(support_z, support_y))
"""


@dataclass(frozen=True)
class Distribution:
    """A distribution `zoo-CASE` with one module, in whose source NAME stands for the case.

    `plugins` are its entry points in the group `metazoo`, where NAME stands for the case and MODULE for
    the module. `commands` are those in the group `metazoo.commands`.
    """

    source: str
    plugins: Mapping[str, str] = field(default_factory=lambda: {"NAME": "MODULE"}, kw_only=True)
    commands: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def entry_points(self, case: str) -> dict[str, dict[str, str]]:
        """Return the entry points of each group, by name."""
        return {
            group: {
                name.replace("NAME", case): target.replace("MODULE", module_of(case))
                for name, target in points.items()
            }
            for group, points in (("metazoo", self.plugins), ("metazoo.commands", self.commands))
        }

    def write(self, folder: Path, case: str) -> Path:
        """Write a wheel and return its path. To build forty of them takes pip a minute."""
        points = [
            line
            for group, named in self.entry_points(case).items()
            for line in (f"[{group}]", *(f"{name} = {target}" for name, target in named.items()))
        ]
        info = f"{module_of(case)}-1.2.3.dist-info"
        files = {
            f"{module_of(case)}.py": self.source.replace("NAME", case),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: zoo-{case}\nVersion: 1.2.3\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": "\n".join(points),
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        path = folder / f"{module_of(case)}-1.2.3-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
        return path


class SourceTree(Distribution):
    """A distribution that pip has to build."""

    def write(self, folder: Path, case: str) -> Path:
        tree = folder / "source" / case
        tree.mkdir(parents=True)
        (tree / f"{module_of(case)}.py").write_text(self.source.replace("NAME", case))
        points = "".join(
            f'[project.entry-points."{group}"]\n'
            + "".join(f'{name} = "{target}"\n' for name, target in named.items())
            for group, named in self.entry_points(case).items()
        )
        (tree / "pyproject.toml").write_text(
            f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "zoo-{case}"\nversion = "1.2.3"\n'
            f'{points}[tool.setuptools]\npy-modules = ["{module_of(case)}"]\n'
        )
        return tree


def copy_sources(folder: Path) -> None:
    """Copy what metazoo's wheel is built from: setuptools would leave a build folder here."""
    leave = (".*", "build", "dist", "runs", "tests", "plugins", "*.egg-info", "__pycache__", "*.so")
    everywhere = shutil.ignore_patterns("__pycache__", "*.so")
    at_the_top = shutil.ignore_patterns(*leave)

    def ignored(place: str, names: list[str]) -> set[str]:
        return (at_the_top if Path(place) == ROOT else everywhere)(place, names)

    shutil.copytree(ROOT, folder, ignore=ignored)


def module_of(case: str) -> str:
    return "zoo_" + case.replace("-", "_")


def pip_install(root: Path, plugins: Mapping[str, Distribution]) -> Path:
    """Install plugins into `root`: each into the folder named after its case, and all of them into `all`."""
    sources = [distribution.write(root, case) for case, distribution in plugins.items()]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--no-compile",
    ]
    done = subprocess.run(
        [*pip, "--target", root / "all", *sources], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # One call of pip for all is much faster. Each case then gets a copy of what pip wrote for it.
    for case in plugins:
        (root / case).mkdir()
        info = next((root / "all").glob(f"{module_of(case)}-*.dist-info"))
        shutil.copytree(info, root / case / info.name)
        shutil.copy(root / "all" / f"{module_of(case)}.py", root / case)
    return root


class Call(NamedTuple):
    status: int
    out: str
    err: str


DRIVER = """
import contextlib, io, json, os, sys
import metazoo.cli.listing, metazoo.cli.training, metazoo.training.loop, metazoo.zoo.find

def answer(path, calls):
    sys.path[:0] = path
    for call in calls:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = metazoo.cli.run(call)
        yield status, out.getvalue(), err.getvalue()

for path, calls, file in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        with open(file, "w") as results:
            json.dump(list(answer(path, calls)), results)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def metazoo_calls(folder: Path, *jobs: tuple[list[Path], list[list[str]]]) -> list[list[Call]]:
    """Run the command lines of each job in a process of its own, with the job's folders on its path.

    The processes are forks of one that has imported torch, which takes nearly all the time, and no
    plugin yet.
    """
    plan = [
        ([str(p) for p in path], calls, str(folder / f"{i}.json"))
        for i, (path, calls) in enumerate(jobs)
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(plan)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [[Call(*result) for result in json.loads(Path(file).read_text())] for _, _, file in plan]


BUGS = Distribution(
    ALGORITHM
    + """
import click
import torch

class InLoss(Nearest):
    def loss(self, task):
        return metazoo.class_means(task.support_x, None)  # bug-in-loss

class InForward(Nearest):
    def classify(self, support_z, support_y, query_z):
        return self.compare()

    def compare(self):
        raise KeyError("two\\nlines")  # bug-in-forward

class InConstructor(Nearest):
    def __init__(self, backbone, spec, config=None):
        super().__init__(backbone, spec, config)
        torch.ones(2) @ torch.ones(3)  # bug-in-constructor

class Missing(Nearest):
    def loss(self, task):
        return torch.ones(len(open("no-such-file").read()))  # bug-of-file

class Dry(metazoo.Backbone):
    @dataclass(frozen=True)
    class Config(metazoo.Config):
        width: int = 4
        kernel: int = 3

    def __init__(self, input_shape, config=None):
        super().__init__(input_shape, config)
        self.layer = torch.nn.Conv2d(input_shape[0], self.config.width, self.config.kernel)
        self.out_features = self.forward(torch.zeros(1, *input_shape)).shape[1]

    def forward(self, x):
        return self.layer(x).flatten(1)  # dry-run

class Miscounted(Dry):
    def __init__(self, input_shape, config=None):
        super().__init__(input_shape, config)
        self.out_features += 1

class Returns(Nearest):
    def loss(self, task):
        pass

class Large(Nearest):
    def loss(self, task):
        return torch.ones(2**50)

class Exits(Nearest):
    def loss(self, task):
        raise SystemExit(0)  # bug-of-exit

class Mended(Nearest):
    def loss(self, task):
        raise metazoo.OptionError("these tasks are too few", "take more")

@metazoo.hookimpl
def register_algorithms():
    return {
        "bug-in-loss": InLoss,
        "bug-in-forward": InForward,
        "bug-in-constructor": InConstructor,
        "bug-in-return": Returns,
        "bug-of-size": Large,
        "bug-of-file": Missing,
        "bug-of-exit": Exits,
        "no-bug": Mended,
    }

@metazoo.hookimpl
def register_backbones():
    return {"dry": Dry, "miscounted": Miscounted}

@click.command()
def command():
    1 / 0  # bug-in-command
""",
    commands={"bug-in-command": "MODULE:command"},
)
BUGGY = {
    "bug-in-loss": ("AttributeError: ", "loss"),
    "bug-in-forward": ("KeyError: 'two\\nlines'", "compare"),
    "bug-of-file": ("FileNotFoundError: ", "loss"),
    "bug-of-exit": ("SystemExit: 0", "loss"),
    "bug-in-return": ("AttributeError: ", ""),
    "bug-of-size": ("RuntimeError: ", ""),
}
