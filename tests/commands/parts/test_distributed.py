"""Processes find each other: clusters as jax recognises them, in real processes under their variables."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from imagen_jax.commands.parts.distributed import Place, find_place, host_and_port, lost_peer
from imagen_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
CLUSTERS = ("SLURM_", "OMPI_", "JAX_", "TPU_", "MEGASCALE_", "KUBERNETES_")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Takes out what the machine that runs the tests may say of itself."""
    for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
        monkeypatch.delenv(name)


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def slurm(index, number=2):
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(number),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def open_mpi(index):
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


def own_variables(index):
    return {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}


WORKER = textwrap.dedent("""
    import argparse, sys, time
    from imagen_jax.commands.parts.distributed import add_distributed_flags, join_processes
    parser = argparse.ArgumentParser()
    add_distributed_flags(parser)
    join_processes(parser.parse_args())
    import jax
    from imagen_jax.train.interrupt import StopRequest
    print(jax.process_index(), "of", jax.process_count(), flush=True)
    with StopRequest() as stop:
        for step in range(1000):
            if stop.reason(step):
                print(stop.reason(step), step, flush=True)
                break
            time.sleep(0.05)
""")


def start(variables, *flags):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", WORKER, *flags], env=environment, **pipes)


@pytest.mark.parametrize("cluster", [slurm, open_mpi, own_variables])
def test_one_command_starts_all_workers_of_a_cluster_and_sigterm_stops_them_at_one_step(cluster):
    """SIGTERM to the second process reaches both at the same step boundary, where the loop saves."""
    port = str(free_port())
    told = {"JAX_COORDINATOR_PORT": port}
    if cluster is own_variables:
        told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    workers = [start({**cluster(index), **told}) for index in range(2)]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["0 of 2\n", "1 of 2\n"]
        workers[1].send_signal(signal.SIGTERM)
        ends = [worker.communicate(timeout=60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], ends
    assert ends[0][0] == ends[1][0] and ends[0][0].startswith("SIGTERM "), ends


def test_flags_win_over_the_cluster():
    """Slurm would number both as 0, at a host that is none."""
    port = free_port()
    flags = ("--num_processes=2", f"--coordinator_address=localhost:{port}")
    lie = {**slurm(0, 5), "SLURM_STEP_NODELIST": "nosuchhost.invalid"}
    workers = [start(lie, *flags, f"--process_id={index}") for index in range(2)]
    try:
        assert [worker.stdout.readline() for worker in workers] == ["0 of 2\n", "1 of 2\n"]
        workers[0].send_signal(signal.SIGTERM)
        assert [worker.wait(60) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()


def test_a_laptop_and_a_job_of_one_process_stay_alone(monkeypatch):
    assert find_place(None, None, None) is None
    for name, value in slurm(0, 1).items():
        monkeypatch.setenv(name, value)
    assert find_place(None, None, None) is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert find_place(None, 1, None) is None
    # sbatch without srun: the variables of the job, but not those of a step; only one process runs.
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    assert find_place(None, None, None) is None


def test_slurm_names_the_place_and_each_flag_wins(monkeypatch):
    for name, value in {**slurm(1, 4), "SLURM_STEP_NODELIST": "node[007-010]"}.items():
        monkeypatch.setenv(name, value)
    assert find_place(None, None, None) == Place("node007:61517", 4, 1, [1])  # 61440 + 77
    assert find_place("other:9", None, 3) == Place("other:9", 4, 3, [1])
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1,2")
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "1234")
    assert find_place(None, None, None) == Place("node007:1234", 4, 1, [0, 1, 2])


@pytest.mark.parametrize(
    ("variables", "flags", "expected"),
    [
        ({}, (None, 2, 1), "--coordinator_address missing, and no cluster is found"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, (None, None, None), "--num_processes and --process_id missing"),
        ({}, ("localhost", 2, 0), "--coordinator_address ('localhost') must be HOST:PORT"),
        ({}, ("localhost:99999", 2, 0), "('localhost:99999') must be HOST:PORT with a port from 1 to 65535"),
        ({}, ("localhost:1", 0, 0), "--num_processes (0) must be an integer >= 1"),
        ({"JAX_PROCESS_ID": "first"}, ("h:1", 2, None), "JAX_PROCESS_ID ('first') must be a whole number"),
        ({**slurm(0), "SLURM_NTASKS": "many"}, (None, None, None), "cannot be made out (invalid literal"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, (None, None, None), "Open MPI started 4 processes but does not say where"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch, variables, flags, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        find_place(*flags)
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_only_what_jax_says_of_a_lost_process_asks_for_a_restart():
    """With what jax 0.10.2 said when a peer was killed; other errors would only come again."""
    said = "UNKNOWN: Gloo all-reduce failed: [gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer"
    lost = jax.errors.JaxRuntimeError(said)
    assert lost_peer(lost)
    wrapped = ValueError("a hook failed")
    wrapped.__cause__ = lost
    assert lost_peer(wrapped)
    assert not lost_peer(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"))
    assert not lost_peer(RuntimeError(said))
    assert not lost_peer(UserError("loss (nan) must be finite"))


def test_addresses():
    assert host_and_port("[fe80::1]:80") == ("fe80::1", 80)
    assert host_and_port("node-1.cluster:8476") == ("node-1.cluster", 8476)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_told(host):
    """jax itself ends the process with a segmentation fault."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as held:
        port = held.getsockname()[1]
        script = "import sys; from imagen_jax.main import main; sys.exit(main(sys.argv[1:]))"
        flags = [f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id=0"]
        command = [sys.executable, "-c", script, "train", "--gin_file=x.gin", *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: port {port} of --coordinator_address cannot be had") and "in use" in last


def test_a_coordinator_that_does_not_answer_is_told(monkeypatch):
    from imagen_jax.commands.parts import distributed

    monkeypatch.setattr(distributed, "WAIT_S", 0.3)
    with pytest.raises(UserError, match="did not answer at --coordinator_address=localhost:.*refused"):
        distributed._wait_for(f"localhost:{free_port()}")
