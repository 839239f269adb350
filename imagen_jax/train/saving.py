"""When a run saves, and how: beside training where one process trains, between two updates where several do.

In the background training waits only for a copy of the state in the host's memory, which a thread then writes as every
checkpoint is written (`checkpoints.save`): the same files, whole or not there. One is written at a time; the next save,
a stop and the end of a run wait for it. Several processes save between two updates, all at once: what they tell each
other while saving would meet the updates' own collectives in another order on each of them.

A save that fails is told at the next step boundary. A run of one process tries again, with the state of that moment,
after each of `RETRY_AFTER_S`; then it ends.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp

from imagen_jax.checkpoints.checkpoints import NotWrittenError
from imagen_jax.checkpoints.processes import first_tells
from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.files import AnyPath

# Pauses, in seconds, after a save that failed; at a stop or at the end LAST_RETRY_AFTER_S, since nothing else goes on.
RETRY_AFTER_S = (5.0, 20.0)
LAST_RETRY_AFTER_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveTimes:
    """When a run saves; the last update of a run is saved in any case.

    Args:
      every: updates from one checkpoint to the next, >= 1.
      minutes: also this long after the last save, looked at every `look_every` updates; None: by updates alone.
      look_every: updates between looks at the clock, >= 1: several processes go by that of the first, and wait for it.
    """

    every: int
    minutes: float | None = None
    look_every: int = 1


class Saver:
    """Saves a run's state.

    Args:
      prepare: takes the state and all that belongs to its step, and returns what writes that checkpoint, which raises
        `NotWrittenError` where that fails.
      times: when to save.
      background: write while training goes on; only with one process.
      say: tells people a line.
      timed: a block around all that training waits for.
    """

    def __init__(
        self,
        prepare: Callable[[TrainState], Callable[[], AnyPath]],
        times: SaveTimes,
        background: bool = False,
        say: Callable[[str], None] = print,
        timed: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        self._prepare, self._times, self._say, self._timed = prepare, times, say, timed
        self._background = background and jax.process_count() == 1
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[AnyPath] | None = None
        self._failures = 0
        self._saved_at = time.monotonic()
        self._again_at: float | None = None

    def due(self, step: int) -> bool:
        """True if the state after `step` updates is to be saved; to be asked once for each, by all processes."""
        now = time.monotonic()
        again = self._again_at is not None and now >= self._again_at
        late = False
        if self._times.minutes is not None and step % self._times.look_every == 0:
            seconds = 60 * self._times.minutes
            late = first_tells(lambda: now - self._saved_at >= seconds)
        return again or late or step % self._times.every == 0

    def boundary(self, state: TrainState, saving: bool, last: bool) -> Iterator[AnyPath]:
        """Does what is to be done at a step boundary.

        Args:
          state: of now.
          saving: save it.
          last: wait until it is saved.

        Yields:
          The checkpoints that became whole since the boundary before.

        Raises:
          UserError: a save failed as often as it is tried.
        """
        if saving or (self._writing is not None and self._writing.done()):
            with self._timed():
                yield from self._boundary(state, saving, last)

    def _boundary(self, state: TrainState, saving: bool, last: bool) -> Iterator[AnyPath]:
        if self._writing is not None:
            yield from self._written()
        if not saving:
            return
        self._start(state)
        if not last and self._background:
            return
        yield from self._written()
        while last and self._again_at is not None:
            time.sleep(LAST_RETRY_AFTER_S)
            self._start(state)
            yield from self._written()

    def close(self) -> None:
        """Waits for what is being written; an error of it is told, not raised: the run ends for another reason."""
        if self._writing is not None:
            try:
                self._writing.result()
            except NotWrittenError as error:
                self._say(str(error))
            self._writing = None
        self._thread.shutdown()

    def _start(self, state: TrainState) -> None:
        self._saved_at, self._again_at = time.monotonic(), None
        if not self._background:
            self._writing = Future()
            try:
                self._writing.set_result(self._prepare(state)())
            except NotWrittenError as error:
                self._writing.set_exception(error)
            return
        self._writing = self._thread.submit(self._prepare(copy_on_host(state)))

    def _written(self) -> Iterator[AnyPath]:
        """The checkpoint that was being written, once it is whole; none where that failed and is tried again."""
        assert self._writing is not None
        writing, self._writing = self._writing, None
        try:
            path = writing.result()
        except NotWrittenError as error:
            # Several processes would have to agree on who failed.
            if jax.process_count() > 1 or self._failures == len(RETRY_AFTER_S):
                raise
            pause = RETRY_AFTER_S[self._failures]
            self._failures, self._again_at = self._failures + 1, time.monotonic() + pause
            left = len(RETRY_AFTER_S) - self._failures + 1
            self._say(f"{error.problem}; it is tried again, {left} more times at most: training goes on meanwhile")
            return
        self._failures = 0
        yield path


def copy_on_host(state: TrainState) -> TrainState:
    """A copy of a state in the host's memory that no update takes the buffers of, laid out as the state is."""

    def copy(leaf: jax.Array) -> jax.Array:
        if next(iter(leaf.devices())).platform == "cpu":
            return jnp.copy(leaf)
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))

    return jax.block_until_ready(jax.tree.map(copy, state))
