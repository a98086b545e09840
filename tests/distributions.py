"""Plugins as distributions, and metazoo called with them on its path; the fixture `install` has pip install them."""

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
    """A distribution `zoo-CASE` with one module, in whose source NAME stands for the case, and an entry point named after it.

    `target` is where that points, MODULE standing for the module, and `again` a second entry point to the module.
    """

    source: str
    target: str = field(default="MODULE", kw_only=True)
    again: str | None = field(default=None, kw_only=True)

    def write(self, folder: Path, case: str) -> Path:
        """Write the wheel that building its source tree gives: for forty of them that takes a minute, writing them no time."""
        points = [f"{case} = {self.target.replace('MODULE', module_of(case))}"]
        if self.again is not None:
            points.append(f"{self.again} = {module_of(case)}")
        info = f"{module_of(case)}-1.2.3.dist-info"
        files = {
            f"{module_of(case)}.py": self.source.replace("NAME", case),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: zoo-{case}\nVersion: 1.2.3\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": "\n".join(["[metazoo]", *points]),
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        path = folder / f"{module_of(case)}-1.2.3-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
        return path


class SourceTree(Distribution):
    """A distribution that pip has to build; its entry point is the module."""

    def write(self, folder: Path, case: str) -> Path:
        tree = folder / "source" / case
        tree.mkdir(parents=True)
        (tree / f"{module_of(case)}.py").write_text(self.source.replace("NAME", case))
        (tree / "pyproject.toml").write_text(
            f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "zoo-{case}"\nversion = "1.2.3"\n'
            f'[project.entry-points.metazoo]\n{case} = "{module_of(case)}"\n'
            f'[tool.setuptools]\npy-modules = ["{module_of(case)}"]\n'
        )
        return tree


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
    # One call to pip for all is much the faster; then each gets what pip wrote for it, alone.
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
import metazoo.cli.listing, metazoo.cli.training

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
    """Run each job's command lines of metazoo in a process of its own, with the job's folders first on its path.

    The processes are forks of one that has imported torch and read no plugin yet, for that import takes nearly all the time.
    """
    plan = [
        ([str(p) for p in path], calls, str(folder / f"{i}.json"))
        for i, (path, calls) in enumerate(jobs)
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(plan)],
        check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [[Call(*result) for result in json.loads(Path(file).read_text())] for _, _, file in plan]


BUGS = (
    ALGORITHM
    + """
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

class Returns(Nearest):
    def loss(self, task):
        pass

class Large(Nearest):
    def loss(self, task):
        return torch.ones(2**50)

class Mended(Nearest):
    def loss(self, task):
        raise metazoo.OptionError("these tasks are too few", "take more")

@metazoo.hookimpl
def register_algorithms():
    return {"bug-in-loss": InLoss, "bug-in-forward": InForward, "bug-in-constructor": InConstructor, "bug-in-return": Returns,
            "bug-of-size": Large, "bug-of-file": Missing, "no-bug": Mended}

@metazoo.hookimpl
def register_backbones():
    return {"dry": Dry}

@metazoo.hookimpl
def register_commands(cli):
    cli.command("bug-in-command")(lambda: 1 / 0)  # bug-in-command
"""
)
BUGGY = {
    "bug-in-loss": ("AttributeError: ", "loss"),
    "bug-in-forward": ("KeyError: 'two\\nlines'", "compare"),
    "bug-of-file": ("FileNotFoundError: ", "loss"),
    "bug-in-return": ("TypeError: ", ""),
    "bug-of-size": ("RuntimeError: ", ""),
}
