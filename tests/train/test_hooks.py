"""Hooks of the loop: the order of their calls, and what an error in one of them does."""

import jax
import numpy as np
import pytest

from imagen_jax.checkpoints import folders
from imagen_jax.errors import UserError
from imagen_jax.train import loop
from imagen_jax.train.hooks import Hook
from tests.train import tiny_run

pytestmark = pytest.mark.usefixtures("tiny_data")


class Recorder(Hook):
    """Writes down what it is told, into a list that several share."""

    def __init__(self, name: str, events: list, every: int = 3, fail: tuple[str, int] | None = None):
        self._name, self._events, self._every, self._fail = name, events, every, fail

    def wants(self, step):
        return step % self._every == 0

    def _record(self, event, info, *rest):
        assert int(info.state.step) == info.step
        self._events.append((self._name, event, info.step, *rest))
        if self._fail == (event, info.step):
            raise RuntimeError(f"{self._name} fails")

    def before_step(self, info):
        self._record("before_step", info, dict(checkpoint_steps(self._events)))

    def on_save(self, info):
        self._record("on_save", info, info.checkpoint.name)

    def on_stop(self, info):
        self._record("on_stop", info, info.reason)

    def after_step(self, info):
        # Told on the host: the array is still on the device, and may not even be computed.
        self._events.append((self._name, "after_step", info.step, info.line and info.line["step"]))
        if self._fail == ("after_step", info.step):
            raise RuntimeError(f"{self._name} fails")

    def on_error(self, info, error):
        self._events.append((self._name, "on_error", info.step, str(error)))


def checkpoint_steps(events: list) -> list[tuple[str, int]]:
    """Checkpoints that one recorder was told of so far."""
    return [(event[3], event[2]) for event in events if event[1] == "on_save"]


def test_hooks_are_called_in_the_order_of_the_contract(tmp_path):
    events: list = []
    # Two hooks: one evaluates every 3 updates, the other every 4, as often as the run saves.
    config = tiny_run.tiny_config(tmp_path, num_steps=6, log_every=3, save_every=4, background_saves=False)
    loop.train(config, hooks=lambda run: (Recorder("a", events, 3), Recorder("b", events, 4)))
    a, b = ([event[1:] for event in events if event[0] == name] for name in "ab")
    assert a == [
        ("after_step", 1, None),
        ("after_step", 2, None),
        ("after_step", 3, 3),
        ("before_step", 3, {}),
        ("after_step", 4, None),
        ("on_save", 4, "checkpoint_4"),
        ("after_step", 5, None),
        ("after_step", 6, 6),
        ("before_step", 6, {"checkpoint_4": 4}),
        ("on_save", 6, "checkpoint_6"),
        ("on_stop", 6, None),
    ]
    # Where both act, the whole list sees one event before the next; the evaluation comes before its checkpoint.
    assert [event for event in b if event[0] == "before_step"] == [("before_step", 4, {})]
    at_four = [event[:2] for event in events if event[2] == 4]
    assert at_four == [
        ("a", "after_step"),
        ("b", "after_step"),
        ("b", "before_step"),
        ("a", "on_save"),
        ("b", "on_save"),
    ]


def test_hooks_of_a_resumed_run_see_nothing_twice(tmp_path):
    events: list = []
    config = tiny_run.tiny_config(tmp_path, num_steps=8)
    for stop_at in (4, None):
        loop.train(config, stop_at=stop_at, hooks=lambda run: [Recorder("a", events, 4)])
    seen = [event[1:3] for event in events if event[1] != "after_step"]
    expected = ["before_step", "on_save", "on_stop"]
    assert seen == [(event, step) for step in (4, 8) for event in expected]


def test_hooks_change_nothing_of_the_run(tmp_path):
    plain = loop.train(tiny_run.tiny_config(tmp_path / "a"))
    hooked = loop.train(tiny_run.tiny_config(tmp_path / "b"), hooks=lambda run: [Recorder("a", [], 1)])
    assert tiny_run.leaves_equal(plain, hooked)


@pytest.mark.parametrize(
    ("event", "step", "kept"), [("before_step", 8, [4]), ("on_save", 8, [4, 8]), ("after_step", 7, [4])]
)
def test_a_hook_that_raises_ends_the_run_and_the_next_run_goes_on(tmp_path, event, step, kept):
    events: list = []
    config = tiny_run.tiny_config(tmp_path / "run", background_saves=False)
    hooks = [Recorder("a", events, 4, fail=(event, step)), Recorder("b", events, 4)]
    with pytest.raises(RuntimeError, match="a fails"):
        loop.train(config, hooks=lambda run: hooks)
    # The second hook does not see the event that failed; then both are told.
    assert ("b", event, step) not in [seen[:3] for seen in events]
    assert events[-2:] == [("a", "on_error", step, "a fails"), ("b", "on_error", step, "a fails")]
    assert folders.saved_steps(config.model_dir) == kept
    resumed = loop.train(config)
    assert tiny_run.leaves_equal(resumed, loop.train(tiny_run.tiny_config(tmp_path / "whole")))
    assert [line["step"] for line in tiny_run.lines_of(tmp_path / "run")] == [2, 4, 6, 8, 10, 12]


def test_non_finite_parameters_are_shown_to_no_hook_but_the_error_is(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_run.TinyBatches, "poison_steps", {6})
    events: list = []
    with pytest.raises(UserError, match="step 7: loss = nan"):
        config = tiny_run.tiny_config(tmp_path, log_every=100, max_bad_steps=1, background_saves=False)
        loop.train(config, hooks=lambda run: [Recorder("a", events, 7)])
    assert [event[1:3] for event in events if event[1] != "after_step"] == [("on_save", 4), ("on_error", 7)]


def test_an_error_of_on_error_is_a_note_on_the_first(tmp_path):
    class Bad(Hook):
        def after_step(self, info):
            raise RuntimeError("first")

        def on_error(self, info, error):
            raise ValueError("second")

    events: list = []
    with pytest.raises(RuntimeError, match="first") as caught:
        loop.train(tiny_run.tiny_config(tmp_path), hooks=lambda run: [Bad(), Recorder("b", events)])
    assert caught.value.__notes__ == ["Bad.on_error failed too: ValueError('second')"]
    assert [event[1] for event in events] == ["on_error"]


def test_a_hook_after_a_step_may_not_wait_for_the_device_by_accident(tmp_path):
    class Accident(Hook):
        def after_step(self, info):
            jax.numpy.zeros(3) + np.ones(3)

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop.train(tiny_run.tiny_config(tmp_path), hooks=lambda run: [Accident()])
