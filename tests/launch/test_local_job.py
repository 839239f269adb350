"""Processes of this machine: joined, started again where that helps, ended together."""

import sys
import time

import pytest

from launch.jobs import local_job
from launch.jobs.job import Restarts, State, Supervisor
from launch.jobs.local_job import LocalJob, takes_several_hosts
from launch.jobs.phases import Phase


def run(script, tmp_path, num_processes=1, restarts=0):
    """Runs a script in processes; returns the job and the exit code of its supervisor."""
    path = tmp_path / "script.py"
    path.write_text(script)
    job = LocalJob("job", ["python", str(path), str(tmp_path)], num_processes, Restarts(restarts, wait_s=0))
    supervisor = Supervisor({Phase(name="job", commands=()): job}, progress=False)
    return job, Supervisor.run_all([supervisor], 0.02)


def test_processes_get_places_among_each_other(tmp_path):
    script = """if True:
        import os, sys
        place = [os.environ["JAX_" + name] for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")]
        open(f"{sys.argv[1]}/{place[2]}", "w").write(" ".join(place))
    """
    _, code = run(script, tmp_path, num_processes=3)
    assert code == 0
    told = [(tmp_path / str(number)).read_text().split() for number in range(3)]
    assert len({address for address, _, _ in told}) == 1
    assert [rest for _, *rest in told] == [["3", "0"], ["3", "1"], ["3", "2"]]


COUNT = """
import os, pathlib, signal, sys
runs = pathlib.Path(sys.argv[1], "runs")
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
number = len(runs.read_text())
"""


@pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_retry_code_and_signals_start_it_again(tmp_path, end):
    job, code = run(COUNT + f"if number < 3: {end}", tmp_path, restarts=2)
    assert (code, job.code, (tmp_path / "runs").read_text()) == (0, 0, "xxx")


@pytest.mark.parametrize(("end", "runs", "last"), [("sys.exit(2)", "x", 2), ("sys.exit(75)", "xxx", 75)])
def test_errors_and_restarts_in_vain_end_it(tmp_path, capsys, end, runs, last):
    job, code = run(COUNT + end, tmp_path, restarts=2)
    assert (code, job.code, (tmp_path / "runs").read_text()) == (1, last, runs)
    assert f"ended with exit code {last}" in capsys.readouterr().out


def test_the_first_to_end_decides_and_its_peers_are_ended(tmp_path, monkeypatch):
    """One raises, a peer that lost it dies by a signal later, and one hangs: an error, not a reason for a restart."""
    monkeypatch.setattr(local_job, "GRACE_S", 1)
    script = """if True:
        import os, signal, sys, time
        number = os.environ["JAX_PROCESS_ID"]
        if number == "0":
            sys.exit(3)
        time.sleep(0.5 if number == "1" else 60)
        os.kill(os.getpid(), signal.SIGABRT)
    """
    started = time.monotonic()
    job, code = run(script, tmp_path, num_processes=3, restarts=5)
    assert (code, job.code) == (1, 3) and time.monotonic() - started < 20


def test_cancelling_ends_all_processes():
    job = LocalJob("job", [sys.executable, "-c", "import time; time.sleep(60)"], 2, Restarts())
    job.submit()
    processes = list(job._processes)
    assert job.status().state is State.RUNNING
    job.cancel()
    assert all(process.returncode is not None for process in processes) and job.status().state is State.ABSENT


def test_modes_that_several_processes_run_together():
    assert takes_several_hosts(["A=b", "imagen_jax", "train", "--x"]) and takes_several_hosts(
        ["imagen_jax", "cache_text"]
    )
    assert takes_several_hosts(["imagen_jax", "eval"])
    assert not takes_several_hosts(["imagen_jax", "eval", "--num_processes=1"])
    for words in (["imagen_jax", "sample"], ["imagen_jax", "script", "x"], ["python", "train"], ["imagen_jax"]):
        assert not takes_several_hosts(words)


def test_the_others_go_on_without_one_that_stays_lost(tmp_path, capsys):
    script = COUNT.replace('"runs"', '"runs" + os.environ.get("JAX_PROCESS_ID", "")') + (
        'if os.environ.get("JAX_PROCESS_ID") == "1": os.kill(os.getpid(), signal.SIGKILL)\n'
        "import time\n"
        'if "JAX_NUM_PROCESSES" in os.environ: time.sleep(0.5); sys.exit(75)\n'
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    job = LocalJob("job", ["python", str(path), str(tmp_path)], 2, Restarts(5, wait_s=0), min_processes=1)
    code = Supervisor.run_all([Supervisor({Phase(name="job", commands=()): job}, progress=False)], 0.02)
    assert (code, job.code) == (0, 0)
    assert [(tmp_path / f"runs{name}").read_text() for name in ("0", "1", "")] == ["xx", "xx", "x"]
    assert "process 1 of 2 stays lost: a signal ended it 2 times in a row; going on with 1" in capsys.readouterr().out
