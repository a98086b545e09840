"""Models from elsewhere: real servers on this machine, and nothing is read but what it should be."""

from __future__ import annotations

import hashlib
import importlib
import json
import shlex
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import cut, endless, redirected, silent, slow

from metazoo import zoo
from metazoo.cli import run
from metazoo.errors import CheckpointError, MetazooError, UnknownNameError
from metazoo.io import download
from metazoo.plugins.registry import registry
from metazoo.zoo import remote, run_folder, weights
from metazoo.zoo.export import command

NAME = "protonet.tiny_3w1s"
CARD, WEIGHTS = f"/{NAME}.json", f"/{NAME}.safetensors"
QUICK = shlex.split(
    "--ways 3 --queries 3 --train-ways 3 --steps 1 --validate-every 1 --validation-episodes 2 --test-episodes 2 "
    "--device cpu --data-alphabets 6 --backbone-width 4"
)


@pytest.fixture
def offer(serve: Callable[..., Any], exported: Path) -> Callable[..., Any]:
    """Starts servers that have the exported model."""

    def start(**where: Any) -> Any:
        server = serve({f"/{path.name}": path.read_bytes() for path in exported.iterdir()}, **where)
        server.card = server.url + CARD
        return server

    return start


@pytest.fixture
def server(offer: Callable[..., Any]) -> Any:
    return offer()


@pytest.fixture
def pin(exported: Path) -> str:
    return f"#sha256={hashlib.sha256((exported / WEIGHTS[1:]).read_bytes()).hexdigest()}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be parsed in this test."""
    finding = importlib.import_module("metazoo.zoo.find")
    for module, parser in ((finding, "metadata_of"), (weights, "tensors_of")):
        monkeypatch.setattr(module, parser, lambda data, where: pytest.fail(f"{where} was parsed"))


def changed(server: Any, **changes: Any) -> None:
    server.files[CARD] = json.dumps({**json.loads(server.files[CARD]), **changes}).encode()


def tamper(server: Any) -> str:
    data = bytearray(server.files[WEIGHTS])
    data[-1] ^= 1
    server.files[WEIGHTS] = bytes(data)
    return hashlib.sha256(data).hexdigest()


def refused(name: str, match: str, kind: type[MetazooError] = CheckpointError) -> str:
    with pytest.raises(kind, match=match) as caught:
        zoo.load(name)
    assert caught.value.hint
    return caught.value.hint


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_model_at_an_address_is_the_same_model(
    server: Any, pin: str, protonet_run: Path, cache: Path
) -> None:
    task = torch.rand(1, 4, 1, 28, 28), torch.tensor([[0, 1, 2, 2]]), torch.rand(1, 5, 1, 28, 28)
    model = zoo.load(server.card + pin)
    assert not model.training
    torch.testing.assert_close(model(*task), zoo.load(protonet_run)(*task))
    assert kept(cache) == [CARD[1:], WEIGHTS[1:]]
    assert zoo.find(server.card + pin).weights.parent == cache / pin.removeprefix("#sha256=")


def test_a_pinned_model_in_the_cache_needs_no_server(server: Any, pin: str) -> None:
    zoo.load(server.card + pin)
    assert server.asked == [CARD, WEIGHTS]
    server.stop()
    zoo.load(server.card + pin)
    zoo.load(server.card + pin.upper().replace("SHA256", "sha256"))


def test_what_was_damaged_in_the_cache_is_fetched_again(server: Any, pin: str, cache: Path) -> None:
    path = zoo.find(server.card + pin).weights
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert zoo.find(server.card + pin).weights.read_bytes() == good
    (card,) = cache.rglob("*.json")
    card.write_text("{")
    assert zoo.find(server.card + pin).weights.read_bytes() == good
    assert json.loads(card.read_text())["name"] == NAME
    assert server.asked == [CARD, WEIGHTS, CARD, WEIGHTS, CARD]


def test_a_model_in_a_folder_by_its_address(
    exported: Path, pin: str, tmp_path: Path, protonet_run: Path
) -> None:
    folder = tmp_path / "of their own"
    shutil.copytree(exported, folder)
    for address in ((folder / CARD[1:]).as_uri(), (folder / CARD[1:]).as_uri() + pin):
        assert zoo.find(address).blueprint == zoo.find(protonet_run / run_folder.BEST).blueprint
    shutil.rmtree(folder)
    assert zoo.find((folder / CARD[1:]).as_uri() + pin).name.startswith("file:///")
    assert "path" in refused((folder / CARD[1:]).as_uri(), "No such file")


def test_http_needs_a_pin(server: Any) -> None:
    assert "#sha256=" in refused(server.card, "not encrypted", UnknownNameError)
    assert server.asked == []


def test_a_pin_of_other_weights(server: Any, unparsed: None, cache: Path) -> None:
    hint = refused(
        f"{server.card}#sha256={'0' * 64}",
        f"its sha256 is [0-9a-f]{{64}}, the address asks for {'0' * 64}",
    )
    assert "do not use it" in hint
    assert server.asked == [CARD]
    assert kept(cache) == []


def test_weights_that_were_tampered_with(
    server: Any, pin: str, unparsed: None, cache: Path
) -> None:
    found = tamper(server)
    match = f"SHA-256 {found}, but should have {pin.removeprefix('#sha256=')}: nothing was read"
    assert "do not use it" in refused(server.card + pin, match)
    assert kept(cache) == []


def test_what_is_missing(server: Any, pin: str) -> None:
    del server.files[WEIGHTS]
    assert "by hand" in refused(server.card + pin, f"{WEIGHTS}: HTTP status 404")
    del server.files[CARD]
    assert "browser" in refused(server.card + pin, f"{CARD}: HTTP status 404")


def test_weights_that_break_off_are_taken_up_again(server: Any, pin: str) -> None:
    server.answers[WEIGHTS] = cut(1000)
    zoo.load(server.card + pin)
    assert server.asked == [CARD, WEIGHTS, WEIGHTS]


@pytest.mark.parametrize("path", [CARD, WEIGHTS])
def test_what_is_truncated_for_good(server: Any, pin: str, path: str, unparsed: None) -> None:
    server.answers[path] = cut(100, 0, 0)
    assert "try again" in refused(server.card + pin, "the connection broke")


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(
    server: Any, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.4)
    server.answers = {WEIGHTS: slow}
    zoo.load(server.card + pin)
    server.answers = {"/other.json": silent}
    server.files["/other.json"] = server.files[CARD]
    began = time.monotonic()
    refused(f"{server.url}/other.json#sha256={'1' * 64}", "timed out")
    assert time.monotonic() - began < 10


def test_nobody_listens(server: Any, pin: str) -> None:
    server.stop()
    assert "offline" in refused(server.card + pin, "cannot download")


def test_a_redirect_to_another_host_is_followed_and_checked(
    offer: Callable[..., Any], server: Any, pin: str, cache: Path
) -> None:
    other = offer(host="localhost")
    server.answers = {CARD: redirected(other.card), WEIGHTS: redirected(other.url + WEIGHTS)}
    zoo.load(server.card + pin)
    assert other.asked == [CARD, WEIGHTS]
    shutil.rmtree(cache)
    found = tamper(other)
    refused(server.card + pin, f"SHA-256 {found}, but should have")
    assert kept(cache) == []


@pytest.mark.parametrize("target", ["file://{folder}{path}", "ftp://127.0.0.1{path}", "data:,x"])
@pytest.mark.parametrize("path", [CARD, WEIGHTS])
def test_a_redirect_elsewhere_is_not_followed(
    server: Any, pin: str, exported: Path, path: str, target: str, unparsed: None
) -> None:
    """What it leads to would fit: it is the redirect itself that is refused."""
    server.answers[path] = redirected(target.format(folder=exported, path=path))
    refused(server.card + pin, "status 302.*(not allowed|not followed)")


def test_no_more_is_read_than_a_card_says(
    server: Any, pin: str, unparsed: None, cache: Path
) -> None:
    size = len(server.files[WEIGHTS])
    server.answers[WEIGHTS] = endless
    refused(server.card + pin, f"more than the {size} bytes")
    assert server.sent < 2000 * 2**16
    assert kept(cache) == []


def test_no_more_is_read_of_a_card_than_a_card_has(server: Any, pin: str) -> None:
    server.answers[CARD] = endless
    refused(server.card + pin, f"more than {2**20} bytes")
    assert server.sent < 2000 * 2**16
    server.answers = {}
    changed(server, summary="x" * 2**20)
    refused(server.card + pin, f"more than {2**20} bytes")
    assert WEIGHTS not in server.asked


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"weights": value}
            for value in (
                "../x.safetensors",
                "/etc/x.safetensors",
                "a/b.safetensors",
                "..\\x.safetensors",
                "https://elsewhere/x.safetensors",
                "x.pt",
                ".safetensors",
                "x.safetensors?y",
                5,
            )
        ),
        *(
            {"name": value}
            for value in (
                "../../protonet.x",
                "protonet",
                "protonet.x/y",
                "protonet.",
                ".x",
                "a.b.c",
                None,
            )
        ),
        *({"sha256": value} for value in ("../../..", "0" * 63, "0" * 63 + "/", None)),
    ],
)
def test_a_card_from_elsewhere_leads_nowhere_else(
    server: Any, pin: str, change: dict[str, Any], cache: Path
) -> None:
    changed(server, **change)
    refused(server.card + pin, f"is (refused|not a model card): .*'{next(iter(change))}'")
    assert server.asked == [CARD]
    assert kept(cache) == []


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"[]",
        b"[" * 100_000,
        b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}",
        b"\xff\xfe\x00",
        b'"card"',
    ],
)
def test_what_is_no_card(server: Any, pin: str, text: bytes) -> None:
    server.files[CARD] = text
    refused(server.card + pin, "is not a model card")


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("ftp://host/a.json", "models cannot be loaded from"),
        ("c://a.json", "models cannot be loaded from"),
        ("://a.json", "models cannot be loaded from"),
        ("https://host/a.safetensors", "not the address of a model card"),
        ("https://host/", "not the address of a model card"),
        ("https://[host/a.json", "is not a valid address"),
        ("https://host/a.json#sha256=12", "invalid pin"),
        ("https://host/a.json#md5=12", "invalid pin"),
        ("hf://user", "not a valid address on the Hub"),
        ("hf://user/repo/folder/NAME", "not a valid address on the Hub"),
    ],
)
def test_addresses_that_are_none(
    address: str, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "hf://user/repo/NAME" in refused(address, match, UnknownNameError) or "pin" in match
    assert run(["eval", address]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_cache_that_cannot_be_written(server: Any, pin: str, cache: Path) -> None:
    cache.parent.write_text("a file where a folder should be")
    assert "METAZOO_CACHE" in refused(server.card + pin, "cannot download")


def test_a_full_disk(server: Any, pin: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metazoo.io.download.os.replace", full)
    assert "METAZOO_CACHE" in refused(server.card + pin, "No space left")


LOAD = "import sys; from metazoo import zoo; print(zoo.find(sys.argv[1]).weights)"


@pytest.mark.slow
def test_two_processes_do_not_disturb_each_other(server: Any, pin: str) -> None:
    server.answers[WEIGHTS] = slow
    words = [sys.executable, "-c", LOAD, server.card + pin]
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert said[0] == said[1]
    assert server.asked.count(WEIGHTS) == 1


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a server whose certificate is its own and trusted."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(words, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate, key)
    return made


def test_https_needs_no_pin(
    offer: Callable[..., Any], context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = offer(context=context, host="localhost")
    for _ in range(2):
        zoo.load(server.card)
    assert server.asked == [CARD, WEIGHTS, CARD]
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "SSL_CERT_FILE" in refused(
        server.card, "CERTIFICATE_VERIFY_FAILED|certificate verify failed"
    )


def test_what_was_checked_is_what_is_used(
    offer: Callable[..., Any],
    context: ssl.SSLContext,
    exported: Path,
    other_run: Path,
    tmp_path: Path,
) -> None:
    """An address without a pin may have another model the next time: a command looks once."""
    server = offer(context=context, host="localhost")
    good, other = server.files[CARD], (other_run / run_folder.BEST).read_bytes()
    changed(
        server,
        sha256=hashlib.sha256(other).hexdigest(),
        bytes=len(other),
        weights="protonet.other.safetensors",
    )
    server.files["/protonet.other.safetensors"], theirs = other, server.files[CARD]

    def first_good(handler: Any, body: bytes, start: int) -> None:
        handler.send(200, good if server.asked.count(CARD) == 1 else theirs)

    server.answers[CARD] = first_good
    assert run(["eval", server.card, "--episodes", "2"]) == 0
    assert server.asked == [CARD, WEIGHTS]
    server.asked.clear()
    out = tmp_path / "run"
    assert run(["train", "protonet", *QUICK, "--out", str(out), "--init", server.card]) == 0
    assert server.asked == [CARD]
    assert (
        json.loads((out / run_folder.RESULT).read_text())["init_sha256"]
        == json.loads(good)["sha256"]
    )


@pytest.mark.slow
def test_processes_that_share_out_a_run_start_from_what_the_first_one_found(
    offer: Callable[..., Any], context: ssl.SSLContext, tmp_path: Path
) -> None:
    server = offer(context=context, host="localhost")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "metazoo",
    ]
    words = [
        "train",
        "protonet",
        *QUICK,
        "--meta-batch",
        "2",
        "--out",
        str(tmp_path / "run"),
        "--init",
        server.card,
    ]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert server.asked == [CARD, WEIGHTS]


def test_what_changes_between_download_and_use_is_refused(
    server: Any, pin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(url: str, destination: Path, *rest: Any) -> None:
        destination.parent.mkdir(parents=True)
        destination.write_bytes(b"another")

    monkeypatch.setattr(download, "fetch", changing)
    refused(server.card + pin, "was changed right after the download")


@pytest.mark.parametrize("path", [CARD, WEIGHTS])
def test_no_redirect_leads_from_https_to_http(
    offer: Callable[..., Any], server: Any, context: ssl.SSLContext, path: str, unparsed: None
) -> None:
    secure = offer(context=context, host="localhost")
    secure.answers[path] = redirected(server.url + path)
    refused(secure.card, "is not followed")
    assert server.asked == []


def test_a_redirect_from_http_to_https_is_followed(
    offer: Callable[..., Any], server: Any, context: ssl.SSLContext, pin: str
) -> None:
    secure = offer(context=context, host="localhost")
    server.answers[CARD] = redirected(secure.card)
    zoo.load(server.card + pin)
    assert secure.asked == [CARD]


HOOK = """
from pathlib import Path
import metazoo

@metazoo.hookimpl
def register_pretrained():
    return {path.stem: path for path in Path(__file__).parent.glob("*.json")}
"""


@pytest.fixture
def installed(server: Any, tmp_path: Path) -> Iterator[Path]:
    """The folder of a registered card whose weights are at the server."""
    package = tmp_path / "site" / "strangers_zoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HOOK)
    card = {**json.loads(server.files[CARD]), "weights": server.url + WEIGHTS}
    (package / CARD[1:]).write_text(json.dumps(card))
    info = tmp_path / "site" / "strangers_zoo-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers-zoo\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[metazoo]\nstrangers_zoo = strangers_zoo\n")
    sys.path.insert(0, str(package.parent))
    registry.cache_clear()
    yield package
    sys.path.remove(str(package.parent))
    sys.modules.pop("strangers_zoo", None)
    registry.cache_clear()


def test_a_registered_card_whose_weights_are_elsewhere(installed: Path, server: Any) -> None:
    zoo.load(NAME)
    assert server.asked == [WEIGHTS]
    server.stop()
    zoo.load(NAME)


def test_a_registered_card_is_the_truth(installed: Path, server: Any, unparsed: None) -> None:
    refused_hash = tamper(server)
    refused(NAME, refused_hash)
    for address, match in (
        (f"{server.url}/x.pt", r"not a \.safetensors"),
        ("ftp://host/x.safetensors", "models cannot be loaded from"),
    ):
        (installed / CARD[1:]).write_text(
            json.dumps({**json.loads(server.files[CARD]), "weights": address})
        )
        with pytest.raises(MetazooError, match=match):
            zoo.load(NAME)


def test_eval_and_init_take_an_address(
    server: Any, pin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], exported: Path
) -> None:
    assert run(["eval", server.card + pin, "--episodes", "12", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    (card,) = json.loads((exported / CARD[1:]).read_text())["results"]
    said = {
        "model": server.card + pin,
        "data": "glyphs",
        "data_options": {"alphabets": 6, "seed": 0},
    }
    assert result == {**said, **card}
    assert (
        run(
            [
                "train",
                "protonet",
                *QUICK,
                "--out",
                str(tmp_path / "run"),
                "--init",
                server.card + pin,
            ]
        )
        == 0
    )
    # Whoever reads the command of its card can run it: the address holds on every machine.
    assert server.card + pin in command(run_folder.read_blueprint(tmp_path / "run"))


def test_the_size_of_a_card_is_the_only_limit(server: Any, pin: str) -> None:
    for size in (None, "many", True, -1):
        changed(server, bytes=size)
        remote.find(server.card + pin)
