"""What a machine must have to prove a checkout on it, and what it may have."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

NEEDED = (
    "numpy",
    "pluggy",
    "click",
    "rich",
    "safetensors",
    "PIL",
    "matplotlib",
    "tensorboard",
    "setuptools",
)
OPTIONAL = {"pytest": "tests", "ninja": "building the kernels", "pybind11": "building the kernels"}


class Failure(Exception):
    """What is wrong with this machine, and what to do."""

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.message, self.hint = message, hint


def device_name(device: str) -> str:
    """Return the name of the device, or raise Failure where it cannot be used."""
    if importlib.util.find_spec("torch") is None:
        raise Failure(
            f"{Path(sys.executable).name} has no torch",
            "give the Python that has it: make gpu-test PYTHON=...",
        )
    if device == "cpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        built = (
            "built for CUDA " + torch.version.cuda if torch.version.cuda else "built without CUDA"
        )
        raise Failure(
            f"there is no CUDA device for torch {torch.__version__}, {built}",
            "run it on a machine that has one; --device cpu --quick rehearses everything without",
        )
    return torch.cuda.get_device_name()


def missing() -> list[str]:
    """Return what this machine lacks, in words; raise Failure where nothing can be done without it."""
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise Failure(
            f"{Path(sys.executable).name} lacks {', '.join(absent)}",
            "install metazoo's dependencies there, or name another PYTHON",
        )
    notes = [
        f"{name} ({use})"
        for name, use in OPTIONAL.items()
        if importlib.util.find_spec(name) is None
    ]
    tools = {"nvcc": "building the kernels", "compute-sanitizer": "memcheck, racecheck"}
    return notes + [f"{name} ({use})" for name, use in tools.items() if not tool(name)]


def tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit."""
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    found = [shutil.which(name, path=os.path.join(home, "bin")) for home in homes]
    return next(
        (
            path
            for path in [*found, shutil.which(name), shutil.which(name, path="/usr/local/cuda/bin")]
            if path
        ),
        None,
    )
