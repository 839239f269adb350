"""Spikes of the loss: found, skipped bit for bit, seldom found where there are none."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.checkpoints import folders
from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train import loop, spikes
from imagen_jax.train.bad_steps import BadSteps
from imagen_jax.train.objective import Objective
from imagen_jax.train.spikes import MEMORY, WARM_UP, LossStatistics
from imagen_jax.train.state import abstract_state, init_state
from imagen_jax.train.step import StepSettings, jit_train_step
from tests.train import tiny_run

NONE = LossStatistics(jnp.int32(0), jnp.float32(0), jnp.float32(0))


@jax.jit
def looked_at(losses):
    """Spikes among losses, and the statistics after them: those of a run that skips them."""

    def one(known, loss):
        spike = known.is_spike(loss, 6.0)
        return jax.tree.map(lambda new, old: jnp.where(spike, old, new), known.with_loss(loss), known), spike

    return jax.lax.scan(one, NONE, losses)


def in_float64(losses):
    """The same recurrence in plain Python."""
    count, mean, variance, found = 0, 0.0, 0.0, []
    for number, x in enumerate(np.log(losses.astype(np.float64))):
        if count >= WARM_UP and x > mean + 6 * max(np.sqrt(variance), 0.01):
            found.append(number)
            continue
        rate = max(1 / (count + 1), 1 / MEMORY)
        variance = (1 - rate) * (variance + rate * (x - mean) ** 2)
        mean += rate * (x - mean)
        count += 1
    return found, mean, variance


def diffusion_like(rng, num=10_000, rows=16):
    """Means of lognormal losses of the rows of a batch, whose level falls as at the start of a run, then drifts."""
    steps = np.arange(num)
    level = 0.05 + np.exp(-steps / 200) + 0.02 * np.sin(steps / 500)
    return (level * rng.lognormal(0.0, 1.0, (rows, num)).mean(0)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_one_false_spike_in_ten_thousand_at_most_and_every_true_one(seed):
    rng = np.random.default_rng(seed)
    losses = diffusion_like(rng)
    known, found = looked_at(losses)
    numbers, mean, variance = in_float64(losses)
    assert np.flatnonzero(found).tolist() == numbers and len(numbers) <= 1
    np.testing.assert_allclose((known.mean, known.variance), (mean, variance), rtol=1e-4)
    planted = np.sort(rng.choice(np.arange(300, 10_000), 50, replace=False))
    losses[planted] *= 100
    _, found = looked_at(losses)
    assert set(planted) <= set(np.flatnonzero(found)) and found.sum() <= len(planted) + 1


def test_statistics_begin_as_the_plain_mean_and_variance():
    losses = np.random.default_rng(0).lognormal(size=MEMORY).astype(np.float32)
    known, _ = looked_at(losses)
    np.testing.assert_allclose(known.mean, np.log(losses).mean(), rtol=1e-5)
    np.testing.assert_allclose(known.variance, np.log(losses).var(), rtol=1e-5)


def test_the_first_losses_and_rounding_are_no_spikes_and_a_loss_of_nothing_is_not_counted():
    early = np.ones(WARM_UP, np.float32)
    assert not looked_at(np.append(early[1:], 1e6))[1].any()
    assert looked_at(np.append(early, 1.01))[1].tolist() == [False] * (WARM_UP + 1)
    assert looked_at(np.append(early, 1.1))[1].tolist() == [False] * WARM_UP + [True]
    known, _ = looked_at(np.float32([2, 0, -1, np.nan, np.inf]))
    assert jax.tree.leaves(known) == jax.tree.leaves(NONE.with_loss(jnp.asarray(2.0)))


class Distance(Objective):
    """Squared distance of a vector from the rows."""

    def init(self, rng):
        return jnp.zeros(3)

    def batch_spec(self, batch_size):
        return {"x": jax.ShapeDtypeStruct((batch_size, 3), jnp.float32)}

    def loss(self, params, frozen, batch, rng, mesh=None):
        return ((params - batch["x"]) ** 2).mean(), {}


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_spike_leaves_all_but_the_step_number_bit_for_bit(accumulate_steps):
    """Also on several devices; the same batch without spikes looked for is an update."""
    mesh, objective = MeshConfig(fsdp=2).build(jax.devices()[:4]), Distance()
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(8, 3)).astype(np.float32) for _ in range(WARM_UP + 20)]
    skipped = {}
    for sigmas in (6.0, None):
        optimizer = optax.adam(1e-4)
        settings = StepSettings(
            optimizer=optimizer if sigmas is None else spikes.watched(optimizer),
            rate=optax.constant_schedule(1e-4),
            accumulate_steps=accumulate_steps,
            max_spike_sigmas=sigmas,
        )
        step = jit_train_step(objective, settings, mesh, abstract_state(objective, settings.optimizer, mesh))
        state = jax.jit(lambda: init_state(objective, settings.optimizer, 0))()  # noqa: B023 - called at once
        skipped[sigmas] = []
        for number, x in enumerate(rows):
            before = jax.device_get(jax.tree.map(jnp.copy, state))
            # Losses grow with the square.
            state, metrics = step(state, {"x": x * 10 if number == WARM_UP + 10 else x}, ())
            if metrics["skipped"]:
                skipped[sigmas].append(number)
                assert tiny_run.leaves_equal(jax.device_get(state).replace(step=before.step), before)
                assert int(state.step) == number + 1
    assert skipped == {6.0: [WARM_UP + 10], None: []}


@pytest.mark.usefixtures("tiny_data")
def test_a_run_skips_and_counts_a_spike_and_goes_on_bit_for_bit_when_it_was_stopped_before(tmp_path, monkeypatch):
    draw, spike = tiny_run.tiny_batch, WARM_UP + 5

    def drawn(seed, step, num):
        batch = draw(seed, step, num)
        return {**batch, "x0": batch["x0"] * 100} if step == spike else batch

    monkeypatch.setattr(tiny_run, "tiny_batch", drawn)
    changes = {"num_steps": spike + 5, "save_every": 1000, "max_spike_sigmas": 6.0}
    whole = loop.train(tiny_run.tiny_config(tmp_path / "whole", **changes))
    config = tiny_run.tiny_config(tmp_path / "parts", **changes)
    before = loop.train(config, stop_at=spike)
    after = loop.train(config, stop_at=spike + 1)
    assert int(after.step) == spike + 1 and tiny_run.leaves_equal(after.replace(step=before.step), before)
    assert tiny_run.leaves_equal(loop.train(config), whole) and folders.latest_step(tmp_path / "parts") == spike + 5
    for run in ("whole", "parts"):
        lines = tiny_run.lines_of(tmp_path / run)
        assert sum(line.get("skipped_steps", 0) for line in lines) == 1
        (bad,) = [json.loads(line) for line in (tmp_path / run / "bad_steps.jsonl").read_text().splitlines()]
        assert bad["step"] == spike + 1 and bad["examples"] == {"train": list(range(spike * 16, spike * 16 + 16))}
        assert float(bad["loss"]) > 10 * lines[10]["loss"]


def test_spikes_end_a_run_only_in_a_row():
    row = {"loss": np.float32(50), "grad_norm": np.float32(9)}
    bad_steps = BadSteps(3)
    for step in range(1, 30):
        bad_steps.look(step, {**row, "skipped": step % 3 != 0})
    # Steps 28 and 29 were skipped, too.
    with pytest.raises(UserError, match=r"a spike of the loss at step 30: loss = 50.* 3 .*raise max_spike_sigmas"):
        for step in range(30, 33):
            bad_steps.look(step, {**row, "skipped": True})


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_number_of_deviations_that_is_none_is_refused(value, tmp_path):
    with pytest.raises(UserError, match="max_spike_sigmas"):
        tiny_run.tiny_config(tmp_path, max_spike_sigmas=value)
