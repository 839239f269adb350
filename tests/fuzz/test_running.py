"""The fuzzers notice what they are for."""

import itertools
import mmap
import os
import subprocess
import time
from typing import Any

import pytest

from imagen_jax.errors import UserError
from tests.fuzz import running


class _Config:
    """Asks for three cases, or for one alone."""

    def __init__(self, alone: int | None = None, first: int = 0):
        self._options = {"--cases": 3, "--first": first, "--case": alone}

    def getoption(self, name: str) -> Any:
        return self._options[name]


def _raise(error: BaseException) -> None:
    raise error


def _find(attempt: Any, writes: Any = None, config: Any = None) -> str:
    with pytest.raises(pytest.fail.Exception) as found:
        running.fuzz(config or _Config(), "door", lambda chance: chance.random(), attempt, writes=writes)
    return str(found.value)


def test_errors_of_one_line_and_results_are_good(tmp_path):
    def attempt(case: float) -> None:
        (tmp_path / "mine").write_text("x")
        if case < 0.5:
            raise UserError("what, got, expected, fix")

    running.fuzz(_Config(), "door", lambda chance: chance.random(), attempt, writes=tmp_path)


@pytest.mark.parametrize("error", [KeyError("k"), AssertionError(), SystemExit(1), MemoryError()])
def test_other_exceptions(error):
    found = _find(lambda case: _raise(error))
    assert "door: 3 of 3 cases" in found and f"{type(error).__name__} at " in found and "first case 0: 0." in found


@pytest.mark.parametrize("message", ["", " ", "\n"])
def test_errors_without_a_message(message):
    assert "UserError without a message" in _find(lambda case: _raise(UserError(message)))


def test_files_elsewhere_and_other_programs(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "old").write_text("x")
    (tmp_path / "mine" / "new").write_text("x")
    numbers = itertools.count()
    for attempt in (
        lambda case: (tmp_path / "new").write_text("x"),
        lambda case: (tmp_path / "mine/../new").write_text("x"),
        lambda case: (tmp_path / "mined").mkdir(exist_ok=True),
        lambda case: os.open(tmp_path / "old", os.O_WRONLY),
        lambda case: (tmp_path / "old").rename(tmp_path / "old"),
        lambda case: (tmp_path / f"link{next(numbers)}").symlink_to("old"),
        lambda case: (tmp_path / "new").unlink(missing_ok=True),
        lambda case: subprocess.run(["true"], check=True),
        lambda case: os.system("true"),
    ):
        assert "touched: " in _find(attempt, writes=tmp_path / "mine")
    assert "touched: " in _find(lambda case: (tmp_path / "mine" / "new").write_text("y"))


def test_a_case_that_does_not_end_or_fills_the_memory(monkeypatch):
    monkeypatch.setattr(running, "CASE_S", 0.01)
    assert "Hang at " in _find(lambda case: time.sleep(5))
    monkeypatch.setattr(running, "CASE_S", 20.0)
    monkeypatch.setattr(running, "CASE_KIB", 32 << 10)

    def fill(case: float) -> None:
        # Pages of its own: those of malloc may lie in the process already, free since an earlier test.
        with mmap.mmap(-1, 256 << 20) as pages:
            pages[:: mmap.PAGESIZE] = b"x" * (len(pages) // mmap.PAGESIZE)

    assert "memory (3 cases)" in _find(fill)


def test_a_case_alone_is_the_case_of_that_number():
    seen: list[float] = []
    running.fuzz(_Config(), "door", lambda chance: chance.random(), seen.append)
    running.fuzz(_Config(alone=2), "door", lambda chance: chance.random(), seen.append)
    assert len(seen) == 4 and seen[3] == seen[2] != seen[0]
    running.fuzz(_Config(first=2), "door", lambda chance: chance.random(), seen.append)
    assert len(set(seen[4:])) == 3 and seen[4] == seen[2] and seen[5] not in seen[:4]
