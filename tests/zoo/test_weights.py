"""Files come back bit for bit, and damaged or hostile ones do no harm."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from metazoo import zoo
from metazoo.errors import CheckpointError, MetazooError, OptionError, UnknownNameError
from metazoo.io.files import LARGEST_JSON, read_json, write_atomically, write_json
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint
from metazoo.zoo.weights import (
    KEY,
    load_into,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
)


@pytest.fixture
def model_file(protonet_run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((protonet_run / run_folder.BEST).read_bytes())
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any], **tensors: torch.Tensor) -> None:
    """Change a model file's metadata, and put other tensors in place of its own."""
    held, metadata = load_tensors(path)
    change(metadata)
    save_tensors(path, {**held, **tensors}, metadata)


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
    tied = torch.randn(6, generator=generator)
    tensors = {
        "float": torch.tensor([0.1, -0.0, float("nan"), float("inf"), 1e-45]),
        "double": torch.randn(3, dtype=torch.float64, generator=generator),
        "half": torch.randn(3, generator=generator).half(),
        "bfloat": torch.randn(3, generator=generator).bfloat16(),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.tensor([0, 255], dtype=torch.uint8),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "channels_last": image,
        "slice": torch.arange(12.0).view(3, 4)[:, 1::2],
        "expanded": torch.tensor([3.0]).expand(4),
        "tied": tied,
        "tied again": tied,
        "part of tied": tied[2:],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    metadata = {"a": [1, None, "ü", -0.1], "b": {"c": True}}
    save_tensors(tmp_path / "x.safetensors", tensors, metadata)
    loaded, back = load_tensors(tmp_path / "x.safetensors")
    assert back == metadata
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape), name
        ours, theirs = (
            t.detach().contiguous().view(-1).view(torch.uint8) if t.dim() else t
            for t in (value, loaded[name])
        )
        assert torch.equal(ours, theirs), name


def test_a_model_comes_back_bit_for_bit_and_ready(protonet_run: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    model, blueprint = load_model(protonet_run / run_folder.BEST)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    assert blueprint == dataclasses.replace(
        run_folder.read_blueprint(protonet_run).portable(), recipe=blueprint.recipe
    )
    save_model(tmp_path / "again.safetensors", model, blueprint)
    again, _ = load_model(tmp_path / "again.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    task = torch.rand(1, 4, 1, 28, 28), torch.tensor([[0, 1, 2, 2]]), torch.rand(1, 5, 1, 28, 28)
    torch.testing.assert_close(model(*task), again(*task))


def test_a_file_says_nothing_of_this_machine(maml_run: Path, tmp_path: Path) -> None:
    blueprint = run_folder.read_blueprint(maml_run)
    folder = dataclasses.replace(
        blueprint, dataset="folder", dataset_options={"root": "/somewhere/private", "size": 32}
    )
    model, _ = load_model(maml_run / run_folder.BEST)
    save_model(tmp_path / "x.safetensors", model, folder)
    assert b"private" not in (tmp_path / "x.safetensors").read_bytes()
    kept = load_tensors(tmp_path / "x.safetensors")[1]
    assert kept["dataset_options"] == {"size": 32}
    assert kept["recipe"]["device"] == "auto"  # the run's was "cpu"


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused(model_file: Path, keep: float) -> None:
    data = model_file.read_bytes()
    model_file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged, or not a metazoo checkpoint"
    ):
        load_model(model_file)


def test_a_header_with_a_flipped_bit_is_read_right_or_refused(model_file: Path) -> None:
    data = bytearray(model_file.read_bytes())
    header = 8 + struct.unpack("<Q", data[:8])[0]
    chooser = random.Random(0)
    refused = 0
    for bit in chooser.sample(range(8 * header), 250):
        data[bit // 8] ^= 1 << bit % 8
        model_file.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            load_model(model_file)
        except MetazooError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("name", [run_folder.BEST, run_folder.LAST])
def test_a_file_with_flipped_bits_is_read_right_or_refused(
    protonet_run: Path, tmp_path: Path, name: str
) -> None:
    """The hardest are those in the tensors, which are all numbers."""
    whole, path, chooser = (protonet_run / name).read_bytes(), tmp_path / name, random.Random(0)
    tensors, metadata = load_tensors(protonet_run / name)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [*range(8, 50), *chooser.sample(range(header, len(whole)), 50)]
    refused = 0
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << chooser.randrange(8)
        path.write_bytes(data)
        try:
            found, about = load_tensors(path)
        except CheckpointError:
            refused += 1
            continue
        assert about.items() >= metadata.items()
        assert all(torch.equal(found[key], value) for key, value in tensors.items())
    assert refused >= 50


def test_a_file_without_a_sha256_still_loads(model_file: Path) -> None:
    tensors, metadata = load_tensors(model_file)
    safetensors.torch.save_file(tensors, model_file, {KEY: json.dumps(metadata)})
    model, _ = load_model(model_file)
    assert all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*nothing\.safetensors"):
        load_tensors(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="damaged, or not a metazoo checkpoint"):
        load_tensors(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {KEY: "{"}, {KEY: "[" * 100_000}])
def test_tensors_of_somebody_else_are_no_model(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, metadata)
    with pytest.raises(
        CheckpointError, match=r"theirs\.safetensors is damaged, or not a metazoo checkpoint"
    ):
        load_model(path)


def test_a_file_of_another_sort_is_not_read_whole(tmp_path: Path) -> None:
    """It may be larger than memory."""
    path = tmp_path / "data.bin"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(CheckpointError, match=r"data\.bin is damaged, or not a metazoo checkpoint"):
        load_model(path)


def safetensors_file(path: Path, header: dict[str, Any], size: int = 0) -> None:
    """Write a file with this header and `size` zeros for its tensors, which take no room on the disk."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + size)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2**39], "data_offsets": [0, 2**41]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "y": {"data_offsets": [0]}},
        {"x": {"data_offsets": "08"}},
        {"x": [0, 2**40]},
        {"x": None},
    ],
)
def test_a_file_that_begins_as_ours_is_not_read_beyond_what_its_header_promises(
    tmp_path: Path, tensors: dict[str, Any]
) -> None:
    path = tmp_path / "data.bin"
    safetensors_file(path, {"__metadata__": {KEY: "{}"}, **tensors}, 2**40)
    with pytest.raises(
        CheckpointError, match=r"data\.bin is damaged, or not a metazoo checkpoint"
    ) as caught:
        load_model(path)
    assert caught.value.hint == "give another file; if this was a model, train or fetch it again"


@pytest.mark.parametrize(
    "start",
    [
        b"\0" * 8 + b"{",
        b"\1" + b"\0" * 7 + b"{",
        b"\xff" * 8 + b"{",
        struct.pack("<Q", 2**30) + b"{",
    ],
)
def test_a_file_with_one_byte_like_ours_is_not_read_whole(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(start)
    os.truncate(path, 2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"data\.bin is damaged, or not a metazoo checkpoint"):
        load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_a_shape_beyond_numbers_in_a_header_is_damage(model_file: Path) -> None:
    metadata = load_tensors(model_file)[1]
    safetensors_file(
        model_file,
        {
            "__metadata__": {KEY: json.dumps(metadata)},
            "a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
        },
    )
    with pytest.raises(
        CheckpointError,
        match=r"model\.safetensors is damaged, or not a metazoo checkpoint: Stride calculation",
    ):
        load_model(model_file)


class Malice:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_torch_says_how_it_is_converted(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "theirs.pt"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"theirs\.pt is a file of torch\.save") as caught:
        zoo.find(path)
    assert "weights_only=True" in (caught.value.hint or "")


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_not_executed(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / "model.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Malice(mark)))
    else:
        torch.save({"x": Malice(mark)}, path)
    with pytest.raises(CheckpointError):
        load_model(path)
    assert not mark.exists()
    path = path.rename(tmp_path / "model.pt")
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert mark.exists()  # it was a weapon


def test_a_file_of_a_later_format_says_so(model_file: Path) -> None:
    rewrite(model_file, lambda m: m.update(format=3))
    with pytest.raises(
        CheckpointError, match=r"has format 3; this metazoo reads formats 1 and 2"
    ) as caught:
        load_model(model_file)
    assert "pip install -U metazoo" in (caught.value.hint or "")


def test_a_file_of_the_first_format_answers_as_it_did(model_file: Path) -> None:
    """Format 1 called tta `views`, had another schedule, and left the device out."""

    def as_format_1(metadata: dict[str, Any]) -> None:
        del metadata["algorithm_options"]["tta"], metadata["recipe"]["device"]
        metadata["algorithm_options"]["views"] = "shifted"
        metadata["recipe"]["halve_every"] = 10
        metadata["format"] = 1

    today, _ = load_model(model_file, tta="shifted")
    plain, _ = load_model(model_file)
    rewrite(model_file, as_format_1)
    model, blueprint = load_model(model_file)
    task = torch.rand(1, 4, 1, 28, 28), torch.tensor([[0, 1, 2, 2]]), torch.rand(1, 5, 1, 28, 28)
    torch.testing.assert_close(model(*task), today(*task))
    assert not torch.allclose(model(*task), plain(*task))
    assert blueprint.algorithm_options["tta"] == "shifted"
    assert Blueprint.from_dict(blueprint.as_dict(), "here") == blueprint
    rewrite(model_file, lambda m: m["algorithm_options"].update(views="one"))
    assert load_model(model_file)[1].algorithm_options["tta"] == "none"


def test_a_file_that_needs_a_missing_plugin_names_what_is_missing(model_file: Path) -> None:
    rewrite(model_file, lambda m: m.update(algorithm="reptilian"))
    with pytest.raises(UnknownNameError, match="no algorithm named 'reptilian'"):
        load_model(model_file)
    rewrite(model_file, lambda m: m.update(algorithm="protonet", backbone="vit"))
    with pytest.raises(UnknownNameError, match="no backbone named 'vit'"):
        load_model(model_file)


def test_weights_that_do_not_fit_are_named(model_file: Path) -> None:
    rewrite(model_file, lambda m: m["backbone_options"].update(width=5))
    with pytest.raises(
        CheckpointError,
        match=r"do not fit algorithm 'protonet': 'backbone.blocks.0.weight' has shape",
    ):
        load_model(model_file)
    rewrite(model_file, lambda m: m["backbone_options"].update(width=4), extra=torch.zeros(3))
    with pytest.raises(CheckpointError, match="extra"):
        load_model(model_file)
    with pytest.raises(CheckpointError, match="they have no 'log_scale'"):
        load_model(model_file, distance="cosine")


WEIGHT = "backbone.blocks.0.weight"


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_weights_that_are_no_real_numbers_are_refused(model_file: Path, dtype: torch.dtype) -> None:
    weight = load_tensors(model_file)[0][WEIGHT]
    rewrite(model_file, lambda m: None, **{WEIGHT: weight.to(dtype)})
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointError,
        match=rf"'{WEIGHT}' in .*model\.safetensors has the type {kind}, .* needs float32",
    ) as caught:
        load_model(model_file)
    assert "float16, bfloat16, float32, float64" in (caught.value.hint or "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_real_weights_of_another_width_are_converted(model_file: Path, dtype: torch.dtype) -> None:
    weight = load_tensors(model_file)[0][WEIGHT].to(dtype)
    rewrite(model_file, lambda m: None, **{WEIGHT: weight})
    assert torch.equal(load_model(model_file)[0].state_dict()[WEIGHT], weight.float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(model_file: Path, value: float) -> None:
    weight = load_tensors(model_file)[0][WEIGHT].double()
    weight.view(-1)[5] = value
    rewrite(model_file, lambda m: None, **{WEIGHT: weight})
    with pytest.raises(CheckpointError, match=rf"'{WEIGHT}' in .* holds NaN or infinity"):
        load_model(model_file)


def test_a_mask_may_hold_infinity(tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    load_into(Masked(), {"mask": torch.tensor([0.0, -torch.inf])}, "here")
    for other in ([-torch.inf, 0.0], [0.0, torch.inf], [0.0, torch.nan]):
        with pytest.raises(CheckpointError, match="'mask' in here holds NaN or infinity"):
            load_into(Masked(), {"mask": torch.tensor(other)}, "here")


def test_options_can_be_changed_where_the_weights_still_fit(maml_run: Path) -> None:
    model, _ = load_model(maml_run / run_folder.BEST, eval_inner_steps=7)
    assert model.config.eval_inner_steps == 7
    with pytest.raises(OptionError, match="has no option 'inner_stepz'"):
        load_model(maml_run / run_folder.BEST, inner_stepz=7)


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no spec": lambda m: m.pop("spec"),
    "a list of options": lambda m: m.update(algorithm_options=[1, 2]),
    "text for a backbone's options": lambda m: m.update(backbone_options="wide"),
    "no input format": lambda m: m.update(input_format=None),
    "a number for a name": lambda m: m.update(algorithm=5),
    "a recipe of nonsense": lambda m: m["recipe"].update(ways="many"),
    "an unknown part of the recipe": lambda m: m["recipe"].update(spice=1),
    "a recipe that is a list": lambda m: m.update(recipe=["ways"]),
    "a shape of text": lambda m: m["spec"].update(input_shape="wide"),
    "an infinite shape": lambda m: m["spec"].update(input_shape=[float("inf")]),
    "a spec too much": lambda m: m["spec"].update(wings=2),
    "outputs of text": lambda m: m["spec"].update(outputs="five"),
    "an option of another type": lambda m: m["backbone_options"].update(width="wide"),
    "an argument that no image has": lambda m: m.update(input_format={"evil": 1}),
    "an image's size of text": lambda m: m.update(
        input_format={"size": "x", "channels": 1, "invert": True}
    ),
    "an image's size beyond memory": lambda m: m["input_format"].update(size=2**31),
    "no size": lambda m: m["input_format"].update(size=0),
    "two channels": lambda m: m["input_format"].update(channels=2),
    "a number for a truth": lambda m: m["input_format"].update(invert=1),
    "a negative shape": lambda m: m["spec"].update(input_shape=[-1, 28, 28]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_damaged_blueprint_is_refused(maml_run: Path, tmp_path: Path, mistake: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((maml_run / run_folder.BEST).read_bytes())
    rewrite(path, MISTAKES[mistake])
    with pytest.raises(MetazooError):
        load_model(path)


@pytest.mark.parametrize("value", [None, [], "x", 5, {"format": 1}, {}])
def test_what_is_no_blueprint_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Blueprint.from_dict(value, "config.json")


def test_a_blueprint_survives_json(protonet_run: Path) -> None:
    blueprint = run_folder.read_blueprint(protonet_run)
    assert Blueprint.from_dict(json.loads(json.dumps(blueprint.as_dict())), "here") == blueprint
    assert blueprint.spec.input_shape == (1, 28, 28)


HUGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a width beyond any machine": lambda m: m["backbone_options"].update(width=10**9),
    "a gigabyte": lambda m: m["backbone_options"].update(width=3000),
    "a head for everyone": lambda m: m["spec"].update(outputs=10**10),
    "a shape beyond numbers": lambda m: m["spec"].update(input_shape=[10**15, 28, 28]),
    "more steps than numbers": lambda m: m["algorithm_options"].update(
        inner_steps=10**30, learned_rates="per-step"
    ),
    "more steps than memory": lambda m: m["algorithm_options"].update(
        inner_steps=2**62, learned_rates="per-step"
    ),
    "endless depth": lambda m: m.update(backbone="mlp", backbone_options={"depth": 10**9}),
}


@pytest.mark.parametrize("size", HUGE)
def test_a_file_that_asks_for_the_whole_machine_does_not_get_it(
    maml_run: Path, tmp_path: Path, size: str
) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes((maml_run / run_folder.BEST).read_bytes())
    rewrite(path, HUGE[size])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MetazooError):
        load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


WIDE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "conv4 width": lambda m: m["backbone_options"].update(width=10**7),
    "conv4 growth": lambda m: m["backbone_options"].update(width=400, growth=4.0),
    "mlp width": lambda m: m.update(backbone="mlp", backbone_options={"width": 10**5}),
    "mlp depth": lambda m: m.update(backbone="mlp", backbone_options={"width": 1000, "depth": 999}),
}


@pytest.mark.parametrize("option", WIDE)
def test_a_network_larger_than_its_weights_is_refused_before_it_takes_memory(
    maml_run: Path, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "wide.safetensors"
    path.write_bytes((maml_run / run_folder.BEST).read_bytes())
    rewrite(path, WIDE[option])
    numbers = sum(tensor.numel() for tensor in load_tensors(path)[0].values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        CheckpointError,
        match=rf"do not fit algorithm 'maml': they have {numbers} numbers in all, "
        r"but the options ask for \d{7,} or more",
    ):
        load_model(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


SLOW: dict[str, Callable[[dict[str, Any]], Any]] = {
    "inner steps": lambda m: m["algorithm_options"].update(eval_inner_steps=10**9),
    "queries": lambda m: m["recipe"].update(queries=10**9),
    "an image": lambda m: m["spec"].update(input_shape=[1, 1024, 1024]),
    "a photo": lambda m: m["input_format"].update(size=1024),
}


@pytest.mark.parametrize("option", SLOW)
def test_what_would_take_the_machine_later_is_refused(
    maml_run: Path, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "slow.safetensors"
    path.write_bytes((maml_run / run_folder.BEST).read_bytes())
    rewrite(path, SLOW[option])
    with pytest.raises(CheckpointError, match=r"slow\.safetensors") as caught:
        load_model(path)
    assert re.search(r"1000000000|too large", caught.value.message)


def test_the_limits_of_sizes_can_be_lifted(
    protonet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.safetensors"
    path.write_bytes((protonet_run / run_folder.BEST).read_bytes())
    rewrite(path, lambda m: m["spec"].update(input_shape=[1, 1024, 1024]))
    with pytest.raises(CheckpointError, match="too large") as caught:
        load_model(path)
    assert "METAZOO_LIMITS=off" in (caught.value.hint or "")
    monkeypatch.setenv("METAZOO_LIMITS", "off")
    assert load_model(path)[1].spec.input_shape == (1, 1024, 1024)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file.json"
    write_atomically(path, b"old")
    # A process that may write no file of more than 4096 bytes: a full disk, as far as the writer sees.
    script = (
        "import pathlib, resource, signal, sys\n"
        "from metazoo.io.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_atomically(pathlib.Path(sys.argv[1]), b'x' * 100_000)\n"
        "except OSError:\n"
        "    sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == 7
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    assert path.read_bytes() == b"old"
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    with pytest.raises(IsADirectoryError):
        write_atomically(path.parent, b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file.json", "sub"]
    assert path.read_bytes() == b"old"


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b", b"x")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b"1" * 10_000,
        b'{"a": 1, "a": 2}',
        b'{"a": [{"b": 1, "b": 1}]}',
        b" " * LARGEST_JSON + b"{}",
    ],
    ids=["open", "not UTF-8", "deep", "digits", "twice", "twice within", "huge"],
)
def test_damaged_json_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read") as caught:
        read_json(path, "make it again")
    assert caught.value.hint == "make it again"
    with pytest.raises(CheckpointError, match="there is no"):
        read_json(tmp_path / "nothing", "")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path, "")
