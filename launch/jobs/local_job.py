"""A job on this machine: one process, or several that jax joins, watched together."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from imagen_jax.commands.parts.command import GinCommand
from imagen_jax.errors import UserError
from imagen_jax.main import find_modes
from launch.jobs.job import Job, Restarts, State, Status, is_retryable
from launch.jobs.words import shell_line, split_settings

COMMANDS = {"python": [sys.executable], "imagen_jax": [sys.executable, "-m", "imagen_jax.main"]}
# As shells have it.
NO_PROGRAM = 127
# Peers of a process that failed notice within jax's heartbeat of 10 s; then they are ended.
GRACE_S = 30
# Ends of one process by a signal, in a row, after which the others go on without it.
LOST_AFTER = 2


def takes_several_hosts(words: Sequence[str]) -> bool:
    """Tells if a command is one that several processes run together: a mode that joins them, if it may join others."""
    command = split_settings(words)[1]
    mode = find_modes().get(command[1]) if command[:1] == ["imagen_jax"] and len(command) > 1 else None
    return isinstance(mode, GinCommand) and mode.several_hosts and "--num_processes=1" not in command


def tree_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all its descendants, now."""
    total = 0
    for member in [process, *_children(process)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:  # It ended since it was listed.
            continue
    return total


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


class LocalJob(Job):
    """A command in processes of this machine, with their output where the launcher's goes.

    Args:
      name: of the phase.
      words: NAME=VALUE words, a program, its arguments; `python` and `imagen_jax` are those of this environment.
      num_processes: how many run it together, joined by jax; >= 1.
      restarts: when it is started again.
      min_processes: how few may go on where one stays lost; 0: none fewer.

    A process that was ended by a signal, before all others, `LOST_AFTER` times in a row stays lost. The others go on
    at once: as many of them as divide `num_processes`, so that `TrainConfig.planned_devices` has a mesh for them.

    After a run `code` is the exit code that decided it, and `peak_bytes` the largest sum of resident bytes seen.
    """

    def __init__(self, name: str, words: Sequence[str], num_processes: int, restarts: Restarts, min_processes: int = 0):
        super().__init__(name, restarts)
        self._words, self._num_processes = tuple(words), num_processes
        self._fewer = [few for few in range(max(min_processes, 1), num_processes) if num_processes % few == 0]
        if not min_processes:
            self._fewer = []
        self._losses: list[int] = []
        self._began = 0.0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._failed_at: float | None = None
        self.code = 0
        self.peak_bytes = 0

    def preview(self) -> str:
        times = f"  # {self._num_processes} processes" if self._num_processes > 1 else ""
        return shell_line(self._words) + times

    def submit(self, after: Sequence[Job] = ()) -> None:
        settings, (program, *arguments) = split_settings(self._words)
        self.code, self._failed_at, self._began = 0, None, time.monotonic()
        address = f"localhost:{_free_port()}"
        for number in range(self._num_processes):
            place = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(self._num_processes),
                "JAX_PROCESS_ID": str(number),
            }
            environment = {**os.environ, **settings, **(place if self._num_processes > 1 else {})}
            command = [*COMMANDS.get(program, [program]), *arguments]
            try:
                self._processes.append(subprocess.Popen(command, env=environment))
            except (FileNotFoundError, PermissionError) as error:
                self.code = NO_PROGRAM
                raise UserError(
                    f"phase {self.name} begins with {program!r}, which is no program here ({error.strerror}); install "
                    "it, or write python, imagen_jax or a program's path"
                ) from error

    def status(self) -> Status:
        if not self._processes:
            return Status(State.ABSENT)
        codes = [process.poll() for process in self._processes]
        self.peak_bytes = max(self.peak_bytes, sum(self._memory(one) for one in self._processes))
        bad = [code for code in codes if code]
        if bad and self._failed_at is None:
            # The first to end tells why; its peers end because of it.
            self._failed_at = time.monotonic()
            self.code = min(bad, key=is_retryable)
            self._note_loss(codes)
        if None in codes:
            if self._failed_at is not None and time.monotonic() - self._failed_at > GRACE_S:
                self._end()
            return Status(State.RUNNING)
        self._processes = []
        if not self.code:
            return Status(State.DONE)
        if self._fewer and len(self._losses) >= LOST_AFTER and is_retryable(self.code):
            return self._go_on_with_fewer()
        reason = f"ended with exit code {self.code}" if self.code > 0 else f"ended by signal {-self.code}"
        return Status(State.RETRY if is_retryable(self.code) else State.FAILED, reason)

    def _note_loss(self, codes: Sequence[int | None]) -> None:
        """Takes note of the process that a signal ended before all others; where another one was before, or the run
        was long enough to be healthy, counting begins anew."""
        killed = [number for number, code in enumerate(codes) if code is not None and (code < 0 or code > 128)]
        healthy = time.monotonic() - self._began >= self.restarts.healthy_s
        if healthy or len(killed) != 1 or {*self._losses} - {*killed}:
            self._losses = []
        self._losses += killed if len(killed) == 1 else []

    def _go_on_with_fewer(self) -> Status:
        lost, before = self._losses[-1], self._num_processes
        self._num_processes, self._losses = self._fewer.pop(), []
        told = (
            f"process {lost} of {before} stays lost: a signal ended it {LOST_AFTER} times in a row; going on with "
            f"{self._num_processes}"
        )
        print(f"{self.name}: {told}", flush=True)
        self.submit()
        return Status(State.RUNNING, told)

    def logs(self) -> str:
        return ""  # They were shown as they came.

    def cancel(self) -> None:
        self._end()
        self._processes = []

    def _end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @staticmethod
    def _memory(process: "subprocess.Popen[bytes]") -> int:
        try:
            return tree_memory(psutil.Process(process.pid)) if process.returncode is None else 0
        except psutil.NoSuchProcess:
            return 0


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])
