"""What people type and give: folders with odd names, arrays of odd kinds, names and addresses of models."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metazoo.classifier import FewShotClassifier

from .commands import answer, command
from .material import NAME, Material, copied, folder_options, picture
from .subject import Case, Refused, Subject, must

SECRET = "hunter2"


def subjects(material: Material) -> list[Subject]:
    return [
        Subject("trees", "folders of images", lambda case: _tree(material, case), 1200, 40),
        Subject("arrays", "FewShotClassifier", lambda case: _arrays(material, case), 1200, 40),
        Subject(
            "names", "names and addresses of models", lambda case: _name(material, case), 800, 26
        ),
        Subject("words", "options of commands", lambda case: _words(material, case), 500, 15),
    ]


# Folders.

NAMES: tuple[bytes, ...] = (
    *(
        b"a",
        b"A",
        b"c00",
        b"\x1b[2J\x1b[H",
        b"\x1b[31mred\x1b[0m",
        b"\x1b]0;title\x07",
        b"a\nb",
        b"a\tb",
    ),
    *(
        b"\r\rerror: forged",
        b"\xe9",
        b"\xff\xfe",
        "é".encode(),
        b"-rf",
        b"--help",
        b"a b",
        b"%s{0}",
    ),
    *(
        b"$(id)",
        b"'",
        b'"',
        b"\\",
        b"x" * 250,
        "\u202e".encode(),
        "\x9b".encode(),
        b"train",
        b"__MACOSX",
    ),
)
SUFFIXES = (
    *(
        b".png",
        b".PNG",
        b".jpg",
        b".jfif",
        b".jpe",
        b".avif",
        b".jp2",
        b".heic",
        b".txt",
        b"",
        b".tif",
    ),
)


def _tree(material: Material, case: Case) -> Any:
    """Change a folder of classes; every picture in it is answered, or spoken of."""
    rng, root = case.rng, os.fsencode(copied(material.support, Path("tree")))
    for _ in range(rng.choice((1, 1, 2, 3))):
        edit = rng.choice((_rename_class, _rename_file, _add_file, _deep, _link, _odd_folder))
        case.note(f"{edit.__name__[1:]} {edit(rng, root)!r}")
    for query in (root, material.query):
        words = ("predict", "--model", material.run, "--support", root, "--query", query)
        command(*words, "--device", "cpu")
    out, err = command(*words[:-1], root, "--device", "cpu", "--json")
    command(
        "data", "pack", "folder", "packed", *folder_options(root.decode("utf-8", "surrogateescape"))
    )
    answered = out.count('"file"')
    pictures = [f for f in _files(root) if _is_picture(f)]
    must(
        answered == len(pictures) or err.strip(),
        f"{answered} of {len(pictures)} pictures are answered; the others are left out, unsaid",
    )
    return answered


def _is_picture(path: bytes) -> bool:
    known = (".jfif", ".jpe", ".avif", ".jp2", ".heic", ".png", ".jpg", ".tif")
    hidden = any(part.startswith(b".") or part == b"__MACOSX" for part in path.split(b"/"))
    suffixes = tuple(suffix.encode() for suffix in known)
    return os.path.isfile(path) and not hidden and path.lower().endswith(suffixes)


def _classes(root: bytes) -> list[bytes]:
    return sorted(
        entry.path for entry in os.scandir(root) if entry.is_dir() and not entry.is_symlink()
    )


def _files(root: bytes) -> list[bytes]:
    """Return all files below a folder, however deep they are."""
    found, folders = [], [root]
    while folders:
        for entry in os.scandir(folders.pop()):
            is_folder = entry.is_dir(follow_symlinks=False)
            (folders if is_folder else found).append(entry.path)
    return sorted(found)


def _move(path: bytes, name: bytes) -> bytes:
    to = os.path.join(os.path.dirname(path), name)
    if not os.path.lexists(to):
        os.rename(path, to)
    return name


def _rename_class(rng: random.Random, root: bytes) -> bytes:
    return _move(rng.choice(_classes(root)), rng.choice(NAMES))


def _rename_file(rng: random.Random, root: bytes) -> bytes:
    return _move(rng.choice(_files(root)), rng.choice(NAMES)[:240] + rng.choice(SUFFIXES))


def _add_file(rng: random.Random, root: bytes) -> bytes:
    """Add a picture under another suffix, an empty file, or one that is something else."""
    name = rng.choice((b"new", rng.choice(NAMES)[:240])) + rng.choice(SUFFIXES)
    path = os.path.join(rng.choice([root, *_classes(root)]), name)
    kind = rng.choice(("picture", "picture", "empty", "text"))
    if os.path.isdir(path):
        return name
    if kind == "picture":
        image = Image.fromarray(picture(3, 1))
        with open(path, "wb") as file:
            image.save(file, "JPEG" if name.endswith((b".jfif", b".jpe", b".jpg")) else "PNG")
    else:
        with open(path, "wb") as file:
            file.write(b"" if kind == "empty" else b"text")
    return name


def _deep(rng: random.Random, root: bytes) -> bytes:
    """Put folders into folders; the deepest has a picture, or nothing."""
    depth, here = rng.choice((2, 30, 30, 1200)), os.getcwdb()
    os.chdir(rng.choice([root, *_classes(root)]))
    for _ in range(depth):
        os.makedirs(b"d", exist_ok=True)
        os.chdir(b"d")
    if rng.random() < 0.5:
        Image.fromarray(picture(5, 1)).save("0.png")
    os.chdir(here)
    return b"%d" % depth


def _link(rng: random.Random, root: bytes) -> bytes:
    target = rng.choice(
        (b"nothing", b".", b"..", b"/dev/zero", os.path.abspath(_files(root)[0]), b"/dev/stdin")
    )
    path = os.path.join(rng.choice([root, *_classes(root)]), rng.choice((b"link", b"link.png")))
    if not os.path.lexists(path):
        os.symlink(target, path)
    return target


def _odd_folder(rng: random.Random, root: bytes) -> bytes:
    """Add an empty folder, a pipe, or a class with one picture or a copy of another class."""
    name = rng.choice(NAMES)
    path, kind = os.path.join(root, name), rng.choice(("empty", "pipe", "copy", "one"))
    if os.path.lexists(path):
        return name
    if kind == "pipe":
        os.mkfifo(path + b".png" if len(path) < 200 else path)
    elif kind == "copy":
        shutil.copytree(_classes(root)[0], path, symlinks=True)
    else:
        os.mkdir(path)
        if kind == "one":
            shutil.copy(_files(root)[0], path)
    return name


# FewShotClassifier.

ARRAYS: tuple[Callable[[np.ndarray], Any], ...] = (
    lambda x: x,
    lambda x: x.astype(np.float32) / 255,
    lambda x: x.astype(np.float64) / 255,
    lambda x: torch.from_numpy(x),
    lambda x: torch.from_numpy(x).half() / 255,
    lambda x: x.astype(np.int64),
    lambda x: x.astype(np.float32),
    lambda x: np.where(x > 9, np.nan, 0.5).astype(np.float32),
    lambda x: np.full(x.shape, np.inf, np.float32),
    lambda x: x > 9,
    lambda x: x.astype(complex),
    lambda x: x.astype(object),
    lambda x: x.astype(str),
    lambda x: x[:, 0],
    lambda x: x[0],
    lambda x: x[:0],
    lambda x: np.repeat(x, 3, 1),
    lambda x: x[..., :8],
    lambda x: x[:, :, ::-1],
    lambda x: np.broadcast_to(x[:1], x.shape),
    lambda x: list(x),
    lambda x: x.tolist(),
    lambda x: [Image.fromarray(image[0]) for image in x],
    lambda x: [Image.fromarray(image[0]).convert("RGB") for image in x],
    lambda x: (Image.fromarray(image[0]) for image in x),
    lambda x: ["no/such/file.png"] * len(x),
    lambda x: "no/such/file.png",
    lambda x: [b"\xff"] * len(x),
    lambda x: [None] * len(x),
    lambda x: None,
    lambda x: 3,
    lambda x: {"x": 1},
    lambda x: torch.from_numpy(x).to_sparse(),
    lambda x: torch.empty(x.shape, device="meta"),
    lambda x: torch.from_numpy(x).float().div(255).requires_grad_(),
)
LABELS: tuple[Callable[[list[int]], Any], ...] = (
    lambda y: y,
    lambda y: [str(label) for label in y],
    lambda y: np.array(y),
    lambda y: torch.tensor(y),
    lambda y: np.array(y, dtype=float) / 3,
    lambda y: [label > 0 for label in y],
    lambda y: [None, *y[1:]],
    lambda y: [float("nan")] * len(y),
    lambda y: [str(y[0]), *y[1:]],
    lambda y: [[label] for label in y],
    lambda y: [(label, "a") for label in y],
    lambda y: [0] * len(y),
    lambda y: y[:-1],
    lambda y: [],
    lambda y: None,
    lambda y: 3,
    lambda y: "abcdef",
    lambda y: [10**400 + label for label in y],
    lambda y: np.array(y)[:, None],
    lambda y: [object() for _ in y],
    lambda y: iter(y),
)


def _arrays(material: Material, case: Case) -> Any:
    """Give odd arrays and labels, of which at most one is odd at a time, mostly."""
    rng = case.rng
    images = np.stack([picture(label, number)[None] for label in (0, 4, 8) for number in (0, 1)])
    odd = rng.sample(("support", "labels", "query"), rng.choice((1, 1, 1, 2)))
    given, labels, asked = (
        rng.randrange(len(table)) if part in odd else 0
        for part, table in (("support", ARRAYS), ("labels", LABELS), ("query", ARRAYS))
    )
    case.note(f"arrays {given} and {asked}, labels {labels}")
    model = rng.choice((material.run, material.maml, material.model / f"{NAME}.json"))
    classifier = FewShotClassifier(model, device="cpu", **rng.choice(({}, {"invert": True})))
    classifier.fit(ARRAYS[given](images), LABELS[labels]([0, 0, 1, 1, 2, 2]))
    found = classifier.predict_proba(ARRAYS[asked](images))
    must(np.isfinite(found).all(), f"probabilities {found[:1]}")
    must(np.allclose(found.sum(1), 1, atol=1e-3), f"probabilities {found[:1]}")
    return found.shape


# Names.

ADDRESSES = (
    *(
        "",
        ".",
        "..",
        "/",
        "protonet",
        "protonet.",
        ".soak",
        "protonet.nothing",
        "no/such",
        "x.safetensors",
    ),
    *(
        "file:///nowhere/x.json",
        "file://host/x.json",
        "file:x.json",
        "file:///x",
        "file:///%00.json",
    ),
    *(
        "http://127.0.0.1:9/x.json",
        "https://127.0.0.1:9/x.json",
        "https://[::1/x.json",
        "https:///x.json",
    ),
    *("https://127.0.0.1:99999/x.json", "https://127.0.0.1:x/x.json", "https://127.0.0.1:9/é.json"),
    *("https://127.0.0.1:9/a b.json", "https://127.0.0.1:9/\n.json", "https://ü.invalid:9/x.json"),
    *(
        "hf://",
        "hf://x",
        "hf://x/y/../z",
        "hf://../..",
        "ftp://127.0.0.1/x.json",
        "data:,x",
        "javascript://x",
    ),
    *(f"https://user:{SECRET}@127.0.0.1:9/x.json", f"http://user:{SECRET}@127.0.0.1:9/x.json"),
    *(
        f"ftp://user:{SECRET}@127.0.0.1/x.json",
        f"https://user:{SECRET}@127.0.0.1:9/x.json#sha256=1",
    ),
    *(
        "https://127.0.0.1:9/x.json#sha256=" + "0" * 64,
        "https://127.0.0.1:9/x.json#sha256=x",
        "x://",
    ),
    *(
        "~nobody/x",
        "~/x",
        "\x1b[2J",
        "a\nb",
        "\udce9",
        "x" * 5000,
        "https://127.0.0.1:9/" + "x" * 70_000,
    ),
)


def _name(material: Material, case: Case) -> Any:
    """Ask for models by odd names, with an odd cache; no password is printed."""
    rng, name = case.rng, case.rng.choice(ADDRESSES)
    if rng.random() < 0.5 and name:
        at = rng.randrange(len(name))
        extra = rng.choice(
            ("/", "#", "?", "@", ":", "%", "%zz", "..", "\\", "é", "\x1b[2J", "[", " ")
        )
        name = name[:at] + extra + name[at + rng.randrange(2) :]
    if rng.random() < 0.2:
        os.environ["METAZOO_CACHE"] = rng.choice(
            (
                "~nobody/x",
                "/dev/null/x",
                "/proc/x",
                "\x1b[2J",
                "x" * 300,
                "",
                os.fsdecode(b"\xe9"),
                "\n",
            )
        )
    command_name = rng.choice(("predict", "eval", "push"))
    case.note(f"{command_name} {name[:200]!r} cache {os.environ['METAZOO_CACHE']!r}")
    words = {
        "predict": [
            "predict",
            "--model",
            name,
            "--support",
            material.support,
            "--query",
            material.query,
        ],
        "eval": ["eval", name, "--episodes", "2"],
        "push": ["push", rng.choice((str(material.model / f"{NAME}.json"), name)), name],
    }[command_name]
    try:
        return command(*words)
    except Refused as error:
        is_password = re.match(rf"\w+://[^/?#]*:{SECRET}@", name)
        must(not (is_password and SECRET in error.told), f"it prints a password: {error}")
        raise


# Options.

OPTIONS: dict[str, tuple[str, ...]] = {
    "protonet": (
        "--ways",
        "--shots",
        "--queries",
        "--episodes",
        "--seed",
        "--split",
        "--data-root",
    ),
    "maml": ("--ways", "-o", "-o", "-o", "--episodes", "--protocol", "--dataset"),
}
NAMED = (
    "inner_lr",
    "inner_steps",
    "eval_inner_steps",
    "batch_norm",
    "temperature",
    "x",
    "",
    "tta",
    "adapt",
)
VALUES = (
    *(
        "0",
        "1",
        "2",
        "3",
        "-1",
        "1e9",
        "1000000000",
        "nan",
        "inf",
        "1e400",
        "x",
        "",
        "0x10",
        "true",
        "none",
    ),
    *("9" * 5000, "1,2", "1,", "\x1b[2J", "\udce9", "train", "val", "1_0", "٣", "1e-320", "5" * 30),
)


def _words(material: Material, case: Case) -> Any:
    """Give odd values to the options of `metazoo eval`."""
    rng, algorithm = case.rng, case.rng.choice(list(OPTIONS))
    words: list[Any] = ["eval", material.run if algorithm == "protonet" else material.maml]
    if rng.random() < 0.7:
        words += ["--episodes", "2"]
    for _ in range(rng.choice((1, 1, 2))):
        flag, value = rng.choice(OPTIONS[algorithm]), rng.choice(VALUES)
        if flag == "--episodes" and value.isdecimal():
            value = value[:2]  # who asks for more gets more
        words += [flag, f"{rng.choice(NAMED)}={value}" if flag == "-o" else value]
    case.note(" ".join(map(repr, words[2:]))[:200])
    return answer(*words, "--device", "cpu")
