"""Damaged files: each reader lays out sound ones, damages one of them and asks metazoo what it holds.

An answer must be that of the sound file, unless the edit is one that the format cannot notice
(`FREE`): a model's options, a class's name, a pixel of a format without a checksum.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metazoo.datasets import cache
from metazoo.tasks.examples import Examples
from metazoo.training import curve
from metazoo.zoo import run_folder
from metazoo.zoo.weights import load_tensors

from . import mutations
from .commands import answer, command, execute, read_json
from .material import NAME, Material, copied, folder_options
from .mutations import Edit
from .plugins import register_pretrained
from .subject import Case, Refused, Subject, must

# What an edit allows: the sound answer only; that or an error; any answer that makes sense.
SAME, NOTICED, FREE = "same", "noticed", "free"
Edits = Mapping[str, tuple[str, Edit]]


@dataclass(frozen=True)
class Reader:
    """A file to damage, and how metazoo reads it.

    `lay` puts the sound files into the current folder and returns the one to damage. `read` returns
    what metazoo makes of them.
    """

    lay: Callable[[], Path]
    edits: Edits
    read: Callable[[], Any]
    sound: list[Any] = field(default_factory=list)

    def warm(self) -> None:
        """Read the sound files; an archive of another kind is refused even then."""
        self.lay()
        try:
            self.sound[:] = [self.read()]
        except Refused:
            self.sound[:] = [None]

    def run(self, case: Case) -> Any:
        """Damage the file in one or two ways, and read it."""
        path = self.lay()
        data, level = path.read_bytes(), SAME
        for count in range(case.rng.choice((1, 1, 1, 2))):
            name = case.rng.choice(list(self.edits))
            allowed, edit = self.edits[name]
            case.note(name)
            try:
                data = edit(case.rng, data)
            except Exception:
                if not count:
                    raise
                break  # the first edit has left nothing that this one could read
            level = max(level, allowed, key=(SAME, NOTICED, FREE).index)
        path.write_bytes(data)
        try:
            found = self.read()
        except Refused as error:
            must(level != SAME, f"it refuses what is as good as the sound file: {error}")
            raise
        must(level == FREE or found == self.sound[0], f"another answer, unsaid\n{_short(found)}")
        return found


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:200]


def subjects(material: Material) -> list[Subject]:
    """Return a subject for each reader of files."""
    table: list[tuple[str, str, Reader, int, int]] = [
        ("weights", "a model file", _weights(material, TENSORS), 500, 25),
        ("old", "one without a sha256", _weights(material, UNSEALED), 1200, 60),
        ("best", "best.safetensors of a run", _best(material), 400, 15),
        ("last", "last.safetensors of a run, resumed", _last(material, TENSORS), 300, 13),
        ("begun", "one without a sha256, resumed", _last(material, UNSEALED), 300, 16),
        ("config", "config.json of a run", _config(material.run), 600, 20),
        ("options", "config.json of a maml run", _config(material.maml), 500, 25),
        ("result", "result.json of a run", _result(material), 500, 15),
        ("metrics", "metrics.jsonl, of a run that is shown", _metrics(material), 500, 20),
        ("card", "a model card: predict, push", _card(material), 800, 25),
        ("listed", "a card of a plugin: list, eval --all", _listed(material), 100, 2),
        ("address", "a card and weights at an address", _address(material), 500, 15),
        ("zip", "an archive of images", _zip(material), 1200, 60),
        ("tar", "an archive of another kind", _tar(material), 100, 5),
        ("idx", "IDX files, gzipped", _idx(material, gzipped=True), 400, 20),
        ("idx-plain", "IDX files, plain", _idx(material, gzipped=False), 400, 20),
        ("packed", "the index of packed data", _packed(material, "index.json"), 500, 15),
        ("shards", "the examples of packed data", _packed(material, "train.bin"), 200, 10),
        ("journal", "the journal of a stopped packing", _journal(material), 200, 8),
        ("cache", "the cache of decoded examples", _cache(material), 200, 10),
    ]
    return [
        # An archive may hold members of 256 MiB, all of which are read.
        Subject(name, what, reader.run, cases, quick, 20 if name == "zip" else 5, warm=reader.warm)
        for name, what, reader, cases, quick in table
    ]


TENSORS: Edits = {
    "dtype": (NOTICED, mutations.tensor_dtype),
    "shape": (NOTICED, mutations.tensor_shape),
    "offsets": (NOTICED, mutations.tensor_offsets),
    "names": (NOTICED, mutations.tensor_names),
    "values": (NOTICED, mutations.tensor_values),
    "end": (NOTICED, lambda rng, data: data[: rng.randrange(len(data))]),
    # What the header says besides is the file's own word for its options.
    "header": (FREE, mutations.tensor_header),
    "metadata": (FREE, lambda rng, data: _in_metadata(mutations.json_bytes)(rng, data)),
    "bytes": (FREE, mutations.some_bytes),
}
# The sha256 in a file finds all of these. What stands behind it is met in files without one.
UNSEALED: Edits = {
    "dtype": (
        NOTICED,
        mutations.unsealed(partial(mutations.tensor_dtype, dtypes=mutations.OTHERS)),
    ),
    "shape": (NOTICED, mutations.unsealed(mutations.tensor_shape)),
    "names": (NOTICED, mutations.unsealed(mutations.tensor_names)),
    "values": (FREE, mutations.unsealed(mutations.tensor_values)),
    "header": (FREE, mutations.unsealed(mutations.tensor_header)),
    "metadata": (
        FREE,
        mutations.unsealed(lambda rng, data: _in_metadata(mutations.json_bytes)(rng, data)),
    ),
    "no numbers": (NOTICED, mutations.unsealed(mutations.tensor_not_numbers)),
}
JSON: Edits = {"json": (FREE, mutations.json_bytes)}


def predict(material: Material, model: Any) -> Any:
    """Return the labels and probabilities that a model gives to the queries."""
    return classified(model, material.support, material.query)


def classified(model: Any, support: Path, query: Path) -> Any:
    """Return labels and probabilities of `metazoo predict`, which must be numbers that make sense."""
    words = ("--model", model, "--support", support, "--query", query, "--device", "cpu")
    rows = answer("predict", *words)
    for row in rows:
        values = list(row["probabilities"].values())
        must(all(0 <= value <= 1 for value in values), f"probabilities {values}")
        must(abs(sum(values) - 1) < 1e-3, f"probabilities {values}")
    return [(row["label"], row["probabilities"]) for row in rows]


def _weights(material: Material, edits: Edits) -> Reader:
    def lay() -> Path:
        path = Path("model.safetensors")
        path.write_bytes((material.model / f"{NAME}.safetensors").read_bytes())
        return path

    asked = {"asked": (FREE, _in_metadata(_asked))} if edits is UNSEALED else {}
    return Reader(lay, {**edits, **asked}, lambda: predict(material, "model.safetensors"))


def _best(material: Material) -> Reader:
    def lay() -> Path:
        return copied(material.run, Path("run")) / run_folder.BEST

    return Reader(lay, TENSORS, lambda: predict(material, "run"))


def _last(material: Material, edits: Edits) -> Reader:
    def lay() -> Path:
        return copied(material.begun, Path("begun")) / run_folder.LAST

    def read() -> Any:
        result = answer("train", "--resume", "begun", "--progress", "none")
        return {
            "mean": result["mean"],
            "steps": result["steps"],
            **{
                name: tensors_digest(Path("begun", name))
                for name in (run_folder.BEST, run_folder.LAST)
            },
        }

    state = {"state": (FREE, _in_metadata(_odd_state))} if edits is UNSEALED else {}
    return Reader(lay, {**edits, **state}, read)


def tensors_digest(path: Path) -> str:
    """Return a checksum of the tensors in a file, which leaves out how long the run took."""
    sha = hashlib.sha256()
    for name, value in sorted(load_tensors(path)[0].items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


# Numbers that a file may ask for, and that nobody can give.
ASKED: tuple[Any, ...] = (10**9, 10**6, 2**31, 10**30, [1, 1024, 1024], [1, 4096, 4096], 1e300)


def _asked(rng: random.Random, data: bytes) -> bytes:
    """Ask for too much: an enormous number where a model's file has a number or a shape."""
    values = json.loads(data)
    parts = ("algorithm_options", "backbone_options", "spec", "input_format")
    places = [
        (values[part], key)
        for part in parts
        for key, value in values[part].items()
        if value is None or type(value) in (int, float, list)
    ]
    group, key = rng.choice(places)
    is_shape = isinstance(group[key], list)
    # A width of 3000 can be had, in gigabytes; as a number of inner steps it would be fair.
    odd = (*ASKED, 3000) if group is values["backbone_options"] else ASKED
    group[key] = asked = rng.choice([v for v in odd if isinstance(v, list) == is_shape])
    if is_shape:  # and for images that are as large
        values["input_format"]["size"] = asked[-1]
    return mutations.without_sha256(values)


def _odd_state(rng: random.Random, data: bytes) -> bytes:
    """Put an odd value into one field of a run's state."""
    state = json.loads(data)
    odd = (*mutations.NUMBERS, *mutations.VALUES, "x")
    state[rng.choice(["step", *state])] = rng.choice(odd)
    return mutations.without_sha256(state)


def _in_metadata(edit: Edit) -> Edit:
    """Return the edit of a safetensors file that changes what metazoo wrote into its header."""

    def changed(rng: random.Random, data: bytes) -> bytes:
        header, body = mutations.split_tensors(data)
        (key, text), *_ = header["__metadata__"].items()
        header["__metadata__"][key] = edit(rng, text.encode()).decode("utf-8", "replace")
        return mutations.join_tensors(header, body)

    return changed


def _config(run: Path) -> Reader:
    material = Material(run.parent)

    def lay() -> Path:
        return copied(run, Path("run")) / run_folder.CONFIG

    return Reader(lay, {**JSON, "asked": (FREE, _asked)}, lambda: predict(material, "run"))


def _result(material: Material) -> Reader:
    def lay() -> Path:
        return copied(material.run, Path("run")) / run_folder.RESULT

    def read() -> Any:
        command("train", "--resume", "run")
        return answer("train", "--resume", "run")["mean"]

    return Reader(lay, JSON, read)


def _metrics(material: Material) -> Reader:
    def lay() -> Path:
        return copied(material.run, Path("run")) / run_folder.METRICS

    def read() -> Any:
        shown = command("train", "--resume", "run", "--progress", "bar")[1]
        curve.save_png(Path("curve.png"), "soak", run_folder.read_metrics(Path("run")), 0.5)
        return shown

    def a_line(rng: random.Random, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        edits = (
            lambda: [mutations.json_bytes(rng, lines[at]).replace(b"\n", b"") + b"\n"],
            lambda: [],
            lambda: [lines[at]] * 3,
            lambda: [
                b'{"step": %d, "validation_accuracy": %d}\n' % (10 ** rng.choice((9, 20, 400)), 1)
            ],
            lambda: [
                b'{"step": 3, "validation_accuracy": 1e%d}\n' % rng.choice((30, 307, 308, 400))
            ],
        )
        lines[at : at + 1] = rng.choice(edits)()
        return b"".join(lines)

    return Reader(lay, {"line": (FREE, a_line), "bytes": (FREE, mutations.some_bytes)}, read)


def _card(material: Material) -> Reader:
    def lay() -> Path:
        return copied(material.model, Path("model")) / f"{NAME}.json"

    def read() -> Any:
        command("push", f"model/{NAME}.json", "pushed")
        return predict(material, f"model/{NAME}.json")

    return Reader(lay, JSON, read)


def _address(material: Material) -> Reader:
    """Weights at an address are never read unless they are those of the card."""

    def lay() -> Path:
        return copied(material.model, Path("model")) / f"{NAME}.safetensors"

    def read() -> Any:
        return predict(material, f"{Path('model').resolve().as_uri()}/{NAME}.json")

    edits = {name: (NOTICED, edit) for name, (_, edit) in TENSORS.items()}
    return Reader(lay, edits, read)


def _listed(material: Material) -> Reader:
    """A card that a plugin registers, in the lists and in the evaluation of all models."""

    def lay() -> Path:
        folder = copied(material.model, Path("model"))
        register_pretrained(NAME, folder / f"{NAME}.json")
        return folder / f"{NAME}.json"

    def read() -> Any:
        told = answer("list", "pretrained")
        command("list")
        words = ("--data-root", material.packed, "--episodes", 2, "--device", "cpu")
        status, out, _ = execute("eval", "--all", *words, "--json")
        must(status in (0, 1), f"status {status}")
        rows = read_json(out)
        must(len(rows) > 50, f"the other cards are gone: {len(rows)} rows")
        return [row for row in told["pretrained"] if row["name"] == NAME]

    return Reader(lay, JSON, read)


def packed_answer(root: Any) -> Any:
    """Return what `metazoo data pack` makes of images: classes, counts and every pixel."""
    told = answer("data", "pack", "folder", "packed", *folder_options(root))
    index = json.loads(Path("packed", "index.json").read_text())
    return told["splits"], [(split["names"], split["sha256"]) for split in index["splits"].values()]


def _zip(material: Material) -> Reader:
    def lay() -> Path:
        path = Path("images.zip")
        path.write_bytes(material.zip.read_bytes())
        return path

    edits: Edits = {
        "one bit": (NOTICED, mutations.one_bit),
        "one bit of the directory": (NOTICED, _bit_of_directory),
        "a field of the directory": (
            NOTICED,
            lambda rng, data: mutations.zip_field(rng, data, both=False),
        ),
        "a field": (FREE, lambda rng, data: mutations.zip_field(rng, data, both=True)),
        "the end": (NOTICED, mutations.zip_end),
        "swallowed members": (NOTICED, mutations.zip_swallowed),
        "bytes": (NOTICED, mutations.some_bytes),
        "from Windows": (
            SAME,
            lambda rng, data: _renamed(data, lambda name: name.replace("/", "\\")),
        ),
        "from ./": (SAME, lambda rng, data: _renamed(data, lambda name: f"./{name}")),
        "inside a folder": (SAME, lambda rng, data: _renamed(data, lambda name: f"a/b/{name}")),
        "other files": (SAME, _other_files),
        "a name": (FREE, _one_name),
        "a bomb": (NOTICED, _bomb),
    }
    return Reader(lay, edits, lambda: packed_answer("images.zip"))


def _bit_of_directory(rng: random.Random, data: bytes) -> bytes:
    start = data.find(mutations.CENTRAL)
    return data[:start] + mutations.one_bit(rng, data[start:])


def _members(data: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if len(archive.infolist()) != data.count(mutations.LOCAL):
            raise ValueError("the edit before has hidden members")
        return [(info, archive.read(info)) for info in archive.infolist()]


def _zipped(members: Mapping[str, bytes]) -> bytes:
    """Return an archive whose names are those given: zipfile would turn backslashes around."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


def _renamed(data: bytes, change: Callable[[str], str]) -> bytes:
    return _zipped({change(info.filename): content for info, content in _members(data)})


def _other_files(rng: random.Random, data: bytes) -> bytes:
    others = ("__MACOSX/c00/._0.png", ".DS_Store", "Thumbs.db", "readme.txt", "c00/.hidden.png")
    members = {info.filename: content for info, content in _members(data)}
    return _zipped({**members, rng.choice(others): b"x"})


ODD_NAMES = (
    *("../0.png", "/0.png", "C:/0.png", "c00//0.png", "c00/./0.png", "c00/../../0.png", ""),
    *("c00/\x1b[2J.png", "c00/\x1b[31mred.png", "\x1b]0;title\x07/0.png", "c00/a\nb.png"),
    *(
        "c00/\ud800.png".encode("utf-8", "surrogatepass").decode("latin-1"),
        "c00/é.png",
        "C00/0.png",
    ),
    *(
        "c00/" + "x" * 60_000 + ".png",
        "/".join("d" * 1500) + "/0.png",
        "c00/0.png/1.png",
        "c00/0\0.png",
    ),
)


def _one_name(rng: random.Random, data: bytes) -> bytes:
    """Give a member an odd name, in UTF-8 or in bytes that are not."""
    members = [(info.filename, content) for info, content in _members(data)]
    at = rng.randrange(len(members))
    members[at] = rng.choice(ODD_NAMES), members[at][1]
    data = _zipped(dict(members))
    if rng.random() < 0.4:  # not UTF-8, whatever the flag says
        name = b"c03/0.png"
        data = data.replace(name, rng.choice((b"c03/\xff.png", b"\xe9\xe9\xe9/\xff.png")))
        at = data.find(mutations.CENTRAL)
        if rng.random() < 0.7:
            while at >= 0:
                data = data[: at + 8] + b"\x00\x08" + data[at + 10 :]
                at = data.find(mutations.CENTRAL, at + 1)
    return data


def _bomb(rng: random.Random, data: bytes) -> bytes:
    """Add a member of zeros that the limits refuse, in fact or by its declared size."""
    members = {info.filename: content for info, content in _members(data)}
    if rng.random() < 0.1:
        return _zipped({**members, "c00/9.png": bytes(2**28 + 1)})
    return _zipped({**members, "c00/9.png": bytes(2**16)})


def _tar(material: Material) -> Reader:
    def lay() -> Path:
        path = Path("images.tar")
        with tarfile.open(path, "w") as archive:
            archive.add(material.images, "images")
        return path

    edits: Edits = {"bytes": (NOTICED, mutations.some_bytes), "bit": (NOTICED, mutations.one_bit)}
    return Reader(lay, edits, lambda: packed_answer("images.tar"))


def _idx(material: Material, *, gzipped: bool) -> Reader:
    names = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

    def lay() -> Path:
        folder = copied(material.mnist, Path("data")) / "mnist"
        if not gzipped:
            for name in names:
                (folder / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
                (folder / f"{name}.gz").unlink()
        return folder / f"{names[0]}{'.gz' if gzipped else ''}"

    def read() -> Any:
        words = ("--data-root", "data", "--data-digits", "all")
        told = answer("data", "pack", "mnist", "packed", *words)["splits"]
        return told, hashlib.sha256(Path("packed", "test.bin").read_bytes()).hexdigest()

    def inside(rng: random.Random, data: bytes) -> bytes:
        return gzip.compress(mutations.idx(rng, gzip.decompress(data)), 1, mtime=0)

    edits: Edits = {"idx": (FREE, mutations.idx), "bytes": (FREE, mutations.some_bytes)}
    if gzipped:
        edits = {
            "idx": (FREE, inside),
            "one bit": (NOTICED, mutations.one_bit),
            "bytes": (NOTICED, mutations.some_bytes),
            "bomb": (NOTICED, lambda rng, data: data + gzip.compress(bytes(2**25), 1)),
        }
    return Reader(lay, edits, read)


def _packed(material: Material, name: str) -> Reader:
    def lay() -> Path:
        return copied(material.packed, Path("packed")) / name

    def read() -> Any:
        told = answer("data", "verify", "packed")
        command("data", "verify", "packed")
        row = answer(
            *("eval", material.run, "--data-root", "packed", "--episodes", 4, "--device", "cpu"),
        )["results"][0]
        must(math.isfinite(row["mean"]), f"a mean of {row['mean']}")
        return told["shards"], row["mean"]

    if name.endswith(".bin"):
        return Reader(lay, {"bytes": (NOTICED, mutations.some_bytes)}, read)
    return Reader(lay, JSON, read)


def _journal(material: Material) -> Reader:
    """A packing that goes on from a damaged journal ends as one that was never stopped, or is refused."""

    def lay() -> Path:
        copied(material.stopped, Path("packed"))
        return Path("packed", "journal.jsonl")

    edits: Edits = {"bytes": (FREE, mutations.some_bytes), "bit": (FREE, mutations.one_bit)}
    return Reader(lay, edits, lambda: packed_answer(material.images))


def _cache(material: Material) -> Reader:
    """A damaged cache is made again, whatever is wrong with it."""

    def build() -> Examples:
        return Examples(torch.arange(48.0).view(6, 8), (2, 4), ("a", "b"), "numbers")

    def read() -> Any:
        examples = cache.load_or_build("soak", "key", build)
        return examples.x.tolist(), examples.counts, examples.names, examples.title

    def lay() -> Path:
        read()
        return next(cache.cache_directory().glob("soak/*.safetensors"))

    values = {
        "values": mutations.tensor_values,
        "bytes": mutations.some_bytes,
        "bit": mutations.one_bit,
    }
    edits: Edits = {name: (SAME, edit) for name, edit in values.items()}
    return Reader(lay, edits, read)
