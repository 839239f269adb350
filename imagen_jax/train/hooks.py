"""Hooks of the training loop: what happens beside training, at which moment, in which order.

The loop (`train.loop`) calls every hook of an event in the order of its list. A hook raises to stop the run; the hooks
after it do not see that event, and every hook then sees `on_error`.

| event | when | parameters in `info.state` |
|---|---|---|
| before_step | a boundary that the hook wants, before its checkpoint: previews, evaluators | bad updates were skipped |
| on_save | a boundary at which a checkpoint has become whole | of now, perhaps later than the checkpoint |
| on_stop | the last boundary, after its checkpoint: the run is done, or was asked to stop | as in the checkpoint |
| after_step | an update was dispatched: metric lines, progress, profilers, watchdogs | perhaps not computed yet |
| on_error | an exception ends the run | perhaps given away to the failed step: not to be read |
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.files import AnyPath


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepInfo:
    """The run at one event.

    Attributes:
      step: updates done.
      state: parameters, averages and optimizer state after them. The next step takes its buffers: copy what is kept.
      line: the metrics line that this step closes, in `after_step`; None where none is due.
      checkpoint: directory that was written, in `on_save`; its name tells of which step, here or before.
      reason: name of the signal that stops the run, in `on_stop`; None at the end.
    """

    step: int
    state: TrainState
    line: Mapping[str, Any] | None = None
    checkpoint: AnyPath | None = None
    reason: str | None = None


class Hook:
    """Does nothing at any event; a subclass overrides those it acts on."""

    def wants(self, step: int) -> bool:
        """True if `before_step` is to be called after `step` updates; the loop then waits for the device."""
        return False

    def before_step(self, info: StepInfo) -> None:
        """Looks at the parameters at a step boundary, also at the last one, where no step follows."""

    def on_save(self, info: StepInfo) -> None:
        """Follows a checkpoint."""

    def on_stop(self, info: StepInfo) -> None:
        """Follows the last checkpoint."""

    def after_step(self, info: StepInfo) -> None:
        """Follows an update; implicit transfers between host and device are refused here."""

    def on_error(self, info: StepInfo, error: BaseException) -> None:
        """Precedes the end of the run by `error`, which may come from another hook."""


class HookList(Hook):
    """Several hooks as one, called in order.

    Args:
      hooks: the hooks.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self._hooks = tuple(hooks)

    def wants(self, step: int) -> bool:
        """True if any hook does."""
        return any(hook.wants(step) for hook in self._hooks)

    def before_step(self, info: StepInfo) -> None:
        """Calls the hooks that want this step."""
        for hook in self._hooks:
            if hook.wants(info.step):
                hook.before_step(info)

    def on_save(self, info: StepInfo) -> None:
        """Calls every hook."""
        for hook in self._hooks:
            hook.on_save(info)

    def on_stop(self, info: StepInfo) -> None:
        """Calls every hook."""
        for hook in self._hooks:
            hook.on_stop(info)

    def after_step(self, info: StepInfo) -> None:
        """Calls every hook."""
        for hook in self._hooks:
            hook.after_step(info)

    def on_error(self, info: StepInfo, error: BaseException) -> None:
        """Calls every hook, also after one that fails: the first error is the one to be told."""
        for hook in self._hooks:
            try:
                hook.on_error(info, error)
            except Exception as second:
                error.add_note(f"{type(hook).__name__}.on_error failed too: {second!r}")
