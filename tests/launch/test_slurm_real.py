"""The Slurm launcher with Slurm itself: a cluster of this machine, two tasks that jax joins, restarts and failures."""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from launch import slurm
from tests.launch import slurm_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not()),
]
REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 150

SUM = """
    import argparse, sys
    import jax
    from imagen_jax.commands.parts.distributed import add_distributed_flags, join_processes

    parser = argparse.ArgumentParser()
    add_distributed_flags(parser)
    join_processes(parser.parse_args([]))
    import jax.numpy as jnp
    from jax.experimental import multihost_utils
    parts = multihost_utils.process_allgather(jnp.asarray([jax.process_index() + 1.0]))
    if jax.process_index() == 0:
        open(sys.argv[1], "w").write(f"{jax.process_count()} {float(parts.sum())} {sys.argv[2]}")
"""
# Asks to be started again when it is told to end; the second time it is done.
STOPPED = """
    import pathlib, signal, sys, time
    first = pathlib.Path(sys.argv[1])
    if not first.exists():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
        first.touch()
        time.sleep(120)
"""


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder:
        with slurm_cluster.cluster(Path(folder)) as variables:
            yield variables


@pytest.fixture
def config(cluster, tmp_path, monkeypatch):
    for name, value in {**cluster, "PYTHONPATH": str(REPOSITORY)}.items():
        monkeypatch.setenv(name, value)
    # Variables of these tests that real tasks have no use for.
    monkeypatch.delenv("XLA_FLAGS")
    config = ConfigDict()
    config.name = "test"
    config.python = sys.executable
    config.out_dir = str(tmp_path)
    config.log_dir = str(tmp_path / "log")
    config.partition = config.account = config.setup = ""
    config.time_limit = "5"
    config.max_restarts = 1
    config.secrets = ()
    config.machines = {
        "two": {"nodes": 1, "tasks_per_node": 2, "gpus_per_node": 0},
        "one": {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0},
    }
    for name, script in {"sum": SUM, "stopped": STOPPED}.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(script))
    return config


def wait_for(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        logs = {path.name: path.read_text()[-1500:] for path in Path(os.environ["LOGS"]).glob("*.log")}
        assert time.monotonic() < end, (squeue(), logs)
        time.sleep(0.3)


def squeue(*flags):
    command = ["squeue", "--noheader", "--format=%T %r", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_a_pipeline_runs_in_order_again_after_a_signal_and_not_after_an_error(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGS", config.log_dir)
    config.word = 'it\'s a="b" $HOME'
    config.phases = (
        ("sum", "{python} {out_dir}/sum.py {out_dir}/sum.txt {word}", "", "two"),
        ("stopped", "A=b {python} {out_dir}/stopped.py {out_dir}/first", "sum", "one"),
        ("wrong", "{python} {out_dir}/no_such_file.py", "sum", "one"),
        ("never", "touch {out_dir}/never", "stopped wrong", "one"),
    )
    assert slurm.launch([config], "run", dry_run=False) == 0
    first = tmp_path / "first"
    wait_for(first.exists)
    # jax found both tasks from Slurm's variables, and the word came through sbatch and srun as it was.
    assert (tmp_path / "sum.txt").read_text() == "2 3.0 " + config.word
    time.sleep(1)
    job_id = (tmp_path / "log" / "test-stopped.id").read_text().strip()
    subprocess.run(["scancel", "--signal=TERM", job_id], check=True)

    def ended(name):
        return (tmp_path / "log" / f"test-{name}.ended").exists()

    log = tmp_path / "log" / "test-stopped.log"
    wait_for(lambda: log.exists() and "ended with code 75; queued again" in log.read_text())
    # Slurm lets a job that is queued again wait for two minutes; this test does not. The node revoked the job's first
    # credential, and would refuse a new one of the same second.
    wait_for(lambda: "BeginTime" in squeue(f"--jobs={job_id}"))
    time.sleep(2.5)
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"], check=True)
    wait_for(lambda: ended("stopped") and ended("wrong"))
    wait_for(lambda: not squeue())
    capsys.readouterr()
    assert slurm.launch([config], "status", dry_run=False) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["sum: done", "stopped: done"]
    assert told[2] == "wrong: failed: ended with code 2"
    assert told[3].startswith("never: failed: it left the queue") and not (tmp_path / "never").exists()

    # Given again it submits only what is not done.
    slurm.launch([config], "run", dry_run=False)
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["sum: done", "stopped: done"] and "waiting" in told[3]
    slurm.launch([config], "cancel", dry_run=False)
    wait_for(lambda: not squeue())
