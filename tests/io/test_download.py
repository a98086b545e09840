"""Downloads from a real server on this machine, and the places where files are looked for."""

import hashlib
import os
import threading
import time
from urllib.parse import quote

import pytest
from servers import cut, endless, redirected, silent

from metazoo import DataError
from metazoo.datasets import download as data_download
from metazoo.datasets.download import find_or_fetch
from metazoo.io import download
from metazoo.io.files import cache_directory

DATA = bytes(range(256)) * 1000
MD5 = hashlib.md5(DATA).hexdigest()


WORDS = download.DownloadMessages(DataError, "put it there by hand", "try another --data-url")


def fetch(url, md5, target, size=None):
    download.fetch(url, target, "md5", md5, WORDS, size)


@pytest.fixture
def server(serve):
    return serve({"/file.bin": DATA})


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "file.bin"


def left(target):
    return sorted(name for name in os.listdir(target.parent) if name != ".lock")


def test_a_file_arrives_whole_and_alone(server, target):
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA
    assert left(target) == ["file.bin"]
    assert server.ranges == [None]


def test_a_part_is_continued(server, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(DATA[:1000])
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA
    assert server.ranges == ["bytes=1000-"]


def test_a_part_that_is_whole_already(server, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(DATA)
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA


def test_a_server_that_ignores_ranges(server, target):
    server.answers["/file.bin"] = lambda handler, body, start: handler.send(200, body)
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(DATA[:1000])
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("size", [1000, len(DATA), len(DATA) + 1])
def test_a_part_of_another_file_is_thrown_away(server, target, size):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"?" * size)
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA


def test_a_broken_connection_is_taken_up_again(server, target):
    server.answers["/file.bin"] = cut(100_000, 50_000)
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_a_connection_that_breaks_for_good_keeps_its_part(server, target):
    server.answers["/file.bin"] = cut(100, 100, 100)
    with pytest.raises(DataError, match=f"cannot download {server.url}/file.bin.*broke") as caught:
        fetch(f"{server.url}/file.bin", MD5, target)
    assert "resumes the download" in caught.value.hint
    assert left(target) == ["file.bin.part"]
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA
    assert server.ranges[-1] == "bytes=300-"


def test_a_wrong_checksum_leaves_nothing(server, target):
    with pytest.raises(DataError, match=f"has the MD5 {MD5}, but should have {'0' * 32}") as caught:
        fetch(f"{server.url}/file.bin", "0" * 32, target)
    assert "by hand" in caught.value.hint
    assert left(target) == []


def test_no_more_is_taken_than_there_should_be(server, target):
    with pytest.raises(DataError, match="has more than the 1000 bytes") as caught:
        fetch(f"{server.url}/file.bin", MD5, target, size=1000)
    assert "--data-url" in caught.value.hint
    assert left(target) == []
    fetch(f"{server.url}/file.bin", MD5, target, size=len(DATA))
    assert target.read_bytes() == DATA


def test_a_part_that_is_too_long_is_thrown_away(server, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"?" * (len(DATA) + 1))
    fetch(f"{server.url}/file.bin", MD5, target, size=len(DATA))
    assert target.read_bytes() == DATA
    assert server.ranges == [None]


def test_what_lies_there_damaged_is_replaced(server, target):
    target.parent.mkdir()
    target.write_bytes(DATA[:-1])
    fetch(f"{server.url}/file.bin", MD5, target)
    assert target.read_bytes() == DATA


def test_no_such_file(server, target):
    with pytest.raises(DataError, match="status 404"):
        fetch(f"{server.url}/other.bin", MD5, target)
    assert left(target) == []


def test_nobody_listens(server, target):
    server.stop()
    with pytest.raises(DataError, match="cannot download") as caught:
        fetch(f"{server.url}/file.bin", MD5, target)
    assert caught.value.hint == "are you offline? put it there by hand"
    assert left(target) == []


def test_a_server_that_falls_silent(server, target, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.answers["/file.bin"] = silent
    with pytest.raises(DataError, match="timed out"):
        fetch(f"{server.url}/file.bin", MD5, target)


def test_a_server_that_hardly_sends(server, target, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "SLOWEST", 10**9)

    def trickle(handler, body, start):
        handler.head(200, Content_Length=len(body))
        for _ in range(3):
            handler.wfile.write(b"x")
            time.sleep(0.06)  # shorter than the time that a server may be silent

    server.answers["/file.bin"] = trickle
    with pytest.raises(DataError, match="fewer than 1000000000 bytes a second"):
        fetch(f"{server.url}/file.bin", MD5, target)
    with pytest.raises(DataError, match="fewer than 1000000000 bytes a second"):
        download.read(f"{server.url}/file.bin", 10**6, WORDS)


@pytest.mark.parametrize("said", ["-5", "abc", "1e3", "", str(len(DATA) // 2), str(10 * len(DATA))])
def test_a_server_that_lies_about_the_length(server, target, said):
    def lie(handler, body, start):
        handler.head(200, Content_Length=said)
        handler.wfile.write(body)

    server.answers["/file.bin"] = lie
    try:
        fetch(f"{server.url}/file.bin", MD5, target)
    except DataError:
        assert not target.exists()
    else:
        assert target.read_bytes() == DATA


def test_data_sets_do_not_fill_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.delenv("METAZOO_DATA", raising=False)
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(data_download, "LARGEST", 2**20)
    server.answers["/file.bin"] = endless
    with pytest.raises(DataError, match="has more than the 1048576 bytes"):
        find(None, "file.bin", server.url + "/")
    assert server.sent < 2**27
    assert left(tmp_path / "set" / "file.bin") == []


@pytest.mark.parametrize("name", ["d\u00e4ten.bin", "two words.bin", "100%25.bin"])
def test_an_address_with_other_letters(server, target, name):
    server.files[f"/{quote(name, safe='%')}"] = DATA
    fetch(f"{server.url}/{name}", MD5, target)
    assert target.read_bytes() == DATA


def test_a_host_with_other_letters(target):
    # In ASCII it is xn--bcher-kva.invalid, a name that is never found.
    with pytest.raises(DataError, match=r"cannot download http://b\u00fccher\.invalid") as caught:
        fetch("http://b\u00fccher.invalid/file.bin", MD5, target)
    assert "offline" in caught.value.hint
    assert "codec" not in caught.value.message


def with_login(url, login="anna:s%40cret"):
    return url.replace("://", f"://{login}@")


def test_a_password_is_sent_but_not_to_where_a_redirect_leads(serve, target):
    seen = {}

    def remember(handler, body, start):
        seen[handler.server.url] = handler.headers.get("Authorization")
        handler.send(200, body)

    here, there = (serve({"/file.bin": DATA}) for _ in range(2))
    here.answers["/file.bin"] = there.answers["/file.bin"] = remember
    here.files["/moved.bin"] = b"-"
    here.answers["/moved.bin"] = redirected(f"{there.url}/file.bin")
    fetch(with_login(f"{here.url}/file.bin"), MD5, target)
    target.unlink()
    fetch(with_login(f"{here.url}/moved.bin"), MD5, target)
    assert seen == {here.url: "Basic YW5uYTpzQGNyZXQ=", there.url: None}


@pytest.mark.parametrize(
    "url",
    [
        "{login}/gone.bin?token=s3cret",
        "{login}/cut.bin?token=s3cret",
        "{login}/leads-on.bin",
        "{login}/file.bin?key=s3cret",
        "anna:s3cret@127.0.0.1/file.bin",
        "foo://anna:s3cret@host/file.bin",
        "http://anna:s3cret@host:port/file.bin",
    ],
)
def test_secrets_in_an_address_are_never_shown(server, target, url):
    secret = with_login(f"{server.url}/file.bin", "anna:s3cret")
    server.files |= {"/cut.bin?token=s3cret": DATA, "/leads-on.bin": b"-"}
    server.files["/file.bin?key=s3cret"] = b"another file"
    server.answers["/cut.bin?token=s3cret"] = cut(1, 1, 1)
    server.answers["/leads-on.bin"] = redirected(secret)
    with pytest.raises(DataError) as caught:
        fetch(url.format(login=with_login(server.url, "anna:s3cret")), MD5, target)
    assert "s3cret" not in str(caught.value)
    assert not target.exists()
    with pytest.raises(DataError) as caught:
        find(target.parent, "other.zip", secret)
    assert "s3cret" not in str(caught.value)


def test_a_pipe_at_an_address(tmp_path, target):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is not a file"):
        fetch(f"file://{tmp_path}/pipe", MD5, target)


@pytest.mark.parametrize("url", ["nonsense", "foo://bar/file.bin", "http://exa mple/file.bin"])
def test_a_url_that_is_none(url, target):
    with pytest.raises(DataError, match="cannot download"):
        fetch(url, MD5, target)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match="cannot download") as caught:
        fetch(f"{server.url}/file.bin", MD5, tmp_path / "cache" / "file.bin")
    assert "METAZOO_CACHE" in caught.value.hint


def test_two_that_want_the_same_file_do_not_disturb_each_other(server, target):
    running = [
        threading.Thread(target=fetch, args=(f"{server.url}/file.bin", MD5, target))
        for _ in range(4)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert target.read_bytes() == DATA
    assert left(target) == ["file.bin"]
    assert len(server.ranges) == 1


def find(root, name="file.zip", url="http://127.0.0.1:9/"):
    return find_or_fetch(None if root is None else str(root), "set", name, url, MD5)


@pytest.mark.parametrize("place", ["set/file.zip", "file.zip", "set/file/", "file/"])
def test_places_in_a_root(tmp_path, monkeypatch, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if place.endswith("/") else path.touch()
    assert find(tmp_path) == path
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path))
    assert find(None) == path


def test_a_pipe_in_a_root_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "file.zip")
    with pytest.raises(DataError, match=r"file\.zip is not in the data root"):
        find(tmp_path)


def test_the_option_goes_before_the_environment(tmp_path, monkeypatch):
    (tmp_path / "file.zip").touch()
    monkeypatch.setenv("METAZOO_DATA", str(tmp_path / "elsewhere"))
    assert find(tmp_path) == tmp_path / "file.zip"


@pytest.mark.parametrize("folder", ["", "gone"])
def test_a_root_without_the_file_says_where_to_put_it(tmp_path, folder):
    root = tmp_path / folder
    with pytest.raises(DataError, match=r"file\.zip is not in the data root") as caught:
        find(root)
    assert ("not a directory" in caught.value.message) == (folder == "gone")
    assert str(root / "set") in caught.value.hint


def test_without_a_root_the_cache_is_filled_once(server, tmp_path, monkeypatch):
    monkeypatch.delenv("METAZOO_DATA", raising=False)
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    for _ in range(2):
        assert find(None, "file.bin", server.url + "/") == tmp_path / "set" / "file.bin"
    assert server.ranges == [None]


def test_what_cannot_be_fetched_is_told_where_to_put(tmp_path, monkeypatch):
    monkeypatch.delenv("METAZOO_DATA", raising=False)
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="cannot download") as caught:
        find(None, "file.bin", "nonsense")
    for what in ("file.bin", MD5, str(tmp_path / "set"), "--data-root"):
        assert what in caught.value.hint


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("METAZOO_CACHE", "")
    assert cache_directory() == tmp_path / ".cache" / "metazoo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_directory() == tmp_path / "x" / "metazoo"
    monkeypatch.setenv("METAZOO_CACHE", str(tmp_path / "m"))
    assert cache_directory() == tmp_path / "m"
