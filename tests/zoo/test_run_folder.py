"""Run folders."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from metazoo.errors import CheckpointError, OptionError
from metazoo.zoo import run_folder


def test_a_run_leaves_everything_that_it_promises(protonet_run: Path) -> None:
    names = {path.name for path in protonet_run.iterdir()}
    assert {
        run_folder.CONFIG,
        run_folder.METRICS,
        run_folder.BEST,
        run_folder.LAST,
        run_folder.RESULT,
    } <= names
    assert any(name.startswith("events.out") for name in names)
    assert not any(name.startswith(".") for name in names)  # no temporary file is left


def test_an_existing_run_is_never_written_over(protonet_run: Path, tmp_path: Path) -> None:
    blueprint = run_folder.read_blueprint(protonet_run)
    folder = tmp_path / "deep" / "run"
    run_folder.create(folder, blueprint)
    assert run_folder.read_blueprint(folder) == blueprint
    with pytest.raises(OptionError, match="exists already") as caught:
        run_folder.create(folder, blueprint)
    assert f"--resume {folder}" in (caught.value.hint or "")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(OptionError, match="exists already") as caught:
        run_folder.create(tmp_path / "other", blueprint)
    assert "--resume" not in (caught.value.hint or "")
    with pytest.raises(OptionError, match="exists already"):
        run_folder.create(tmp_path / "other" / "thesis.tex", blueprint)
    with pytest.raises(CheckpointError, match="cannot be made"):
        run_folder.create(tmp_path / "other" / "thesis.tex" / "run", blueprint)
    (tmp_path / "empty").mkdir()
    run_folder.create(tmp_path / "empty", blueprint)


def test_runs_that_start_at_once_get_folders_of_their_own(
    protonet_run: Path, tmp_path: Path
) -> None:
    blueprint = run_folder.read_blueprint(protonet_run)
    (tmp_path / "runs" / "x-2").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        folders = list(
            pool.map(
                lambda _: run_folder.create_numbered(tmp_path / "runs", "x", blueprint), range(6)
            )
        )
    assert sorted(folder.name for folder in folders) == ["x-1", "x-3", "x-4", "x-5", "x-6", "x-7"]
    assert all(run_folder.read_blueprint(folder) == blueprint for folder in folders)


def test_a_run_folder_is_for_one_process(protonet_run: Path, tmp_path: Path) -> None:
    run_folder.create(tmp_path / "run", run_folder.read_blueprint(protonet_run))
    leftover = tmp_path / "run" / f".{run_folder.LAST}.k1ll3d"
    leftover.write_bytes(b"half a checkpoint")
    with run_folder.claimed(tmp_path / "run"):
        assert not leftover.exists()
        with (
            pytest.raises(CheckpointError, match="another process is training"),
            run_folder.claimed(tmp_path / "run"),
        ):
            pass
    with run_folder.claimed(tmp_path / "run"):
        pass


def test_what_is_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a run folder"):
        run_folder.read_blueprint(tmp_path)
    (tmp_path / run_folder.CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a metazoo model"):
        run_folder.read_blueprint(tmp_path)


def test_metrics_without_the_line_that_was_cut_off(tmp_path: Path) -> None:
    assert run_folder.read_metrics(tmp_path) == []
    (tmp_path / run_folder.METRICS).write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert run_folder.read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b'{"loss": 1}',
        b'{"step": "x"}',
        b"[1]",
        b"7",
        b"\xff",
        b'{"step": 1, "loss": []}',
        b'{"step": 1, "loss": NaN}',
        b'{"step": 1, "loss": 1e999}',
        b'{"step": 1, "loss": true}',
        b'{"step": -1}',
        b'{"step": 1.5}',
        b'{"step": 1e300}',
        b'{"step": 1, "step": 2}',
        b'{"step": 1' + b"0" * 400 + b"}",
        b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
        b'{"step": 1' + b"0" * 5000 + b"}",
        b"[" * 10_000,
        b"[" * 200_000,
        b'{"step": 1, "' + b"x" * 200_000 + b'": 1}',
    ],
)
def test_a_damaged_line_of_metrics_is_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / run_folder.METRICS).write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert run_folder.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    assert run_folder.damaged_metrics(tmp_path) == 1
    with run_folder.RunLog(tmp_path, 1) as log:
        log.write(2, loss=0.5)
    assert run_folder.read_metrics(tmp_path) == [{"step": 1}, {"step": 2, "loss": 0.5}]


def test_a_log_that_is_opened_again_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    with run_folder.RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3, 4):
            log.write(step, loss=step / 2)
    with (tmp_path / run_folder.METRICS).open("a") as file:
        file.write('{"step": 5, "lo')
    with run_folder.RunLog(tmp_path, 2) as log:
        log.write(3, loss=9.0)
    lines = (tmp_path / run_folder.METRICS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": s, "loss": v} for s, v in ((1, 0.5), (2, 1.0), (3, 9.0))
    ]


def test_every_line_is_in_the_events_too(protonet_run: Path) -> None:
    files = list(protonet_run.glob("events.out*"))
    events = [
        (e.step, v.tag)
        for file in files
        for e in EventFileLoader(str(file)).Load()
        for v in e.summary.value
    ]
    metrics = [
        (m["step"], name)
        for m in run_folder.read_metrics(protonet_run)
        for name in m
        if name != "step"
    ]
    assert sorted(events) == sorted(metrics)
    assert metrics
