"""The watchdog: it ends a run that stands, in time, with stacks, and leaves others alone."""

import threading
import time

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.errors import RETRY
from imagen_jax.train.hooks import StepInfo
from imagen_jax.train.watchdog import Watchdog, standing
from tests.train import tiny_run

STATE = TrainState(step=7, params={}, ema_params={}, opt_state=())


def test_a_run_that_stands_is_ended_in_time_with_stacks(tmp_path, capfd):
    ended, codes = threading.Event(), []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    def sleeps_for_ever() -> None:
        assert ended.wait(10)

    with Watchdog(0.4, tmp_path, 6, leave) as watchdog:
        for step in (7, 8):
            time.sleep(0.25)
            watchdog.after_step(StepInfo(step=step, state=STATE))
        assert codes == []
        began = time.monotonic()
        sleeps_for_ever()
        assert 0.3 < time.monotonic() - began < 2.4 and codes == [RETRY]
    said = capfd.readouterr().err
    assert "no step ended for 0.4 s after step 8" in said and "sleeps_for_ever" in said
    stacks = (tmp_path / "stacks_0.txt").read_text()
    assert stacks.startswith("after step 8") and "sleeps_for_ever" in stacks


def test_a_run_that_ends_is_left_alone(tmp_path):
    codes: list[int] = []
    with Watchdog(0.1, tmp_path, 0, codes.append):
        pass
    with Watchdog(None, tmp_path, 0, codes.append):
        time.sleep(0.3)
    assert codes == [] and list(tmp_path.iterdir()) == []


def test_those_behind_are_named():
    assert standing({0: 8, 1: 6, 2: 8}, 3) == "process 1 is missing: it stands at step 6, others at step 8"
    assert standing({0: 8, 2: 7}, 3) == "process 1 is missing: it told of no step"
    assert standing({0: 8}, 1) == "all 1 processes stand at step 8"


def test_settings_of_the_checks_are_checked(tmp_path):
    for changes in ({"watchdog_seconds": 0.0}, {"watchdog_seconds": float("nan")}, {"sdc_every": 0}):
        try:
            tiny_run.tiny_config(tmp_path, **changes)
        except ValueError as error:
            assert next(iter(changes)) in str(error)
        else:
            raise AssertionError(changes)
