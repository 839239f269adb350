"""The ledger: categories that fill the wall clock, lost updates, lines that a kill cut short."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.train import ledger, loop
from imagen_jax.train.hooks import Hook
from imagen_jax.train.ledger import LEDGER, Ledger, Stretch, goodput, read_ledger, totals
from tests.train import tiny_run


def stretch(run: str, begin: float, first: int, done: int, **seconds: float) -> Stretch:
    every = dict.fromkeys(ledger.TOLD, 0.0) | seconds
    end = begin + sum(seconds.values())
    return Stretch(run=run, begin=begin, end=end, first_step=first, step=done, num_steps=99, seconds=every)


def test_updates_done_again_are_lost_and_the_sum_is_the_wall_clock():
    lines = [
        stretch("a", 0.0, 0, 0, start=5.0, compile=20.0),
        stretch("a", 25.0, 0, 10, step=10.0, data=1.0),
        stretch("a", 36.0, 10, 20, step=10.0, data=2.0, checkpoint=3.0),
        # Killed here. The next one goes on from step 15.
        stretch("b", 60.0, 15, 15, start=4.0),
        stretch("b", 64.0, 15, 30, step=15.0),
    ]
    found = totals(lines)
    assert found == pytest.approx(
        {"start": 9, "compile": 20, "data": 2, "step": 30, "checkpoint": 3, "evaluation": 0, "lost": 6, "down": 9}
    )
    assert sum(found.values()) == pytest.approx(lines[-1].end - lines[0].begin)
    assert goodput(found) == pytest.approx(30 / 79)
    # A third process that goes back to the start has all of it done again, once.
    found = totals([*lines, stretch("c", 80.0, 0, 0, start=1.0)])
    assert found["step"] == 0 and found["lost"] == pytest.approx(23 + 15)
    assert sum(found.values()) == pytest.approx(81)


def test_time_goes_to_the_category_that_was_entered(tmp_path):
    own = Ledger(tmp_path / "run", 10)
    with own.during("compile"):
        time.sleep(0.03)
    assert not (tmp_path / "run").exists(), "a refused run leaves no trace"
    own.begin_steps(3)
    with own.during("data"):
        time.sleep(0.02)
        with pytest.raises(RuntimeError), own.during("evaluation"):
            time.sleep(0.04)
            raise RuntimeError
    own.close(4, "two\nlines")
    first, last = read_ledger(tmp_path / "run")
    assert (first.first_step, first.step, last.step, last.num_steps) == (3, 3, 4, 10)
    assert first.seconds["compile"] >= 0.03 and last.seconds["evaluation"] >= 0.04
    assert 0.02 <= last.seconds["data"] < 0.04 and last.reason == "two; lines" and first.reason is None
    for line in (first, last):
        assert sum(line.seconds.values()) == pytest.approx(line.end - line.begin, abs=1e-4)
    assert last.begin == first.end


def test_a_line_cut_short_is_dropped_and_others_stay(tmp_path):
    for name in "ab":
        own = Ledger(tmp_path, 10)
        own.begin_steps(0)
        own.close(0, name)
        with open(tmp_path / LEDGER, "a") as file:
            file.write('{"run": ')
    assert [line.reason for line in read_ledger(tmp_path)] == [None, "a", None, "b"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": 3}', "null"])
def test_a_damaged_line_is_named(tmp_path, text):
    (tmp_path / LEDGER).write_text(text + "\n")
    with pytest.raises(UserError, match=r"ledger.jsonl .*delete that line"):
        read_ledger(tmp_path)


def test_of_several_processes_the_first_alone_writes(tmp_path):
    own = Ledger(tmp_path, 10, active=False)
    own.begin_steps(0)
    own.close(5, "end")
    assert not (tmp_path / LEDGER).exists()


class Slow(Hook):
    """An evaluation of a tenth of a second at step 6."""

    def wants(self, step):
        return step == 6

    def before_step(self, info):
        time.sleep(0.1)


@pytest.mark.usefixtures("tiny_data")
def test_a_run_fills_its_ledger(tmp_path):
    config = tiny_run.tiny_config(tmp_path)
    began = time.time()
    loop.train(config, stop_at=5)
    loop.train(config, hooks=lambda run: [Slow()])
    ended = time.time()
    lines = read_ledger(tmp_path)
    found = totals(lines)
    # What precedes and follows the ledger itself is all that may lack.
    assert ended - began - 0.8 < sum(found.values()) < ended - began + 0.02
    assert min(found[name] for name in ("start", "compile", "step", "checkpoint")) > 0 and found["lost"] == 0
    assert 0.1 <= found["evaluation"] < 1
    assert [line.reason for line in lines if line.reason] == ["all its steps are done"] * 2
    assert lines[-1].step == 12 and len({line.run for line in lines}) == 2


@pytest.mark.usefixtures("tiny_data")
def test_the_reason_of_an_error_is_in_the_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", frozenset({6}))
    with pytest.raises(UserError):
        loop.train(tiny_run.tiny_config(tmp_path, max_bad_steps=1))
    last = read_ledger(tmp_path)[-1]
    assert last.reason is not None and last.reason.startswith("UserError: not finite at step 7")


CHILD = """
import sys, time
from imagen_jax.train import loop, setup
from tests.train import tiny_run
tiny_run.use_tiny_data()
print(time.time(), flush=True)
class Batches(tiny_run.TinyBatches):
    def __next__(self):
        time.sleep(0.05)
        if self._step == int(sys.argv[2]):
            print(time.time(), flush=True)
            time.sleep(99)
        return super().__next__()
setup.BatchIterator = Batches
loop.train(tiny_run.tiny_config(sys.argv[1], num_steps=40, save_every=10), "text")
print(time.time(), flush=True)
"""


@pytest.mark.slow
def test_the_ledger_of_a_run_killed_twice_sums_to_the_wall_clock(tmp_path):
    clock = []
    for stuck_at in (17, 33, -1):
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", CHILD, str(tmp_path), str(stuck_at)]
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        clock += [float(child.stdout.readline()), float(child.stdout.readline())]
        child.kill() if stuck_at > 0 else child.wait()
        child.communicate()
    lines = read_ledger(tmp_path)
    found = totals(lines)
    wall = clock[-1] - clock[0]
    assert abs(sum(found.values()) - wall) < 0.01 * wall, (found, wall)
    # Updates 11 to 16 and 31 to 32 were done twice; each waits 50 ms for its batch.
    assert 0.3 <= found["lost"] < 4
    print(json.dumps({"wall": wall, **found}))
