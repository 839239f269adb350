"""A wall clock that is set forwards and back by hours changes nothing but the dates that are shown."""

import ast
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagen_jax.files import local_copy, write_bytes
from imagen_jax.progress import Progress
from imagen_jax.train import loop
from imagen_jax.train.event_file import EventFile
from tests.train import tiny_run

ROOT = Path(__file__).resolve().parents[1]
HOURS = 3600.0
# What shows a date, or compares the ages of files: nothing that counts seconds.
# The ledger joins processes, whose only common clock this is.
READERS = {
    *("imagen_jax/checkpoints/manage.py", "imagen_jax/files/copies.py", "imagen_jax/report/page.py"),
    *("imagen_jax/report/status.py", "imagen_jax/train/event_file.py", "imagen_jax/train/ledger.py"),
    *("imagen_jax/safety/audit.py", "imagen_jax/sampling/programs.py", "imagen_jax/serving/app.py"),
}
WALL = {"time": {"time", "time_ns", "ctime", "gmtime", "localtime", "strftime"}, "datetime": {"now", "utcnow", "today"}}


def reads_wall_clock(source: str) -> bool:
    """Tells if a program asks what time it is, by the names of functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in set().union(*WALL.values()):
            owner = ast.unparse(node.value)
            if any(owner.split(".")[-1] == module and node.attr in names for module, names in WALL.items()):
                return True
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            if WALL["time"] & {alias.name for alias in node.names}:
                return True
    return False


def test_durations_are_of_a_clock_that_nobody_sets():
    found = {path.relative_to(ROOT).as_posix() for folder in ("imagen_jax", "launch", "data")
             for path in (ROOT / folder).rglob("*.py") if reads_wall_clock(path.read_text())}  # fmt: skip
    assert found == READERS
    for source in ("import time\ntime.time()", "from time import time", "import datetime\ndatetime.datetime.now()"):
        assert reads_wall_clock(source)
    assert not reads_wall_clock("import time\ntime.monotonic()\nself.time.now\ntime.sleep(1)")


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """A wall clock that is three hours ahead and three behind by turns of a tenth of a second."""
    real = time.time

    def wall() -> float:
        return real() + (3 * HOURS if int(time.monotonic() * 10) % 2 else -3 * HOURS)

    monkeypatch.setattr("time.time", wall)
    monkeypatch.setattr("time.time_ns", lambda: int(time.time() * 1e9))
    yield real()


def test_a_bar_goes_on_where_the_clock_is_set_back(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    offset, real = 0.0, time.time
    monkeypatch.setattr("tqdm.std.time", lambda: real() + offset)
    with Progress(8, "work", "step") as progress:
        for number in range(8):
            offset = -3 * HOURS * (number > 1)
            time.sleep(0.15)
            progress.update()
        rate = progress._bar.format_dict["n"] / progress._bar.format_dict["elapsed"]
    shown = {int(line.partition("/8")[0].split()[-1]) for line in terminal.getvalue().split("\r") if "/8" in line}
    assert len(shown) >= 6 and 2 < rate < 8


def test_a_run_measures_what_passed(tmp_path, monkeypatch, jumping):
    tiny_run.use_tiny_data(monkeypatch.setattr)
    start = time.monotonic()
    loop.train(tiny_run.tiny_config(tmp_path / "run"), stop_at=4)
    loop.train(tiny_run.tiny_config(tmp_path / "run"))
    passed = time.monotonic() - start
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    for line in lines:
        assert all(0 <= line[name] <= passed for name in ("data_s", "compute_s", "step_time_s"))
        assert line["images_per_s"] == pytest.approx(16 / line["step_time_s"], rel=1e-3)


def test_a_later_file_of_events_comes_later(tmp_path, monkeypatch):
    """TensorBoard reads a folder's files by name."""
    names, start = [], 1_700_000_000.0  # Of ten digits, as every second from 2001 to 2286.
    for now in (start, start + 0.5, start - 3 * HOURS, start + 3 * HOURS):
        monkeypatch.setattr("time.time", lambda now=now: now)
        EventFile(tmp_path).close()
        (new,) = {path.name for path in tmp_path.iterdir()} - set(names)
        names.append(new)
    assert names == sorted(names)


def test_copies_in_use_stay_though_others_are_dated_later(bucket, tmp_path, monkeypatch):
    """Files of a clock that ran ahead would be the last to go, and those in use be fetched again each time."""
    monkeypatch.setenv("IMAGEN_JAX_CACHE_GB", "0.00004")  # Room for three of them.
    for name in "abcd":
        write_bytes(f"gs://bucket-a/{name}", name.encode() * 10_000)
    for name in "ab":
        os.utime(local_copy(f"gs://bucket-a/{name}"), (time.time() + 3 * HOURS,) * 2)
    local_copy("gs://bucket-a/c")
    local_copy("gs://bucket-a/d")
    there = {path.name for path in (tmp_path / "copies").rglob("*") if path.is_file()}
    assert {"c", "d"} <= there and len(there) == 3
