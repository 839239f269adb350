"""When and how a run saves: in the background, by the clock, again after a failure; the files are always the same."""

import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders, proof
from imagen_jax.checkpoints.checkpoints import NotWrittenError
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.errors import UserError
from imagen_jax.train import loop, saving
from imagen_jax.train.hooks import Hook
from imagen_jax.train.saving import Saver, SaveTimes
from tests.train import tiny_run


def state_of(step: int) -> TrainState:
    return TrainState(step=jnp.int32(step), params={"w": jnp.full(4, float(step))}, ema_params={}, opt_state=())


class Writer:
    """Writes into a list, when it is let to."""

    def __init__(self, failures: int = 0):
        self.go = threading.Event()
        self.go.set()
        self.written: list[tuple[int, list[float]]] = []
        self._failures = failures

    def prepare(self, state: TrainState):
        step = int(state.step)

        def write() -> Path:
            assert self.go.wait(10)
            if self._failures:
                self._failures -= 1
                raise NotWrittenError(f"could not write checkpoint_{step}: disk full", "Free space")
            self.written.append((step, state.params["w"].tolist()))
            return Path(f"checkpoint_{step}")

        return write


def names(saver: Saver, step: int, saving: bool, last: bool = False) -> list[str]:
    """Names of what became whole by a boundary."""
    return [path.name for path in saver.boundary(state_of(step), saving, last)]


def test_training_goes_on_while_a_checkpoint_is_written_and_one_is_written_at_a_time():
    writer = Writer()
    writer.go.clear()
    saver = Saver(writer.prepare, SaveTimes(every=2), background=True)
    started = state_of(2)
    assert list(saver.boundary(started, True, False)) == []
    jax.tree.map(lambda leaf: leaf.delete(), started)  # As an update takes the buffers of its state.
    assert names(saver, 3, saving=False) == []
    assert writer.written == []
    writer.go.set()
    # The next save waits for the one under way, the last one for itself too.
    assert names(saver, 4, saving=True) == ["checkpoint_2"]
    assert names(saver, 5, saving=True, last=True) == ["checkpoint_4", "checkpoint_5"]
    assert writer.written == [(step, [float(step)] * 4) for step in (2, 4, 5)]
    saver.close()


def test_an_end_by_an_error_waits_for_what_is_being_written(capsys):
    writer = Writer()
    saver = Saver(writer.prepare, SaveTimes(every=2), background=True)
    names(saver, 2, saving=True)
    saver.close()
    assert [step for step, _ in writer.written] == [2]
    failing = Saver(Writer(failures=1).prepare, SaveTimes(every=2), background=True)
    names(failing, 2, saving=True)
    failing.close()
    assert "could not write checkpoint_2: disk full. Free space" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("background", "failed", "written"),
    [
        (True, (2, 4), ["checkpoint_6", "checkpoint_7"]),
        (False, (2, 3), ["checkpoint_4", "checkpoint_6", "checkpoint_7"]),
    ],
)
def test_a_save_that_fails_is_told_at_the_next_boundary_and_tried_again(monkeypatch, background, failed, written):
    monkeypatch.setattr(saving, "RETRY_AFTER_S", (0.0, 0.0))
    said: list[str] = []
    saver = Saver(Writer(failures=2).prepare, SaveTimes(every=2), background, said.append)
    done = []
    for step in range(1, 8):
        time.sleep(0.05)
        done += names(saver, step, saver.due(step) or step == 7, last=step == 7)
    saver.close()
    assert done == written
    for line, step, left in zip(said, failed, (2, 1), strict=True):
        assert line.startswith(f"could not write checkpoint_{step}: disk full; it is tried again, {left} more times")


@pytest.mark.parametrize("background", [True, False])
def test_a_last_save_that_always_fails_ends_the_run_with_the_reason(monkeypatch, background):
    monkeypatch.setattr(saving, "LAST_RETRY_AFTER_S", 0.0)
    said: list[str] = []
    saver = Saver(Writer(failures=9).prepare, SaveTimes(every=2), background, said.append)
    with pytest.raises(NotWrittenError, match="could not write checkpoint_7: disk full. Free space"):
        names(saver, 7, saving=True, last=True)
    assert len(said) == 2
    saver.close()


def test_a_run_saves_by_the_clock_too(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    saver = Saver(Writer().prepare, SaveTimes(every=10, minutes=1.0, look_every=4))
    saved = []
    for step in range(1, 31):
        now[0] += 13.0
        if saver.due(step):
            saved.append(step)
            names(saver, step, saving=True)
    # 60 s are 5 steps; looked at every 4.
    assert saved == [8, 10, 16, 20, 28, 30]
    saver.close()


class Saves(Hook):
    """Keeps what it is told of checkpoints."""

    def __init__(self):
        self.told: list[tuple[int, str]] = []

    def on_save(self, info):
        assert (info.checkpoint / "digests.json").exists()
        self.told.append((info.step, info.checkpoint.name))


@pytest.mark.usefixtures("tiny_data")
def test_checkpoints_of_the_background_are_those_of_the_foreground(tmp_path):
    told, found = {}, {}
    for background in (True, False):
        hook, where = Saves(), tmp_path / str(background)
        config = tiny_run.tiny_config(where, background_saves=background, keep_checkpoints=1, keep_every=8)
        loop.train(config, "text", hooks=lambda run, hook=hook: [hook])
        told[background] = hook.told
        assert folders.saved_steps(where) == [8, 12]
        found[background] = {
            step: (proof.digests(folders.checkpoint_dir(where, step)).keys(), checkpoints.load_params(where, step))
            for step in (8, 12)
        }
    assert (
        [name for _, name in told[True]]
        == [name for _, name in told[False]]
        == [f"checkpoint_{step}" for step in (4, 8, 12)]
    )
    assert all(step >= int(name.split("_")[1]) for step, name in told[True])
    for step in (8, 12):
        assert tiny_run.leaves_equal(found[True][step][1], found[False][step][1])
        named = [{name for name in files[step][0] if "/d/" not in name} for files in found.values()]
        assert named[0] == named[1]


@pytest.mark.usefixtures("tiny_data")
def test_a_disk_that_takes_nothing_ends_the_run_after_tries_and_the_old_step_is_intact(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(saving, "RETRY_AFTER_S", (0.0, 0.0))
    config = tiny_run.tiny_config(tmp_path)
    loop.train(config, stop_at=4)
    write = checkpoints.write_digests

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_digests", full)
    with pytest.raises(UserError, match=r"could not write checkpoint .*No space left on device.*Older .* intact \(4\)"):
        loop.train(config)
    assert capfd.readouterr().err.count("tried again") == 2
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_4"]
    monkeypatch.setattr(checkpoints, "write_digests", write)
    resumed = loop.train(config)
    assert tiny_run.leaves_equal(resumed, loop.train(tiny_run.tiny_config(tmp_path / "whole")))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"save_minutes": 0.0}, "save_minutes .0.0. must be a number of minutes"), ({"keep_every": 0}, "keep_every")],
)
def test_settings_are_checked(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        tiny_run.tiny_config(tmp_path, **change)


def test_a_copy_on_the_host_is_laid_out_as_the_state_is():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    leaf = jax.device_put(jnp.arange(4.0), sharding)
    copy = saving.copy_on_host(state_of(1).replace(params={"w": leaf})).params["w"]
    leaf.delete()
    assert copy.sharding == sharding and copy.tolist() == [0, 1, 2, 3]
