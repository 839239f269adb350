"""Steps of DeepFloyd IF's pipelines, which diffusers recorded, from the numbers in tests/golden/c_if_stage1 and 2.

Where the network's output is recorded it is followed from guidance to the next sample. At the other steps its variance
is not; there what the step's mean leaves over must be the recorded noise times a standard deviation between the bounds.
tests/parity/test_diffusers.py runs the networks too.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, process, samplers, thresholding
from imagen_jax.diffusion.schedules import DiscreteSchedule

GOLDEN = Path(__file__).parents[1] / "golden"


def stage(number: int) -> tuple[dict[str, Any], Any, np.ndarray]:
    """Scheduler config, trajectory, and log-SNR at its timesteps: timestep k is entry k + 1."""
    folder = GOLDEN / f"c_if_stage{number}"
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    trajectory = np.load(folder / "trajectory.npz")
    assert config["beta_schedule"] == "squaredcos_cap_v2" and config["variance_type"] == "learned_range"
    times = (trajectory["timesteps"] + 1) / config["num_train_timesteps"]
    return config, trajectory, np.asarray(DiscreteSchedule().log_snr(jnp.asarray(times, jnp.float32)))


def estimate(
    config: dict[str, Any], output: np.ndarray, weight: float, z: jax.Array, log_snr: jax.Array
) -> samplers.Estimate:
    """As the pipeline: guidance of eps, the variance with text, x0_hat thresholded."""
    null, cond = jnp.split(jnp.asarray(output), 2)
    x0, eps = process.to_x0_eps("eps", guidance.guide(cond[:, :3], null[:, :3], weight), z, log_snr)
    percentile = 100 * config["dynamic_thresholding_ratio"]
    x0 = thresholding.threshold(x0, "dynamic", percentile, config["sample_max_value"])
    return samplers.Estimate(x0, eps, (cond[:, 3:] + 1) / 2)


def test_first_step_of_stage_1() -> None:
    config, trajectory, log_snrs = stage(1)
    z_t, rows = jnp.asarray(trajectory["initial_noise"]), jnp.ones(2)
    weight = float(trajectory["guidance_scale"])
    step = samplers.Step(log_snrs[0] * rows, log_snrs[1] * rows, -jnp.inf * rows)
    z_s, x0_hat = samplers.DDPMSampler().step(
        lambda z, log_snr: estimate(config, trajectory["unet_out_first"], weight, z, log_snr),
        z_t,
        step,
        jnp.asarray(trajectory["step_noise"][0]),
        jnp.zeros_like(z_t),
    )
    np.testing.assert_allclose(z_s, trajectory["x"][0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(x0_hat, trajectory["x0"][0], rtol=0, atol=1e-5)


def test_last_step_of_stage_1_is_the_estimate() -> None:
    config, trajectory, log_snrs = stage(1)
    z_t, weight = jnp.asarray(trajectory["x"][-2]), float(trajectory["guidance_scale"])
    got = estimate(config, trajectory["unet_out_last"], weight, z_t, log_snrs[-1] * jnp.ones(2)).x0
    # diffusers has alpha² = 1 - 4.1e-5 in float32, which leaves sigma² three digits; IF's own table, as ours, is exact.
    np.testing.assert_allclose(got, trajectory["x"][-1], rtol=0, atol=5e-5)
    alpha2 = np.float64(np.load(GOLDEN / "c_schedulers" / "steps.npz")["alphas_cumprod/squaredcos_cap_v2"][0])
    rounded = jnp.full(2, np.log(alpha2 / (1 - alpha2)))
    got = estimate(config, trajectory["unet_out_last"], weight, z_t, rounded).x0
    np.testing.assert_allclose(got, trajectory["x"][-1], rtol=0, atol=2e-6)


def test_every_step_of_stage_1_leaves_its_noise() -> None:
    _, trajectory, log_snrs = stage(1)
    starts = np.concatenate([trajectory["initial_noise"][None], trajectory["x"]])
    # At the first step; alike at all of them.
    recorded = (trajectory["unet_out_first"][2:, 3:] + 1) / 2
    for i, noise in enumerate(trajectory["step_noise"]):
        log_snr_t, log_snr_s = (jnp.full(2, value) for value in log_snrs[i : i + 2])
        x0, z_t = (jnp.asarray(array[i]) for array in (trajectory["x0"], starts))
        mean, var_small = samplers.posterior_moments(z_t, x0, log_snr_t, log_snr_s)
        # Noise that is not small, that rounding should not count.
        large = np.abs(noise) > 0.3
        std = ((trajectory["x"][i] - np.asarray(mean)) / noise)[large]
        # var_large / var_small = sigma² / sigma_s²; the fraction is what the network said of each value.
        ratio = (1 + np.exp(log_snrs[i + 1])) / (1 + np.exp(log_snrs[i]))
        fraction = np.log(std**2 / float(np.max(var_small))) / np.log(ratio)
        assert std.min() > 0
        assert recorded.min() - 0.2 < fraction.min() and fraction.max() < recorded.max() + 0.2
        assert fraction.mean() == pytest.approx(recorded.mean(), abs=0.03)


def test_low_resolution_noise_of_stage_2() -> None:
    trajectory = np.load(GOLDEN / "c_if_stage2" / "trajectory.npz")
    log_snr = DiscreteSchedule().log_snr(jnp.full(2, (int(trajectory["noise_level"]) + 1) / 1000))
    got = process.diffuse(jnp.asarray(trajectory["upscaled"]), jnp.asarray(trajectory["lowres_noise"]), log_snr)
    np.testing.assert_allclose(got, trajectory["upscaled_noised"], rtol=0, atol=2e-6)
