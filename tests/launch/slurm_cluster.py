"""A Slurm cluster of one node on this machine: Debian's slurm-wlm and munge, started and ended by a test."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
START_S = 30

_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller_port}
SlurmdPort={node_port}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,requeue_setup_env_fail
JobRequeue=1
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """The reason why no cluster can be started here; "" if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"Slurm is not installed: no {', '.join(missing)}; apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "slurmd needs root"


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the cluster while the block runs.

    Args:
      folder: for its files; short, as a socket's path must be.

    Yields:
      The variables by which Slurm's programs find it.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    config = folder / "slurm.conf"
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    config.write_text(_CONFIG.format(folder=folder, host=host, **ports))
    variables = {"SLURM_CONF": str(config), "PATH": _path()}
    munge = [
        f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
    ]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config)],
    ]
    environment = {**os.environ, **variables}
    processes = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            log.close()
            if command[0] == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), folder)
        ask = ["sinfo", "--noheader", "--format=%T"]
        _wait(lambda: "idle" in subprocess.run(ask, env=environment, capture_output=True, text=True).stdout, folder)
        yield variables
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(condition, folder: Path) -> None:
    end = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > end:
            logs = {path.name: path.read_text()[-2000:] for path in folder.glob("*.[ol][uo]*")}
            raise TimeoutError(f"Slurm did not start: {logs}")
        time.sleep(0.2)
