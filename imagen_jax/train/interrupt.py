"""Stopping at a step boundary when the machine, or the user, asks for it."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Turns SIGTERM and SIGINT into a question the loop asks between updates.

    A second signal acts as usual, so that a run that hangs can be ended. With several processes JAX takes
    SIGTERM itself and agrees with the others on a step, so here it is only polled.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._name: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Python allows signal handlers in the main thread only.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def reason(self, step: int) -> str | None:
        """Name of the signal that asks to stop before the update after `step`, None to go on."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return "SIGTERM"
        return self._name
