"""The mode `status`: what it says of runs that are at work, done, stopped, killed, or damaged."""

import json
import os
import subprocess
import time

import pytest

from imagen_jax.checkpoints import marks
from imagen_jax.files import Lock, as_path, write_text
from imagen_jax.main import main
from imagen_jax.report.status import LOCK, METRICS, duration, status
from imagen_jax.train import metrics, run_dir
from imagen_jax.train.ledger import Ledger


def make_run(folder, reason: str | None = "SIGTERM") -> None:
    """A run of 40 updates of 100, with a checkpoint of step 30."""
    ledger = Ledger(folder, 100)
    with ledger.during("compile"):
        time.sleep(0.02)
    ledger.begin_steps(0)
    ledger.write(40) if reason is None else ledger.close(40, reason)
    ledger.send()
    line = {"step": 40, "loss": 0.12345, "step_time_s": 0.5, "data_s": 0.05, "bad_records": 3, "slow_process": 1}
    write_text(as_path(folder) / METRICS, f'{{"step": 20}}\n{json.dumps(line)}\n{{"st')
    write_text(as_path(folder) / "checkpoints/checkpoint_30/digests.json", "{}")


def test_names_of_files_are_the_trainers():
    assert (METRICS, LOCK) == (metrics.METRICS, run_dir.LOCK)


def test_ten_lines_say_how_a_run_is_doing(tmp_path):
    (tmp_path / "checkpoints/checkpoint_30").mkdir(parents=True)
    check_ten_lines(tmp_path)


@pytest.mark.usefixtures("bucket")
def test_ten_lines_say_how_a_run_in_a_bucket_is_doing():
    check_ten_lines("gs://bucket-a/run")


def check_ten_lines(folder):
    make_run(folder)
    lines = status(folder).splitlines()
    told = {line.split()[0]: line for line in lines}
    assert len(lines) == 10
    assert "not trained; stopped by SIGTERM" in told["state"]
    assert "40 of 100 (40.0%)" in told["step"]
    assert "2 updates/s, 30 s left" in told["rate"]
    assert "0.1235" in told["loss"] or "0.1234" in told["loss"]
    assert "10.0% of an update" in lines[5]
    assert "step 30, 0 s old" in told["checkpoint"] or "step 30, 1 s old" in told["checkpoint"]
    assert "compile" in told["goodput"] and "%" in told["goodput"]
    assert "bad records 3, slow process 1" in told["trouble"]
    assert lines[-1].endswith("SIGTERM")


def test_a_run_is_at_work_done_or_killed(tmp_path):
    (tmp_path / "checkpoints/checkpoint_30").mkdir(parents=True)
    make_run(tmp_path, reason=None)
    assert "ended without a word" in status(tmp_path)
    lock = Lock(tmp_path / LOCK)
    assert lock.acquire()
    assert f"trained by process {os.getpid()} on host" in status(tmp_path)
    note = json.loads((tmp_path / LOCK).read_text())
    assert not Lock(tmp_path / LOCK).acquire(), "looking must not give the lock back"
    lock.release()
    # What a killed process leaves: its note, and no such process.
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / LOCK).write_text(json.dumps(note | {"process": ended.pid}))
    assert "ended without a word" in status(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps(note | {"machine": "another"}))
    assert "as far as can be told from here" in status(tmp_path)
    (tmp_path / LOCK).unlink()
    marks.write_finished(tmp_path, 30)
    assert "state       done" in status(tmp_path)


def test_a_cascade_has_one_line_a_stage(tmp_path, capsys):
    for name in ("base", "sr"):
        (tmp_path / name / "checkpoints/checkpoint_30").mkdir(parents=True)
        make_run(tmp_path / name)
    (tmp_path / "samples").mkdir()
    assert main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["base", "sr"]
    assert all("40 of 100 (40.0%); not trained; stopped by SIGTERM; loss 0.123" in line for line in lines)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path / "absent")]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    assert main(["status", str(tmp_path)]) == 2
    assert "ledger.jsonl has no line 1.run; delete that line" in capsys.readouterr().err


def test_a_reason_from_elsewhere_cannot_steer_the_terminal(tmp_path):
    make_run_dir = tmp_path / "checkpoints/checkpoint_30"
    make_run_dir.mkdir(parents=True)
    make_run(tmp_path, reason="\x1b[2J boom")
    assert "\x1b" not in status(tmp_path) and "boom" in status(tmp_path)


def test_watch_tells_it_until_ctrl_c(tmp_path, capsys, monkeypatch):
    (tmp_path / "checkpoints/checkpoint_30").mkdir(parents=True)
    make_run(tmp_path)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("imagen_jax.report.status.time.sleep", sleep)
    assert main(["status", str(tmp_path), "--watch", "--poll=7"]) == 130
    assert waits == [7, 7, 7] and capsys.readouterr().out.count("40 of 100") == 3
    assert main(["status", str(tmp_path), "--watch", "--poll=0"]) == 2
    assert "--poll (0) must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
