"""A host that never comes back: the launcher goes on without it, as a restart planned for what is left would."""

import shutil
import time

import pytest

from imagen_jax.checkpoints import checkpoints
from imagen_jax.train.loop import TrainSetup
from launch.jobs import local_job
from launch.jobs.job import Restarts, Supervisor
from launch.jobs.local_job import LocalJob
from launch.jobs.phases import Phase
from tests.faults.hosts import REPOSITORY, Hosts
from tests.train import tiny_run

pytestmark = pytest.mark.slow


def test_training_goes_on_bit_equal_to_a_planned_restart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local_job, "GRACE_S", 1)
    monkeypatch.chdir(REPOSITORY)
    run, planned = tmp_path / "run", tmp_path / "planned" / "run"
    settings = [f"PYTHONPATH={REPOSITORY}", "JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=1"]
    words = [*settings, "python", "-m", "tests.faults.host", str(run), "lost@6@1", "12", "4"]
    job = LocalJob("train", words, 2, Restarts(5, wait_s=0), min_processes=1)
    supervisor = Supervisor({Phase(name="train", commands=()): job}, progress=False)
    try:
        found = None
        while supervisor.look():
            if found is None and job._num_processes == 1:
                found = time.monotonic()
                shutil.copytree(run, planned)  # As it is at the moment of the loss: step 4.
            time.sleep(0.02)
    finally:
        job.cancel()
    assert job.code == 0 and found is not None and "going on with 1" in capsys.readouterr().out
    # Start, compile, and all steps that were left, on a machine that does other things.
    took = time.monotonic() - found
    print(f"lost: trained to the end {took:.1f} s after it was found")
    assert took < 120
    with Hosts(planned.parent, "planned", 1, (12, 4)) as hosts:
        assert hosts.wait(0, 240) == 0, hosts.said()
        assert "goes on from its own checkpoint of step 4" in hosts.said()[0]
    setup = TrainSetup.build(tiny_run.tiny_config(run))
    one, two = (checkpoints.restore(folder, setup.state, 12)[0] for folder in (run, planned))
    assert tiny_run.leaves_equal(one, two)
