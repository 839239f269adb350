"""The loop: resuming, order of restore, stopping, what it writes."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.checkpoints import checkpoints, folders
from imagen_jax.errors import UserError
from imagen_jax.planning.dry_run import dry_run
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train import loop
from imagen_jax.train.optimizer import OptimizerConfig
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures("tiny_data")


def test_stopped_and_resumed_run_equals_the_undisturbed_one_bit_for_bit(tmp_path):
    whole = loop.train(tiny_run.tiny_config(tmp_path / "a"), "text")
    order = list(tiny_run.TinyBatches.steps_read)
    assert order == list(range(12))
    tiny_run.TinyBatches.steps_read.clear()
    config = tiny_run.tiny_config(tmp_path / "b")
    part = loop.train(config, "text", stop_at=5)
    assert int(part.step) == 5
    resumed = loop.train(config, "text")
    assert tiny_run.TinyBatches.steps_read == order
    assert int(resumed.step) == 12
    assert tiny_run.leaves_equal(whole, resumed)
    assert not tiny_run.leaves_equal(whole.params, part.params)


def test_a_run_goes_on_with_another_number_of_devices_and_back(tmp_path, monkeypatch):
    build = MeshConfig.build
    alone = loop.train(tiny_run.tiny_config(tmp_path / "alone"))
    order = list(tiny_run.TinyBatches.steps_read)
    tiny_run.TinyBatches.steps_read.clear()
    config = tiny_run.tiny_config(tmp_path / "moved")
    for num_devices, stop_at in ((1, 4), (4, 8), (1, None)):
        used = jax.devices()[:num_devices]
        with monkeypatch.context() as patch:
            patch.setattr(MeshConfig, "build", lambda self, devices=None, used=used: build(self, devices or used))
            moved = loop.train(config, stop_at=stop_at)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(moved.params)} == {num_devices}
    assert tiny_run.TinyBatches.steps_read == order == list(range(12))
    # Gradients are summed in another order on four devices.
    for one, other in zip(jax.tree.leaves(alone.params), jax.tree.leaves(moved.params), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-4)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(tmp_path):
    runs = [
        loop.train(tiny_run.tiny_config(tmp_path / name, seed=seed, num_steps=3))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert tiny_run.leaves_equal(runs[0], runs[1])
    assert not tiny_run.leaves_equal(runs[0].params, runs[2].params)


CHILD = """
import sys
from imagen_jax.train import loop
from imagen_jax.train.hooks import Hook
from tests.train import tiny_run
tiny_run.use_tiny_data()
loop.train(tiny_run.tiny_config(sys.argv[1], num_steps=30, save_every=2, keep_checkpoints=30), "text")
"""


def start_child(model_dir: Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(model_dir)], env=env, stderr=subprocess.PIPE, text=True)


def wait_for_step(child: subprocess.Popen, model_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while (folders.latest_step(model_dir) or 0) < step:
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[1]
        time.sleep(0.002)


def finish(child: subprocess.Popen) -> str:
    """What a child that must succeed said on stderr."""
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    return errors


@pytest.mark.slow
def test_sigkill_at_a_random_moment_changes_nothing(tmp_path):
    # Processes of one layout are compared: another number of devices may add in another order.
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    children = [start_child(killed), start_child(whole)]
    wait_for_step(children[0], killed, random.randrange(2, 16, 2))
    time.sleep(random.uniform(0, 0.1))
    children[0].kill()
    children[0].communicate()
    stopped_at = folders.latest_step(killed)
    assert stopped_at is not None and stopped_at < 30
    errors = finish(start_child(killed))
    assert f"own checkpoint of step {stopped_at}" in errors
    finish(children[1])
    assert folders.saved_steps(killed) == folders.saved_steps(whole) == list(range(2, 31, 2))
    program = loop.TrainSetup.build(tiny_run.tiny_config(tmp_path / "any"))
    for step in (stopped_at + 2, 30):
        # Parameters, averages, optimizer state and, in the position, the order of the data.
        one, position = checkpoints.restore(killed, program.state, step)
        two, expected = checkpoints.restore(whole, program.state, step)
        assert tiny_run.leaves_equal(one, two)
        assert position == expected and position["step"] == step


def test_sigterm_saves_at_a_step_boundary_and_exits_zero(tmp_path):
    child = start_child(tmp_path / "run")
    wait_for_step(child, tmp_path / "run", 3)
    child.send_signal(signal.SIGTERM)
    errors = finish(child)
    saved = folders.latest_step(tmp_path / "run")
    assert saved is not None and saved < 30
    assert f"stopped by SIGTERM, saved at step {saved}; run the same command to go on" in errors


def test_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", {6})
    with pytest.raises(UserError, match=r"not finite at step 7: loss = nan, grad_norm = nan"):
        loop.train(tiny_run.tiny_config(tmp_path, max_bad_steps=1))
    assert folders.latest_step(tmp_path) == 4
    params = checkpoints.load_params(tmp_path, ema=False)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert tiny_run.lines_of(tmp_path)[-1]["step"] == 6


def test_non_finite_state_is_not_saved_when_saving_comes_before_logging(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", {6})
    with pytest.raises(UserError, match="not finite at step 7: loss = nan"):
        loop.train(tiny_run.tiny_config(tmp_path, log_every=100, max_bad_steps=1))
    assert folders.saved_steps(tmp_path) == [4]


def test_bad_batches_change_nothing_and_too_many_in_a_row_stop_the_run(tmp_path, monkeypatch):
    """The state after bad batches is the one before them; the run goes on, or stops at the third, which is named."""
    before = loop.train(tiny_run.tiny_config(tmp_path / "run"), stop_at=6)
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", {6, 7, 9, 10, 11})
    config = tiny_run.tiny_config(tmp_path / "run", max_bad_steps=3)
    after = loop.train(config, stop_at=8)
    assert int(after.step) == 8 and tiny_run.leaves_equal(after.replace(step=before.step), before)
    with pytest.raises(UserError, match=r"step 12: loss = nan.* skipped in a row: 3 \(from step 10 on\)"):
        loop.train(config)
    lines = {line["step"]: line for line in tiny_run.lines_of(tmp_path / "run")}
    assert [lines[step].get("skipped_steps") for step in (6, 8, 10)] == [None, 2, 1]
    assert "loss" not in lines[8] and np.isfinite(lines[10]["loss"]) and 12 not in lines
    bad = [json.loads(line) for line in (tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in bad] == [7, 8, 10, 11, 12]
    assert bad[0]["examples"] == {"train": list(range(6 * 16, 7 * 16))} and bad[0]["loss"] == "nan"


def test_own_checkpoint_then_resume_then_init_from_then_scratch(tmp_path):
    donor = loop.train(tiny_run.tiny_config(tmp_path / "donor"), stop_at=4)
    ema = jax.device_get(donor.ema_params)
    program = loop.TrainSetup.build(tiny_run.tiny_config(tmp_path / "x"))

    scratch, position, origin = loop.start_state(tiny_run.tiny_config(tmp_path / "x"), program)
    assert int(scratch.step) == 0 and position is None and "scratch" in origin

    config = tiny_run.tiny_config(tmp_path / "x", init_from=str(tmp_path / "donor"))
    initial, position, _ = loop.start_state(config, program)
    assert int(initial.step) == 0 and position is None
    assert tiny_run.leaves_equal(initial.params, ema) and tiny_run.leaves_equal(initial.ema_params, ema)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(initial.opt_state))
    loop.train(config, stop_at=1)

    config = tiny_run.tiny_config(tmp_path / "y", resume=str(tmp_path / "donor"))
    resumed, position, _ = loop.start_state(config, program)
    assert position == {"seed": 0, "step": 4, "batch_size": 16}
    assert tiny_run.leaves_equal(resumed, donor)
    loop.train(config, stop_at=6)

    state, _, origin = loop.start_state(config, program)
    assert int(state.step) == 6 and "its own checkpoint of step 6" in origin


def test_changed_data_order_is_refused_on_resume(tmp_path):
    loop.train(tiny_run.tiny_config(tmp_path), stop_at=4)
    with pytest.raises(UserError, match="batch_size: got 8, the checkpoint has 16"):
        loop.train(tiny_run.tiny_config(tmp_path, batch_size=8))


def test_another_corpus_is_refused_by_name_and_an_older_position_names_none(tmp_path, monkeypatch):
    position = tiny_run.TinyBatches.position
    config = tiny_run.tiny_config(tmp_path)
    loop.train(config, stop_at=4)
    monkeypatch.setattr(tiny_run.TinyBatches, "position", lambda self: {**position(self), "corpus": "cats"})
    loop.train(config, stop_at=6)
    monkeypatch.setattr(tiny_run.TinyBatches, "position", lambda self: {**position(self), "corpus": "dogs"})
    with pytest.raises(UserError, match=r"corpus: got 'dogs', the checkpoint has 'cats'\): set it back, or start"):
        loop.train(config)
    assert folders.saved_steps(tmp_path) == [4, 6]


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_goes_on(tmp_path, capfd):
    config = tiny_run.tiny_config(tmp_path / "run")
    loop.train(config, stop_at=8)
    newest = folders.checkpoint_dir(config.model_dir, 8)
    (newest / "config.gin").write_text("other")
    resumed = loop.train(config)
    said = capfd.readouterr().err
    assert "config.gin (changed); kept as checkpoint_8.damaged; goes on from its own checkpoint of step 4" in said
    assert (newest.with_name("checkpoint_8.damaged") / "config.gin").read_text() == "other"
    assert folders.saved_steps(config.model_dir) == [4, 8, 12]
    assert tiny_run.leaves_equal(resumed, loop.train(tiny_run.tiny_config(tmp_path / "whole")))


def test_the_only_checkpoint_is_not_given_up_for_scratch(tmp_path):
    config = tiny_run.tiny_config(tmp_path)
    loop.train(config, stop_at=4)
    (folders.checkpoint_dir(tmp_path, 4) / "config.gin").write_text("other")
    with pytest.raises(UserError, match=r"is damaged: config.gin \(changed\); restore it from a copy"):
        loop.train(config)
    assert folders.saved_steps(tmp_path) == [4]


def test_another_learning_rate_and_a_longer_run_go_on(tmp_path):
    loop.train(tiny_run.tiny_config(tmp_path, num_steps=4))
    faster = OptimizerConfig(name="adam", learning_rate=2e-2, warmup_steps=2)
    state = loop.train(tiny_run.tiny_config(tmp_path, num_steps=6, optimizer=faster))
    assert int(state.step) == 6
    assert tiny_run.lines_of(tmp_path)[-1]["learning_rate"] == pytest.approx(2e-2)


def test_run_directory_is_described_and_metrics_lines_do_not_repeat(tmp_path, monkeypatch):
    config = tiny_run.tiny_config(tmp_path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, bad_records="skip"))
    loop.train(config, "operative", stop_at=6)
    monkeypatch.setattr(tiny_run.TinyBatches, "bad_records", frozenset({(0, 7), (0, 8), (1, 7)}))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "loss": 0}\n{"step": 9, "lo')
    loop.train(config, "operative")
    lines = tiny_run.lines_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[3]["loss"] > 0
    assert [line.get("bad_records") for line in lines] == [None, None, None, 3, 3, 3]
    for line in lines:
        assert line["step_time_s"] == pytest.approx(line["data_s"] + line["compute_s"])
        assert line["images_per_s"] == pytest.approx(16 / line["step_time_s"])
        assert "mfu" not in line
    assert lines[0]["learning_rate"] == pytest.approx(1e-2)
    assert (tmp_path / "config.gin").read_text() == "operative"
    assert (folders.existing(tmp_path, None) / "config.gin").read_text() == "operative"
    assert json.loads((tmp_path / "versions.json").read_text())["jax"] == jax.__version__
    info = (tmp_path / "model-info.txt").read_text()
    # conv 3x3x3x16 + 16, dense 17x16 + 16, conv 3x3x16x3 + 3
    assert f"total parameters: {432 + 16 + 272 + 16 + 432 + 3:,}" in info
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    loop.train(tiny_run.tiny_config(tmp_path, keep_checkpoints=2))
    assert folders.saved_steps(tmp_path) == [8, 12]


def test_finished_run_does_nothing_more(tmp_path):
    config = tiny_run.tiny_config(tmp_path, num_steps=2)
    first = loop.train(config)
    tiny_run.TinyBatches.steps_read.clear()
    assert tiny_run.leaves_equal(loop.train(config), first)
    assert tiny_run.TinyBatches.steps_read == []


def test_loss_falls(tmp_path):
    loop.train(tiny_run.tiny_config(tmp_path, num_steps=60, log_every=20))
    lines = tiny_run.lines_of(tmp_path)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_dry_run_tells_sizes_and_refuses_a_batch_that_does_not_divide(tmp_path, monkeypatch):
    monkeypatch.undo()
    text = dry_run(tiny_run.tiny_config(tmp_path, accumulate_steps=2))
    assert "parameters:        1,171" in text
    assert "data 8 x fsdp 1 x tensor 1" in text
    assert "16 rows in 2 microbatches of 1 rows a device" in text
    assert "GiB temporaries" in text
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"batch_size \(20\) must be divisible by 8.*choose 16 or 24"):
        dry_run(tiny_run.tiny_config(tmp_path, batch_size=20))


IMPORTS = (
    CHILD.replace("num_steps=30", "num_steps=2")
    + """
print([name for name in sys.modules if name.startswith("imagen_jax.sampling")])
"""
)


def test_training_imports_nothing_of_sampling(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", IMPORTS, str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert folders.latest_step(tmp_path / "run") == 2
