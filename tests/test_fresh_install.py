"""metazoo and metazoo-reptile as wheels, in an environment that holds nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from distributions import copy_sources

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
REPTILE = ROOT / "plugins" / "metazoo-reptile"


def run(*command: Any, **options: Any) -> str:
    """Run a command and return what it writes to stdout; fail with what it writes to stderr."""
    done = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, **options
    )
    offline = (
        "CI" not in os.environ and "install" in command and "connection" in done.stderr.lower()
    )
    if done.returncode and offline:
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build both wheels from copies: setuptools leaves a build folder, and would take stale files from one."""
    folder = tmp_path_factory.mktemp("wheels")
    copy_sources(folder / "metazoo")
    shutil.copytree(
        REPTILE,
        folder / "reptile",
        ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"),
    )
    pip = (
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    )
    run(*pip, "-w", folder, folder / "metazoo", folder / "reptile")
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def fresh(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install both wheels in a new environment, and return its folder of programs."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    run(
        programs / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",  # of torch's thousands of modules few are imported
        "-c",
        ROOT / "constraints.txt",
        *wheels.values(),
    )
    return programs


def test_the_wheel_holds_every_module_the_models_and_no_tests(wheels: dict[str, Path]) -> None:
    held = set(zipfile.ZipFile(wheels["metazoo"]).namelist())
    source = ROOT / "metazoo"
    wanted = {
        f"metazoo/{p.relative_to(source).as_posix()}"
        for kind in ("*.py", "*.typed")
        for p in source.rglob(kind)
    }
    wanted |= {
        f"metazoo/pretrained/{p.name}"
        for kind in ("*.json", "*.safetensors")
        for p in (source / "pretrained").glob(kind)
    }
    assert {"metazoo/py.typed", "metazoo/pretrained/__init__.py"} <= wanted
    assert wanted <= held
    assert {name.split("/")[0].partition("-")[0] for name in held} == {"metazoo"}
    assert not [
        name
        for name in held
        if "test_" in name or name.startswith(("tests/", "plugins/", "benchmarks/"))
    ]
    assert any(name.endswith("LICENSE") for name in held)


def test_the_plugins_wheel_is_one_module(wheels: dict[str, Path]) -> None:
    held = zipfile.ZipFile(wheels["metazoo_reptile"]).namelist()
    assert [name for name in held if ".dist-info/" not in name] == ["metazoo_reptile.py"]
    assert any(name.endswith("LICENSE") for name in held)


def test_the_plugins_own_tests_pass(wheels: dict[str, Path], tmp_path: Path) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path,
        wheels["metazoo_reptile"],
    )
    shutil.copytree(REPTILE / "tests", tmp_path / "tests")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run(
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        tmp_path / "tests",
        cwd=tmp_path,
        env=environment,
    )


def test_list_train_and_eval_in_a_fresh_environment(fresh: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["OMP_NUM_THREADS"] = (
        "1"  # for work as small as this, threads only wait for each other
    )
    elsewhere, run_folder = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    here: dict[str, Any] = {"cwd": tmp_path, "env": environment}
    listed = json.loads(run(fresh / "metazoo", "list", "--json", **here))
    assert {"protonet": "metazoo", "reptile": "metazoo-reptile"}.items() <= {
        item["name"]: item["from"].partition(" ")[0] for item in listed["algorithms"]
    }.items()
    small = [
        "--steps",
        "3",
        "--eval-inner-steps",
        "5",
        "--validation-episodes",
        "5",
        "--test-episodes",
        "20",
        "--queries",
        "5",
    ]
    trained = json.loads(
        run(fresh / "metazoo", "train", "reptile", *small, "--out", run_folder, "--json", **here)
    )
    # From another directory, and it is the same number.
    judged = json.loads(
        run(
            fresh / "metazoo",
            "eval",
            run_folder,
            "--episodes",
            "20",
            "--json",
            cwd=elsewhere,
            env=environment,
        )
    )
    assert judged["results"][0]["mean"] == pytest.approx(trained["mean"], abs=1e-6)
    assert judged["results"][0]["transductive"] is False
    run(
        fresh / "python",
        "-c",
        "from metazoo.testing import check_algorithm as c; c('reptile', {'eval_inner_steps': 3})",
        **here,
    )
