"""Step times by process, the one that keeps others waiting, traces."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.commands.parts import training
from imagen_jax.errors import UserError
from imagen_jax.train import loop
from imagen_jax.train.hooks import Hook, StepInfo
from imagen_jax.train.instruments import ProcessTimes, ProfileSteps, profiled_steps, slow_process
from tests.train import tiny_run

NOWHERE = StepInfo(step=7, state=TrainState(step=7, params={}, ema_params={}, opt_state=()))


def times(own_s: float, step_s: float = 1.0) -> ProcessTimes:
    return ProcessTimes(host="h", own_s=own_s, step_s=(step_s,) * 3, memory=None)


@pytest.mark.parametrize(
    ("own", "step_s", "slow"),
    [
        ([0.2, 0.0], 0.3, 0),
        ([0.01, 0.21, 0.01, 0.02], 1.0, 1),
        ([0.01, 0.02, 0.01], 1.0, None),  # Below a twentieth of the step.
        ([0.01, 0.21], 5.0, None),
        ([0.001, 0.011], 0.02, None),  # Too short to be told from chance.
        ([0.5], 1.0, None),
        ([0.3, 0.3, 0.3], 1.0, None),
    ],
)
def test_the_slow_process_is_far_beyond_the_others(own, step_s, slow):
    assert slow_process([times(one, step_s) for one in own]) == slow


class Sleeps(Hook):
    """Takes 20 ms of the host after each update, and half a second before one of them."""

    def after_step(self, info):
        time.sleep(0.02)

    def wants(self, step):
        return step == 5

    def before_step(self, info):
        time.sleep(0.5)


@pytest.mark.usefixtures("tiny_data")
def test_lines_have_percentiles_and_the_hosts_own_time(tmp_path):
    loop.train(tiny_run.tiny_config(tmp_path, log_every=6), hooks=lambda run: [Sleeps()])
    for line in tiny_run.lines_of(tmp_path):
        assert 0.02 <= line["own_s"] < 0.3, "a preview is nobody's own time"
        assert 0.02 <= line["step_p50_s"] <= line["step_p90_s"] <= line["step_p99_s"] < 0.5
        assert "slow_process" not in line and "device_memory_gib" not in line
    assert not (tmp_path / "hosts.json").exists(), "of one process the lines say everything"


@pytest.mark.usefixtures("tiny_data")
def test_most_memory_in_use_is_in_the_line_where_devices_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("imagen_jax.train.instruments.peak_memory", lambda: 3 << 30)
    loop.train(tiny_run.tiny_config(tmp_path, num_steps=4))
    assert tiny_run.lines_of(tmp_path)[-1]["device_memory_gib"] == 3.0


@pytest.mark.usefixtures("tiny_data")
def test_profile_steps_writes_a_trace_of_them_alone(tmp_path, capfd):
    training.run(tiny_run.tiny_config(tmp_path, num_steps=6), profile_steps="3:4")
    (trace,) = (tmp_path / "tensorboard").glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert "trace of updates 3 to 4" in capfd.readouterr().err


def test_the_first_update_is_traced_and_later_ones_than_the_last_never(tmp_path):
    hook = ProfileSteps((5, 9), 7, tmp_path)
    hook.on_error(NOWHERE, ValueError())
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    ProfileSteps((5, 9), 9, tmp_path / "none").on_stop(NOWHERE)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b", ":", "1:2:3", "-1:4"])
def test_odd_ranges_of_steps_are_refused(text):
    with pytest.raises(UserError, match="A:B, the first and the last update"):
        profiled_steps(text)


CHILD = """
import sys, time
number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train import loop, setup
from imagen_jax.text.encoder import TextEncoder
from tests.train import tiny_run

class Batches(tiny_run.TinyBatches):
    def __init__(self, config, *, rows, **others):
        super().__init__(config, **others)
        self._rows = rows
    def __next__(self):
        if number == 1:
            time.sleep(0.2)
        return {name: rows[self._rows] for name, rows in super().__next__().items()}

setup.BatchIterator = Batches
loop.check_text = lambda config: TextEncoder(config.text)
loop.hosts.data = lambda config, position: {}  # There is no store.
loop.train(tiny_run.tiny_config(folder, num_steps=20, log_every=10, save_every=20))
"""


@pytest.mark.slow
def test_a_host_slower_by_200_ms_is_named_within_50_steps(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", CHILD]
    children = [
        subprocess.Popen([*command, str(n), port, str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    told = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    named = re.search(r"step (\d+): process 1 on host \S+ keeps the others waiting: 2\d\d ms", told[0])
    assert named and int(named[1]) <= 50 and "keeps the others waiting" not in told[1]
    lines = tiny_run.lines_of(tmp_path)
    assert [line.get("slow_process") for line in lines] == [1, 1]
    assert (tmp_path / "hosts.json").exists()
