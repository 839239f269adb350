"""Instruments of a run: where its time goes, how long the updates of each process take, memory, traces.

A process's own time is what passes on its host between two updates: the wait for the batch, hooks, the loop. It is
told apart from the wait for the other processes, which all of them share. A device that is slow itself is not found
this way: its trace shows it.
"""

import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from imagen_jax.checkpoints.processes import gathered
from imagen_jax.errors import UserError
from imagen_jax.files import StrPath, as_path, is_remote, make_dirs, send_files, write_json
from imagen_jax.train.hooks import Hook, HookList, StepInfo
from imagen_jax.train.ledger import Ledger
from imagen_jax.train.objective import Batch

HOSTS = "hosts.json"
# Steps within which a slow process is named, also where metrics lines are further apart.
NAMED_WITHIN = 50
# Own time beyond the others' that makes a process slow: a share of the step, and seconds.
SLOW_SHARE, SLOW_S = 0.05, 0.02
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class ProcessTimes:
    """Updates of one process since it was last asked.

    Args:
      host: name of its machine.
      own_s: mean seconds of an update that are its own.
      step_s: 50th, 90th and 99th percentile of the seconds of an update.
      memory: most bytes in use so far on one of its devices; None where the backend does not tell.
    """

    host: str
    own_s: float
    step_s: Sequence[float]
    memory: int | None


def slow_process(times: Sequence[ProcessTimes]) -> int | None:
    """Number of the process that keeps the others waiting, None where there is none.

    Args:
      times: of each process.
    """
    if len(times) < 2:
        return None
    own = [one.own_s for one in times]
    slowest = int(np.argmax(own))
    others = statistics.median(own[:slowest] + own[slowest + 1 :])
    step = statistics.median(one.step_s[0] for one in times)
    return slowest if own[slowest] - others > max(SLOW_S, SLOW_SHARE * step) else None


def peak_memory() -> int | None:
    """Most bytes that were in use on one device of this process, None where the backend does not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one), default=None)


class Instruments(Hook):
    """Watches a run; the first of its hooks, so that what the others do is the process's own time.

    Args:
      ledger: counts the run's time.
      model_dir: run directory.
      log_every: steps between metrics lines.
    """

    def __init__(self, ledger: Ledger, model_dir: StrPath, log_every: int):
        self._ledger, self._hosts = ledger, as_path(model_dir) / HOSTS
        self._every = min(log_every, NAMED_WITHIN)
        self._step, self._reason = 0, "ended"
        self._left_at: float | None = None
        self._interruptions = 0
        self._own_s = 0.0
        self._own: list[float] = []
        self._steps: list[float] = []
        self._named: int | None = None
        self._fields: dict[str, Any] = {}

    @contextlib.contextmanager
    def running(self, step: int) -> Iterator[None]:
        """A block of updates, whose end and its reason go into the ledger.

        Args:
          step: updates done before.
        """
        self._step = step
        self._ledger.begin_steps(step)
        try:
            yield
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            with contextlib.suppress(OSError):  # The error that ends the run is the one to be told.
                self._ledger.close(self._step, reason)
            raise
        self._ledger.close(self._step, self._reason)

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the wait for each is waiting for data."""
        while True:
            with self._ledger.during("data"):
                batch = next(batches, None)
            if batch is None:
                return
            if self._left_at is not None:
                self._own_s = time.perf_counter() - self._left_at
            yield batch

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """A block whose time is that of checkpoints."""
        return self._ledger.during("checkpoint")

    def evaluating(self, hooks: Sequence[Hook]) -> Hook:
        """Hooks whose `before_step` is evaluation."""
        return _Evaluations(self._ledger, hooks)

    def fields(self) -> dict[str, Any]:
        """Fields of the metrics line that is due."""
        return self._fields

    def after_step(self, info: StepInfo) -> None:
        """Measures an update, and compares the processes where that is due."""
        now = time.perf_counter()
        self._step = info.step
        # An update with a checkpoint or previews before it says nothing of the others.
        if self._left_at is not None and self._ledger.interruptions == self._interruptions:
            self._steps.append(now - self._left_at)
            self._own.append(self._own_s)
        if (info.step % self._every == 0 or info.line is not None) and self._compare(info.line is not None):
            self._own, self._steps = [], []
        if info.line is not None:
            self._ledger.write(info.step)
        self._interruptions = self._ledger.interruptions
        self._left_at = time.perf_counter()

    def on_save(self, info: StepInfo) -> None:
        """Writes down what the checkpoint took."""
        self._ledger.write(info.step)

    def on_stop(self, info: StepInfo) -> None:
        """Takes note of the reason; from here on nothing but saving and closing takes time."""
        self._reason = info.reason or "all its steps are done"
        self._ledger.enter("checkpoint")

    def _compare(self, line: bool) -> bool:
        """Gathers all processes' times; False where one has none yet."""
        mine = None
        if self._steps:
            step_s = np.percentile(self._steps, PERCENTILES).tolist()
            own_s = statistics.fmean(self._own)
            mine = asdict(ProcessTimes(host=socket.gethostname(), own_s=own_s, step_s=step_s, memory=peak_memory()))
        with jax.transfer_guard("allow"):
            told = [json.loads(one) for one in gathered(json.dumps(mine).encode())]
        if any(one is None for one in told):
            self._fields = {}
            return False
        times = [ProcessTimes(**one) for one in told]
        slow = slow_process(times)
        worst = np.max([one.step_s for one in times], axis=0)
        self._fields = {f"step_p{name}_s": float(value) for name, value in zip(PERCENTILES, worst, strict=True)}
        self._fields["own_s"] = max(one.own_s for one in times)
        memory = [one.memory for one in times if one.memory is not None]
        if memory:
            self._fields["device_memory_gib"] = max(memory) / 2**30
        if slow is not None:
            self._fields["slow_process"] = slow
        if len(times) > 1 and jax.process_index() == 0:
            self._tell(times, slow)
            if line:
                write_json(self._hosts, {"step": self._step, "processes": told}, end="\n")
        return True

    def _tell(self, times: Sequence[ProcessTimes], slow: int | None) -> None:
        if slow is not None and slow != self._named:
            one = times[slow]
            others = statistics.median(other.own_s for number, other in enumerate(times) if number != slow)
            print(
                f"step {self._step}: process {slow} on host {one.host} keeps the others waiting: {one.own_s * 1e3:.0f} "
                f"ms of an update are its own (batch, hooks, loop), {others * 1e3:.0f} ms theirs",
                file=sys.stderr,
                flush=True,
            )
        self._named = slow


class _Evaluations(HookList):
    def __init__(self, ledger: Ledger, hooks: Sequence[Hook]):
        super().__init__(hooks)
        self._ledger = ledger

    def before_step(self, info: StepInfo) -> None:
        with self._ledger.during("evaluation"):
            super().before_step(info)


def profiled_steps(text: str) -> tuple[int, int]:
    """Reads A:B, the first and the last update of a trace.

    Raises:
      UserError: it is something else.
    """
    first, _, last = text.partition(":")
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile_steps ({text!r}) must be A:B, the first and the last update, e.g. 100:105")
    return int(first), int(last)


class ProfileSteps(Hook):
    """Writes a trace of some updates of the first process, for TensorBoard and xprof.

    Args:
      steps: the first and the last update; where the run begins after the first, what is left of them.
      start: updates done when the run begins.
      folder: where the trace goes; TensorBoard finds it below a folder that it is given.
    """

    def __init__(self, steps: tuple[int, int], start: int, folder: StrPath):
        self._first, self._last = steps
        self._folder = folder
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._open = False
        self._begin_after(start)

    def after_step(self, info: StepInfo) -> None:
        """Begins or ends the trace, where that is due."""
        if self._open and info.step >= self._last:
            jax.block_until_ready(info.state.step)
            self._end()
        elif not self._open:
            self._begin_after(info.step)

    def on_stop(self, info: StepInfo) -> None:
        """Ends a trace of a run that ends sooner."""
        self._end()

    def on_error(self, info: StepInfo, error: BaseException) -> None:
        """Ends the trace: it may show why."""
        self._end()

    def _begin_after(self, step: int) -> None:
        if jax.process_index() != 0 or not self._first <= step + 1 <= self._last:
            return
        if is_remote(self._folder):
            self._copy = tempfile.TemporaryDirectory()
        else:
            make_dirs(self._folder)
        jax.profiler.start_trace(os.fspath(self._copy.name if self._copy else self._folder))
        self._open = True

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        jax.profiler.stop_trace()
        if self._copy is not None:
            send_files(self._copy.name, self._folder)
            self._copy.cleanup()
        print(f"trace of updates {self._first} to {self._last}: {self._folder}", file=sys.stderr, flush=True)
