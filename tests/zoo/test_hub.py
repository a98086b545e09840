"""Models on the Hub: huggingface_hub itself, in processes of its own, with a small Hub on this machine that speaks its API."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hubs import TOKEN, HubHandler, new

from metazoo import zoo
from metazoo.errors import CheckpointError, UnknownNameError
from metazoo.zoo import hub

NAME = "protonet.tiny_3w1s"
CARD, WEIGHTS = f"{NAME}.json", f"{NAME}.safetensors"
LOAD = """
import json, sys
from metazoo import zoo
from metazoo.errors import MetazooError

said = []
for name in sys.argv[1:]:
    try:
        said.append({"weights": str(zoo.find(name).weights)})
    except MetazooError as error:
        said.append({"error": type(error).__name__, "message": error.message, "hint": error.hint})
print(json.dumps(said))
"""
PUSH = "from metazoo.cli import main; main()"


@pytest.fixture
def there(serve: Callable[..., Any]) -> Any:
    """A Hub with nothing on it."""
    server = serve(handler=HubHandler)
    server.repos, server.cdn, server.tokens_at_cdn = {}, {}, []
    return server


@pytest.fixture
def files(exported: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in exported.iterdir()}


@pytest.fixture
def python(there: Any, tmp_path: Path) -> Any:
    """Runs a program whose Hub is the one of the tests."""

    def start(program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "HF_ENDPOINT": there.url,
            "HF_HOME": str(tmp_path / "hf"),
            "METAZOO_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "*",
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
        )

    return start


@pytest.fixture
def load(python: Any) -> Any:
    """Loads models in one process and returns what came of each."""

    def start(*names: str, **environment: str) -> list[dict[str, str]]:
        done = python(LOAD, *names, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return start


def pin_of(data: bytes) -> str:
    return f"#sha256={hashlib.sha256(data).hexdigest()}"


@pytest.mark.slow
def test_models_are_loaded_by_name_revision_and_pin(
    there: Any, load: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    other = {f"protonet.other{Path(name).suffix}": data for name, data in files.items()}
    other["protonet.other.json"] = json.dumps(
        {
            **json.loads(files[CARD]),
            "name": "protonet.other",
            "weights": "protonet.other.safetensors",
        }
    ).encode()
    there.repos["us/zoo"] = new(
        main={**files, "config.json": b"{}"},
        old=files,
        **{"refs/pr/1": files},
        both={**files, **other},
    )
    pin = pin_of(files[WEIGHTS])
    names = [
        f"hf://us/zoo/{NAME}",
        "hf://us/zoo",
        f"hf://us/zoo@old/{NAME}",
        f"hf://us/zoo@refs%2Fpr%2F1/{NAME}",
        f"hf://us/zoo{pin}",
    ]
    *found, several = load(*names, "hf://us/zoo@both")
    assert (
        found
        == [
            {"weights": str(tmp_path / "cache" / "models" / pin.removeprefix("#sha256=") / WEIGHTS)}
        ]
        * 5
    )
    assert (
        "hf://us/zoo@both has several models: protonet.other, protonet.tiny_3w1s"
        in several["message"]
    )
    assert several["error"] == "UnknownNameError"
    assert sum("GET /cdn/" in line for line in there.asked) == 1
    assert sorted(os.listdir(Path(found[0]["weights"]).parent)) == [CARD, WEIGHTS]


@pytest.mark.slow
def test_what_is_not_there_is_named(there: Any, load: Any, files: dict[str, bytes]) -> None:
    there.repos = {
        "us/zoo": new(main=files),
        "us/empty": new(main={"config.json": b"{}"}),
        "us/gated": new(gated=True, main=files),
        "us/private": new(private=True, main=files),
    }
    may_be_private = {
        "hf://us/none": "there is no hf://us/none, or",
        f"hf://us/zoo@never/{NAME}": "there is no hf://us/zoo@never, or",
        "hf://us/zoo/protonet.none": "there is no hf://us/zoo/protonet.none.json, or",
        f"hf://us/gated/{NAME}": f"there is no hf://us/gated/{CARD}, or",
        f"hf://us/private/{NAME}": "there is no hf://us/private, or",
    }
    others = {
        "hf://us/empty": "hf://us/empty has no metazoo model",
        f"hf://us/zoo/{NAME}#sha256={'0' * 64}": f"the address asks for {'0' * 64}",
        "hf://us/a..b": "hf://us/a..b cannot be used: ",
    }
    said = load(*may_be_private, *others)
    for one, what in zip(said, [*may_be_private.values(), *others.values()]):
        assert what in one["message"]
    assert all(one["hint"] for one in said[:-1])
    for one in said[: len(may_be_private)]:
        assert "hf auth login" in one["hint"]
    assert "repo" in said[-1]["message"].partition("cannot be used: ")[2]  # the library's words
    assert "weights" in load(f"hf://us/private/{NAME}", HF_TOKEN=TOKEN)[0]
    # The host that the weights come from is not the Hub.
    assert there.tokens_at_cdn == [None]


@pytest.mark.slow
def test_what_is_wrong_is_not_kept(
    there: Any, load: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    tampered = files[WEIGHTS][:-1] + bytes([files[WEIGHTS][-1] ^ 1])
    bigger = files[WEIGHTS] + b"x"
    there.repos = {
        "us/tampered": new(main={**files, WEIGHTS: tampered}),
        "us/bigger": new(main={**files, WEIGHTS: bigger}),
        "us/huge": new(main={**files, CARD: b" " * 2**20 + files[CARD]}),
        "us/unwell": new(main=files),
    }
    wrong, big, huge, unwell = load(
        *(f"hf://us/{name}/{NAME}" for name in ("tampered", "bigger", "huge", "unwell"))
    )
    # Where the Hub does not say how big a card is, none is downloaded.
    assert "hf://us/unwell cannot be used: " in unwell["message"]
    assert not [line for line in there.asked if "us/unwell/resolve" in line]
    good = pin_of(files[WEIGHTS]).removeprefix("#sha256=")
    assert f"{pin_of(tampered)[8:]}, but should have {good}: nothing was read" in wrong["message"]
    assert f"has {len(bigger)} bytes; at most {len(files[WEIGHTS])}" in big["message"]
    assert f"at most {2**20} are allowed" in huge["message"]
    assert sum("GET /cdn/" in line for line in there.asked) == 1
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    there.repos["us/tampered"]["revisions"]["main"] = files
    assert "weights" in load(f"hf://us/tampered/{NAME}")[0]


@pytest.mark.slow
def test_what_was_loaded_once_needs_no_hub(there: Any, load: Any, files: dict[str, bytes]) -> None:
    there.repos["us/zoo"] = new(main=files)
    name, pinned = f"hf://us/zoo/{NAME}", f"hf://us/zoo{pin_of(files[WEIGHTS])}"
    (first,) = load(name)
    path = Path(first["weights"])
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert load(pinned, name) == [first, first]
    assert path.read_bytes() == good
    there.asked.clear()
    assert load(name, pinned, HF_HUB_OFFLINE="1") == [first, first]
    assert there.asked == []
    (unknown,) = load("hf://us/zoo", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in unknown["message"]
    there.stop()
    assert load(name, pinned) == [first, first]
    (gone,) = load("hf://us/zoo")
    assert "offline" in gone["hint"]


@pytest.mark.slow
def test_a_model_is_pushed_and_loaded_again(
    there: Any, python: Any, load: Any, exported: Path, files: dict[str, bytes]
) -> None:
    words = ("push", str(exported / CARD), "hf://us/new", "--json")
    done = python(PUSH, *words, "--private", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    address = f"hf://us/new/{NAME}{pin_of(files[WEIGHTS])}"
    assert json.loads(done.stdout) == {
        "name": NAME,
        "where": f"{there.url}/us/new",
        "address": address,
        "sha256": address.rpartition("=")[2],
    }
    repo = there.repos["us/new"]
    assert repo["private"]
    assert sum("/commit/" in line for line in there.asked) == 1
    main = repo["revisions"]["main"]
    assert {name: main[name] for name in files} == files
    readme = main["README.md"].decode()
    assert readme.startswith(
        "---\nlicense: cc0-1.0\nlibrary_name: metazoo\ntags:\n- few-shot-learning\n- pytorch\n---\n"
    )
    result = json.loads(files[CARD])["results"][0]
    value = f"{100 * result['mean']:.2f} ± {100 * result['interval']:.2f} %"
    row = f"| 3-way 1-shot | accuracy | {value} | 12 | inductive |"
    for part in (f"# {NAME}", "a tiny one", f'metazoo.load("{address}")', row):
        assert part in readme, part
    assert "weights" in load(address, HF_TOKEN=TOKEN)[0]
    # Again: what somebody wrote into the README stays.
    main["README.md"] = b"mine"
    done = python(PUSH, *words, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert repo["revisions"]["main"]["README.md"] == b"mine"


@pytest.mark.slow
def test_a_push_that_may_not_be(there: Any, python: Any, exported: Path) -> None:
    there.repos["us/public"] = new()
    for token, words, what in (
        ("", ["hf://us/new"], "HF_TOKEN"),
        (TOKEN, ["hf://us/public", "--private"], "exists and is public"),
    ):
        done = python(PUSH, "push", str(exported / CARD), *words, HF_TOKEN=token)
        assert (done.returncode, done.stdout) == (1, "")
        assert what in done.stderr
        assert "Traceback" not in done.stderr
    assert there.repos == {"us/public": new()}


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="is not installed") as caught:
        zoo.load(f"hf://us/zoo/{NAME}")
    assert caught.value.hint == '`pip install "metazoo[hub]"`'


def test_the_library_is_imported_when_it_is_needed_alone() -> None:
    code = "import sys, metazoo, metazoo.cli.pushing; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "address",
    ["hf://us/zoo", f"hf://us/zoo/{NAME}", f"hf://us/zoo@v1/{NAME}", "hf://us/zoo@refs%2Fpr%2F1"],
)
def test_an_address_is_read_and_written(address: str) -> None:
    assert str(hub.parse(address)) == address


def test_addresses_that_are_none() -> None:
    for address in (
        "hf://us",
        "hf://us/",
        "hf://us/zoo/",
        "hf://us/zoo/a/b",
        "hf://us/zoo@/a",
        "hf://us/zoo@1@2",
        "hf://us/zoo?x",
    ):
        with pytest.raises(UnknownNameError, match="not a valid address on the Hub"):
            hub.parse(address)
