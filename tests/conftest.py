"""Runs and data that several tests look at: never changed (copy what you mean to damage); plugins to install, and servers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import Distribution, pip_install
from packs import Vectors, images
from servers import Server

from metazoo.datasets.glyphs import Glyphs
from metazoo.datasets.packed import writer
from metazoo.datasets.packed.writer import pack
from metazoo.evaluation.protocol import Protocol
from metazoo.training.loop import Watcher, train
from metazoo.training.plan import plan
from metazoo.zoo import export, run_folder

# The tests' networks are so small that threads cost more than they bring; subprocesses inherit the variable.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing goes into the home of whoever runs the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="metazoo-tests-")
if (
    os.environ.get("METAZOO_KERNELS") != "emulated"
):  # such a session is given the cache that its library lies in
    os.environ["METAZOO_CACHE"] = _CACHE.name
os.environ["MPLCONFIGDIR"] = _CACHE.name
torch.set_num_threads(1)

RECIPE: dict[str, Any] = {
    "ways": 3,
    "queries": 3,
    "train_ways": 4,
    "train_queries": 2,
    "meta_batch": 2,
    "steps": 2,
    "validate_every": 1,
    "validation_episodes": 2,
    "test_episodes": 4,
    "device": "cpu",
}


def make_run(
    folder: Path,
    algorithm: str,
    dataset: str = "glyphs",
    data: dict[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    backbone = {} if dataset == "sinusoid" else {"width": 4}
    options = {"alphabets": 6} if dataset == "glyphs" else {}
    blueprint, source = plan(
        algorithm, dataset, {}, {**options, **(data or {})}, backbone, {**RECIPE, **recipe}
    )
    run_folder.create(folder, blueprint)
    train(blueprint, source, folder, Watcher())
    return folder


@pytest.fixture(scope="session")
def protonet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of protonet on glyphs, just long enough to tell shapes apart."""
    return make_run(
        tmp_path_factory.mktemp("runs") / "protonet", "protonet", steps=40, validate_every=20
    )


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, not trained for as long."""
    return make_run(
        tmp_path_factory.mktemp("runs") / "other", "protonet", steps=30, validate_every=15
    )


@pytest.fixture(scope="session")
def maml_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of maml on glyphs, with a head for three classes."""
    return make_run(tmp_path_factory.mktemp("runs") / "maml", "maml", train_ways=3)


@pytest.fixture(scope="session")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of maml on sinusoids."""
    return make_run(tmp_path_factory.mktemp("runs") / "sinusoid", "maml", "sinusoid")


@pytest.fixture(scope="session")
def exported(protonet_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the card and the weights of `protonet.tiny_3w1s`."""
    out = tmp_path_factory.mktemp("exported")
    export(
        protonet_run,
        "protonet.tiny_3w1s",
        "a tiny one",
        "CC0-1.0",
        out,
        [Protocol("test", 3, 1, 3, 0, 12)],
        "cpu",
    )
    return out


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of images of noise; never changed."""
    return images(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def packed_glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packed glyphs; never changed."""
    out = tmp_path_factory.mktemp("packed") / "glyphs"
    pack(Glyphs(Glyphs.Config(alphabets=6)), "glyphs", out)
    return out


@pytest.fixture
def packed_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packed vectors, two to a shard, that may be damaged."""
    monkeypatch.setattr(writer, "SHARD", 40)
    pack(Vectors(), "vectors", tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture(scope="session")
def install(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Mapping[str, Distribution]], Path]:
    """Installs plugins with pip, and returns the folder with a folder of each, to be put on PYTHONPATH, and `all` of them."""
    return lambda plugins: pip_install(tmp_path_factory.mktemp("plugins"), plugins)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., Server]:
    """Starts servers on this machine, made as `Server` is."""
    monkeypatch.setenv("no_proxy", "*")

    def start(*words: Any, **more: Any) -> Server:
        server = Server(*words, **more)
        request.addfinalizer(server.stop)
        return server

    return start
