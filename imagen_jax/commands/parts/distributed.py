"""Several processes as one program: the flags by which they join, and how one that fails ends."""

import argparse
import os
import sys
from types import TracebackType

from imagen_jax.errors import UserError


def add_distributed_flags(sub: argparse.ArgumentParser) -> None:
    """Adds --coordinator_address, --num_processes and --process_id."""
    several = sub.add_argument_group("several hosts (all three together, on every host)")
    several.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    several.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")


def join_processes(args: argparse.Namespace) -> None:
    """Joins the other processes where the flags ask for it.

    Raises:
      UserError: only some of the three flags are given, or the process has an impossible number.
    """
    flags = {name: getattr(args, name) for name in ("coordinator_address", "num_processes", "process_id")}
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return
    if missing:
        raise UserError(
            f"--coordinator_address, --num_processes and --process_id belong together; {' and '.join(missing)} missing"
        )
    last = args.num_processes - 1
    if not 0 <= args.process_id <= last:
        raise UserError(f"--process_id ({args.process_id}) must be from 0 to {last}, for --num_processes={last + 1}")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        args.coordinator_address, args.num_processes, args.process_id, heartbeat_timeout_seconds=10
    )
    sys.excepthook = _exit_at_once


def leave_processes(code: int) -> None:
    """Ends a joined process that failed with its exit code; returns if all went well or none were joined."""
    if code and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        os._exit(code)  # The usual exit would wait for the other hosts, and they for this one.


def _exit_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends this process with its traceback, so that the other hosts notice instead of waiting for minutes."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)
