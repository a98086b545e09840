"""Runs and data that several tests look at: never changed (copy what you mean to damage); plugins to install, and servers."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import Distribution, pip_install
from forks import Forks, forks
from once import once
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
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing goes into the home of whoever runs the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="metazoo-tests-")
if (
    os.environ.get("METAZOO_KERNELS") != "emulated"
):  # such a session is given the cache that its library lies in
    os.environ["METAZOO_CACHE"] = _CACHE.name
os.environ["MPLCONFIGDIR"] = _CACHE.name
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

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


def trained(factory: pytest.TempPathFactory, *words: Any, **recipe: Any) -> Path:
    """Train a run for all workers; another test that says the same gets the same."""
    name = "-".join(map(str, [*words, *recipe.values()]))
    return once(factory, name, lambda folder: make_run(folder / "run", *words, **recipe)) / "run"


@pytest.fixture(scope="session")
def protonet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of protonet on glyphs, just long enough to tell shapes apart."""
    return trained(tmp_path_factory, "protonet", steps=40, validate_every=20)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, not trained for as long."""
    return trained(tmp_path_factory, "protonet", steps=30, validate_every=15)


@pytest.fixture(scope="session")
def maml_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of maml on glyphs, with a head for three classes."""
    return trained(tmp_path_factory, "maml", train_ways=3)


@pytest.fixture(scope="session")
def sinusoid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of maml on sinusoids."""
    return trained(tmp_path_factory, "maml", "sinusoid")


@pytest.fixture(scope="session")
def exported(protonet_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the card and the weights of `protonet.tiny_3w1s`."""
    protocols = [Protocol("test", 3, 1, 3, 0, 12)]

    def make(folder: Path) -> None:
        name, about = "protonet.tiny_3w1s", "a tiny one"
        export(protonet_run, name, about, "CC0-1.0", folder, protocols, "cpu")

    return once(tmp_path_factory, "exported", make)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of images of noise; never changed."""
    return once(tmp_path_factory, "tree", images)


@pytest.fixture(scope="session")
def packed_glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packed glyphs; never changed."""
    data = Glyphs(Glyphs.Config(alphabets=6))
    folder = once(
        tmp_path_factory, "packed", lambda folder: pack(data, "glyphs", folder / "glyphs")
    )
    return folder / "glyphs"


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

    def installed(plugins: Mapping[str, Distribution]) -> Path:
        digest = hashlib.sha256(repr(sorted(plugins.items())).encode()).hexdigest()
        return once(
            tmp_path_factory, f"plugins-{digest[:16]}", lambda folder: pip_install(folder, plugins)
        )

    return installed


@pytest.fixture(scope="session")
def fresh_python() -> Iterator[Forks]:
    """Runs programs in processes of their own, in which torch is imported and nothing of metazoo."""
    with forks() as server:
        yield server


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., Server]:
    """Starts servers on this machine, made as `Server` is."""
    monkeypatch.setenv("no_proxy", "*")

    def start(*words: Any, **more: Any) -> Server:
        server = Server(*words, **more)
        request.addfinalizer(server.stop)
        return server

    return start
