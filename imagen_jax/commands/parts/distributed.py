"""Several processes as one program: who they are, how they join, and how one that fails ends.

The flags say who a process is; what they leave open is taken from jax's own variables and from the cluster that
started it, as jax recognises them: a TPU pod, Slurm, Open MPI, a Kubernetes job. So one command serves all workers, and
where nothing is found, as on a laptop, the process stays alone.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from imagen_jax.checks import check_count
from imagen_jax.errors import RETRY, UserError
from imagen_jax.streams import leave_at_once

FLAGS = ("coordinator_address", "num_processes", "process_id")
# As long as jax lets process 0 wait for the others.
WAIT_S = 300
OPEN_MPI_SIZE = "OMPI_COMM_WORLD_SIZE"
_RUNTIME_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")
# Of gloo (CPUs), NCCL (GPUs) and the coordination service, in lower case.
_SIGNS_OF_LOSS = ("gloo", "remote process exited", "heartbeat", "coordination service", "unavailable:")


@dataclass(frozen=True)
class Place:
    """One process among the others.

    Args:
      address: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      local_device_ids: the devices of this host that are this process's; None: all.
    """

    address: str
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        host_and_port(self.address)
        check_count("--num_processes", self.num_processes)
        last = self.num_processes - 1
        if not 0 <= self.process_id <= last:
            raise UserError(
                f"--process_id ({self.process_id}) must be from 0 to {last}, for --num_processes={last + 1}"
            )


def add_distributed_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --coordinator_address, --num_processes and --process_id."""
    several = sub.add_argument_group(
        "several hosts (a TPU pod, Slurm, Open MPI and Kubernetes jobs are recognised; flags win)"
    )
    several.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="number of processes; 1: this one is alone")
    several.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")


def join_processes(args: argparse.Namespace) -> None:
    """Joins the other processes, where there are any.

    Raises:
      UserError: flags and cluster leave something open or say what cannot be, the coordinator's port is taken, or
        process 0 cannot be reached.
    """
    place = find_place(*(getattr(args, name) for name in FLAGS))
    if place is None:
        return
    import jax

    print(f"process {place.process_id} of {place.num_processes} joins at {place.address}", file=sys.stderr, flush=True)
    # jax ends the process with a dump of its stack in both cases.
    if place.process_id == 0:
        _check_port_is_free(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", place.address))
    else:
        _wait_for(place.address)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        place.address,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=10,
        initialization_timeout=WAIT_S,
    )
    sys.excepthook = _exit_at_once


def find_place(address: str | None, num_processes: int | None, process_id: int | None) -> Place | None:
    """Finds this process among the others, from flags, jax's variables and the cluster, in this order.

    Args:
      address, num_processes, process_id: what the flags say; None where they do not.

    Returns:
      None for a process that is alone.

    Raises:
      UserError: only a part is known, or it cannot be.
    """
    if num_processes == 1 and process_id in (None, 0):
        return None
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _number("JAX_PROCESS_ID") if process_id is None else process_id
    found = _detect(address, num_processes, process_id)
    missing = [f"--{name}" for name, value in zip(FLAGS, found, strict=False) if value is None]
    if len(missing) == len(FLAGS):
        if int(os.environ.get(OPEN_MPI_SIZE, "1")) > 1:
            raise UserError(
                f"Open MPI started {os.environ[OPEN_MPI_SIZE]} processes but does not say where the first is; add "
                "--coordinator_address=HOST:PORT --num_processes=$OMPI_COMM_WORLD_SIZE "
                "--process_id=$OMPI_COMM_WORLD_RANK, read by a shell in each"
            )
        return None
    if missing:
        raise UserError(
            f"--coordinator_address, --num_processes and --process_id belong together; {' and '.join(missing)} "
            "missing, and no cluster is found that tells (TPU pod, Slurm, Open MPI, Kubernetes job)"
        )
    place = Place(*found)  # type: ignore[arg-type]
    return place if place.num_processes > 1 else None


def _detect(
    address: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Completes what is known by what jax finds out about the cluster, and adds the devices of this process."""
    # jax.distributed.initialize would do the same, but tells nobody: the port must be looked at before, and a job of
    # one process has no need of a coordinator and should keep all devices of its host.
    from jax._src.clusters import ClusterEnv

    listed = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    try:
        devices = [int(word) for word in listed.split(",")] if listed else None
        return ClusterEnv.auto_detect_unset_distributed_params(
            address, num_processes, process_id, devices, None, WAIT_S
        )
    except Exception as error:  # Of any kind: clusters are asked through their own libraries.
        what = " ".join(str(error).split())
        raise UserError(
            f"the cluster that started this process cannot be made out ({what}); add --coordinator_address=HOST:PORT "
            "--num_processes=N --process_id=I, or --num_processes=1 to stay alone"
        ) from error


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    try:
        return int(text) if text else None
    except ValueError as error:
        raise UserError(f"the variable {variable} ({text!r}) must be a whole number") from error


def host_and_port(address: str) -> tuple[str, int]:
    """Splits HOST:PORT, where HOST may be [an IPv6 address].

    Raises:
      UserError: one of the two is missing, or no port has such a number.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator_address ({address!r}) must be HOST:PORT with a port from 1 to 65535, e.g. 10.0.0.1:8476"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_port_is_free(address: str) -> None:
    """Raises UserError where process 0 cannot listen."""
    port = host_and_port(address)[1]
    both = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise UserError(
            f"port {port} of --coordinator_address cannot be had on this host ({error}); end the program that holds "
            "it, or give all processes another port (JAX_COORDINATOR_PORT, where a cluster chose it)"
        ) from error


def _wait_for(address: str) -> None:
    """Waits until process 0 listens.

    Raises:
      UserError: it does not within WAIT_S.
    """
    end, problem = time.monotonic() + WAIT_S, "nobody listens"
    while time.monotonic() < end:
        try:
            socket.create_connection(host_and_port(address), timeout=5).close()
            return
        except OSError as error:
            problem = str(error)
            time.sleep(0.2)
    raise UserError(
        f"process 0 did not answer at --coordinator_address={address} for {WAIT_S} s ({problem}); start it, and look "
        "whether this host can reach that address"
    )


def leave_processes(code: int) -> None:
    """Ends a joined process that failed with its exit code; returns if all went well, if all were asked to stop, or
    none were joined."""
    if code not in (0, RETRY) and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        leave_at_once(code)  # The usual exit would wait for the other hosts, and they for this one.


def lost_peer(error: BaseException | None) -> bool:
    """Tells if an error, or one that it comes from, is jax's word for another process that is gone.

    jax has no type of its own for it: its runtime error carries what gloo, NCCL or the coordination service said.
    """
    while error is not None:
        words = str(error).lower()
        if type(error).__name__ in _RUNTIME_ERRORS and any(sign in words for sign in _SIGNS_OF_LOSS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends this process with its traceback, so that the other hosts notice instead of waiting for minutes.

    Where another process is gone, this one has no fault: it ends with the retry code.
    """
    sys.__excepthook__(kind, error, trace)
    lost = lost_peer(error)
    if lost:
        print("another process of this run is gone; its own output says why", file=sys.stderr, flush=True)
    leave_at_once(RETRY if lost else 1)
