"""JSON, the cache directory, and several processes that write the same files."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
from forks import Forks

from metazoo.errors import OptionError
from metazoo.io.files import cache_directory, json_text, locked, parse_json, write_json
from metazoo.zoo import run_folder


def test_json_holds_no_nan_and_no_infinity(tmp_path: Path) -> None:
    value = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": "NaN"}, "e": True}
    expected = {"a": [None, [1.5, None]], "b": {"c": None, "d": "NaN"}, "e": True}
    assert parse_json(json_text(value)) == expected
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == expected


def test_a_cache_in_nobodys_home_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_CACHE", "~no-such-user/x")
    with pytest.raises(OptionError, match="METAZOO_CACHE is '~no-such-user/x'"):
        cache_directory()


def test_a_lock_leaves_no_file_and_keeps_others_out(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            locked(tmp_path, wait=False),
            pytest.raises(BlockingIOError),
            locked(tmp_path, wait=False),
        ):
            pass
        assert list(tmp_path.iterdir()) == []


# Runs `work(mine)` in two processes at once, with mine = 0 and 1, and prints what each returns.
RACE = """
import json, os, sys
from pathlib import Path

def race(work):
    ends = []
    ready, go = os.pipe()
    for mine in (0, 1):
        read, write = os.pipe()
        if not os.fork():
            os.close(go)
            os.read(ready, 1)  # until the other one is there, too
            os.write(write, json.dumps(work(mine)).encode())
            os._exit(0)
        os.close(write)
        ends.append(read)
    os.close(go)
    print(json.dumps([json.loads(os.fdopen(end, "rb").read()) for end in ends]))
"""
EXPORT = (
    RACE
    + """
from metazoo.errors import OptionError
from metazoo.zoo.export import write_model
import hashlib

def work(mine):
    won = []
    weights = bytes([mine]) * 1000
    card = {"name": "a.b", "weights": "a.b.safetensors", "results": [], "mine": mine,
            "sha256": hashlib.sha256(weights).hexdigest()}
    for number in range(60):
        try:
            write_model(Path(sys.argv[1], str(number)), card, weights, "")
            won.append(number)
        except OptionError:
            pass
    return won

race(work)
"""
)
TRAIN = (
    RACE
    + """
from metazoo.errors import OptionError
from metazoo.zoo import run_folder
from metazoo.zoo.blueprint import Blueprint
import dataclasses

given = run_folder.read_blueprint(Path(sys.argv[2]))

def work(mine):
    won = []
    ours = dataclasses.replace(given, metazoo=str(mine))
    for number in range(100):
        try:
            run_folder.create(Path(sys.argv[1], str(number)), ours)
            won.append(number)
        except OptionError:
            pass
    return won

race(work)
"""
)
DOWNLOAD = (
    RACE
    + """
from metazoo.errors import DataError
from metazoo.io.download import DownloadMessages, fetch

source, sha256 = Path(sys.argv[2]), sys.argv[3]
messages = DownloadMessages(DataError, "by hand", "wrong file")

def work(mine):
    for number in range(60):
        target = Path(sys.argv[1], str(number), "file")
        fetch(source.as_uri(), target, "sha256", sha256, messages)
        assert target.read_bytes() == source.read_bytes()
    return "done"

race(work)
"""
)


def test_of_two_exports_under_one_name_one_is_refused(fresh_python: Forks, tmp_path: Path) -> None:
    done = fresh_python.run(EXPORT, tmp_path)
    won = json.loads(done.stdout)
    assert sorted(won[0] + won[1]) == list(range(60)), done.stderr
    for mine, numbers in enumerate(won):
        for number in numbers:
            files = {path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()}
            assert set(files) == {"a.b.json", "a.b.safetensors"}
            assert json.loads(files["a.b.json"])["mine"] == mine
            assert files["a.b.safetensors"] == bytes([mine]) * 1000


def test_of_two_runs_in_one_folder_one_is_refused(
    fresh_python: Forks, protonet_run: Path, tmp_path: Path
) -> None:
    done = fresh_python.run(TRAIN, tmp_path, protonet_run)
    won = json.loads(done.stdout)
    assert sorted(won[0] + won[1]) == list(range(100)), done.stderr
    for mine, numbers in enumerate(won):
        for number in numbers:
            assert run_folder.read_blueprint(tmp_path / str(number)).metazoo == str(mine)


def test_two_downloads_of_one_file_get_it(fresh_python: Forks, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "source").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    done = fresh_python.run(DOWNLOAD, tmp_path, tmp_path / "source", sha256)
    assert json.loads(done.stdout) == ["done", "done"], done.stderr
    for number in range(60):
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["file"]
