"""A watchdog over the steps of a run: where none ends for too long, it tells where all stand, and ends the process.

A collective waits for ever for a process that sleeps, and jax's heartbeat sees only processes that are gone. Every
process keeps the number of its last step in the store of jax.distributed, so that each can name those behind.
"""

import faulthandler
import functools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import jax
from jax._src import distributed

from imagen_jax.errors import RETRY
from imagen_jax.files import StrPath, as_path, make_dirs, write_text
from imagen_jax.streams import leave_at_once
from imagen_jax.train.hooks import Hook, StepInfo

_KEYS = "imagen_jax/steps"
_LOOK_S = 0.25
# Asking others and writing must not keep a process that hangs alive: the run's file system may hang, too.
_TELL_S = 1.0


class Watchdog(Hook):
    """Ends the process with the retry code when no step ends for `limit_s`; a block, in which it watches.

    All that the loop does between two steps counts: waiting for data, saves, previews.

    Args:
      limit_s: seconds; None never ends it.
      model_dir: run directory, for stacks_PROCESS.txt.
      step: updates done when the block begins.
      leave: ends the process; tests give their own.
    """

    def __init__(
        self, limit_s: float | None, model_dir: StrPath, step: int, leave: Callable[[int], object] = leave_at_once
    ):
        self._limit_s, self._model_dir, self._leave = limit_s, model_dir, leave
        self._step, self._since = step, time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit_s is not None:
            self._since = time.monotonic()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def after_step(self, info: StepInfo) -> None:
        """Takes note that the run goes on; the thread tells the others."""
        self._step, self._since = info.step, time.monotonic()

    def _watch(self) -> None:
        assert self._limit_s is not None
        published = None
        while not self._over.wait(min(_LOOK_S, self._limit_s / 4)):
            if self._step != published:
                published = self._step
                _within(_TELL_S, functools.partial(_publish, self._step))
            if time.monotonic() - self._since > self._limit_s:
                self._end(self._limit_s)
                return

    def _end(self, limit_s: float) -> None:
        me = jax.process_index()
        print(f"watchdog: no step ended for {limit_s:g} s after step {self._step}", file=sys.stderr, flush=True)
        found: dict[int, int] = {me: self._step}
        _within(_TELL_S, lambda: found.update(_published()))
        print(f"watchdog: {standing(found, jax.process_count())}", file=sys.stderr, flush=True)
        with tempfile.TemporaryFile("w+") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
            stream.seek(0)
            stacks = stream.read()
        print(stacks, file=sys.stderr, flush=True)
        # A newer end replaces an older one: it is the one to be looked into.
        _within(_TELL_S / 2, lambda: self._write(f"stacks_{me}.txt", f"after step {self._step}\n{stacks}"))
        self._leave(RETRY)

    def _write(self, name: str, text: str) -> None:
        make_dirs(self._model_dir)
        write_text(as_path(self._model_dir) / name, text)


def standing(steps: Mapping[int, int], num_processes: int) -> str:
    """Says who is behind, in words.

    Args:
      steps: last known step of processes, by their number; those that told none are missing.
      num_processes: how many there are.
    """
    silent = [number for number in range(num_processes) if number not in steps]
    if silent:
        return f"process {', '.join(map(str, silent))} is missing: it told of no step"
    lowest, highest = min(steps.values()), max(steps.values())
    if lowest == highest:
        return f"all {num_processes} processes stand at step {lowest}"
    behind = ", ".join(str(number) for number in sorted(steps) if steps[number] == lowest)
    return f"process {behind} is missing: it stands at step {lowest}, others at step {highest}"


def _publish(step: int) -> None:
    client = distributed.global_state.client
    if client is not None:
        client.key_value_set(f"{_KEYS}/{jax.process_index()}", str(step), allow_overwrite=True)


def _published() -> dict[int, int]:
    client = distributed.global_state.client
    pairs = client.key_value_dir_get(_KEYS) if client is not None else []
    return {int(name.rsplit("/", 1)[-1]): int(step) for name, step in pairs}


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Calls it and goes on after so long at most, also where it fails: the process is about to end anyway."""

    def guarded() -> None:
        try:
            call()
        except Exception as error:
            print(f"watchdog: {' '.join(str(error).split())}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=guarded, name="watchdog tells", daemon=True)
    thread.start()
    thread.join(seconds)
