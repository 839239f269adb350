"""Sampler steps against diffusers' schedulers, recorded and by formula, and against Gaussian algebra in float64."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, samplers, thresholding
from imagen_jax.errors import UserError
from tests.diffusion.diffusers_steps import reference_step

GOLDEN = Path(__file__).parents[1] / "golden" / "c_schedulers"
CASES = json.loads((GOLDEN / "cases.json").read_text())
STEPS = np.load(GOLDEN / "steps.npz")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
LOG_SNR_T, LOG_SNR_S = -1.2, 0.7


def test_the_golden_file_has_every_case() -> None:
    assert sum(case["case"].startswith("ddpm") for case in CASES) == 27
    assert sum(case["case"].startswith("ddim") for case in CASES) == 12


def sampler_of(case: dict[str, Any]) -> samplers.Sampler:
    if case["case"].startswith("ddim"):
        return samplers.DDIMSampler(eta=case["eta"])
    # A learned variance needs no gamma: half is wrong for every case.
    return samplers.DDPMSampler(
        gamma={"fixed_small": 0.0, "fixed_large": 1.0}.get(case["config"]["variance_type"], 0.5)
    )


def predict_of(case: dict[str, Any], output: jax.Array) -> samplers.Predict:
    """Estimates as diffusers makes them: x0_hat is thresholded, eps_hat is not."""
    config = case["config"]
    rule = "dynamic" if config["thresholding"] else "static" if config["clip_sample"] else "none"
    percentile = 100 * config["dynamic_thresholding_ratio"]
    fraction = (output[:, 3:] + 1) / 2 if config.get("variance_type") == "learned_range" else None

    def predict(z: jax.Array, log_snr: jax.Array) -> samplers.Estimate:
        x0, eps = process.to_x0_eps(PREDICTIONS[config["prediction_type"]], output[:, :3], z, log_snr)
        return samplers.Estimate(
            thresholding.threshold(x0, rule, percentile, config["sample_max_value"]), eps, fraction
        )

    return predict


def our_step(case: dict[str, Any], number: int, arrays: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """z_s and x0_hat of one step of a case, by our sampler in float32."""
    alpha2 = STEPS[f"alphas_cumprod/{case['config']['beta_schedule']}"].astype(np.float64)
    log_snrs, t, s = np.log(alpha2 / (1 - alpha2)), case["timesteps"][number], case["prev_timesteps"][number]
    output, z_t, noise = (jnp.asarray(arrays[name]) for name in ("model_output", "sample", "noise"))
    rows, predict = jnp.ones(len(z_t)), predict_of(case, output)
    if s < 0:
        # The end of the grid is the estimate itself.
        return (predict(z_t, log_snrs[t] * rows).x0,) * 2
    step = samplers.Step(log_snrs[t] * rows, log_snrs[s] * rows, -jnp.inf * rows)
    return sampler_of(case).step(predict, z_t, step, noise, jnp.zeros_like(z_t))


def assert_step_is_the_formula(case: dict[str, Any], number: int, arrays: dict[str, np.ndarray]) -> None:
    table = STEPS[f"alphas_cumprod/{case['config']['beta_schedule']}"]
    t, s = case["timesteps"][number], case["prev_timesteps"][number]
    alpha_t, alpha_s = np.sqrt(table[t]), np.sqrt(table[s]) if s >= 0 else 1.0
    # x0_hat is (z_t - sigma eps_hat) / alpha: what is rounded in z_t grows by that.
    amplified = (alpha_s / alpha_t, 1 / alpha_t)
    exact = reference_step(case, table, number, arrays)
    for got, expected, least in zip(our_step(case, number, arrays), exact, amplified, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * max(least, np.abs(expected).max()))


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_step_matches_diffusers(case: dict[str, Any]) -> None:
    """Ours is the formula in float64 but for the last bits; what diffusers recorded is it but for its own rounding."""
    table = STEPS[f"alphas_cumprod/{case['config']['beta_schedule']}"]
    names = ("model_output", "sample", "noise", "prev_sample", "pred_original_sample")
    assert min(case["prev_timesteps"]) < 0 < max(case["prev_timesteps"])
    for i, t in enumerate(case["timesteps"]):
        arrays = {name: STEPS[f"{case['case']}/{name}"][i] for name in names}
        assert_step_is_the_formula(case, i, arrays)
        z_s, x0 = reference_step(case, table, i, arrays)
        largest = np.abs(x0).max()
        np.testing.assert_allclose(arrays["pred_original_sample"], x0, rtol=0, atol=1e-6 * max(10.0, largest))
        # diffusers subtracts alpha² from 1 in float32 and divides by sigma²: at t = 40 200 times the last bit.
        last_bit = 2**-24 / (1 - float(table[t]))
        np.testing.assert_allclose(arrays["prev_sample"], z_s, rtol=0, atol=3e-6 + last_bit * largest)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_step_at_times_that_were_not_recorded(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(CASES.index(case))
    times = np.sort(rng.choice(980, 6, replace=False))[::-1].tolist()
    case = case | {"timesteps": times, "prev_timesteps": [*times[1:], -1]}
    outputs = 6 if case["config"].get("variance_type") == "learned_range" else 3
    shapes = {"model_output": outputs, "sample": 3, "noise": 3}
    for i in range(len(times)):
        arrays = {name: rng.uniform(-1.0, 1.0, (2, num, 6, 6)).astype(np.float32) for name, num in shapes.items()}
        assert_step_is_the_formula(case, i, arrays)


def gaussian_moments() -> tuple[float, float, float, float]:
    """alpha_t, alpha_s, sigma_t², sigma_s² in float64."""
    alpha2_t, alpha2_s = (1 / (1 + np.exp(-value)) for value in (LOG_SNR_T, LOG_SNR_S))
    return np.sqrt(alpha2_t), np.sqrt(alpha2_s), 1 - alpha2_t, 1 - alpha2_s


def test_posterior_is_bayes_rule() -> None:
    """Mean and variance from conditioning the joint Gaussian of (z_s, z_t) given x0, in float64."""
    x0, z_t = 0.3, -0.8
    alpha_t, alpha_s, var_t, var_s = gaussian_moments()
    ratio = alpha_t / alpha_s  # z_t = ratio z_s + noise, so cov(z_s, z_t) = ratio var_s
    mean = alpha_s * x0 + ratio * var_s / var_t * (z_t - alpha_t * x0)
    variance = var_s - (ratio * var_s) ** 2 / var_t
    with jax.enable_x64(True):
        got_mean, got_variance = samplers.posterior_moments(
            jnp.full((1, 1), z_t), jnp.full((1, 1), x0), jnp.full((1,), LOG_SNR_T), jnp.full((1,), LOG_SNR_S)
        )
    np.testing.assert_allclose(got_mean[0, 0], mean, rtol=1e-13)
    np.testing.assert_allclose(got_variance[0, 0], variance, rtol=1e-13)


def test_renoise_is_the_forward_process() -> None:
    """A draw at s taken back to t has the mean and the variance of a draw at t."""
    alpha_t, alpha_s, var_t, var_s = gaussian_moments()
    with jax.enable_x64(True):
        # The origin, a unit of z_s, a unit of noise: the step is linear.
        z_s, noise = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[0.0], [0.0], [1.0]])
        origin, kept, added = np.asarray(samplers.renoise(z_s, jnp.full(3, LOG_SNR_S), jnp.full(3, LOG_SNR_T), noise))[
            :, 0
        ]
    assert origin == 0.0
    assert kept * alpha_s == pytest.approx(alpha_t, rel=1e-13)
    assert kept**2 * var_s + added**2 == pytest.approx(var_t, rel=1e-13)


def test_renoise_to_the_same_time_changes_nothing() -> None:
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    log_snr = jnp.array([-3.0, 2.0])
    np.testing.assert_allclose(samplers.renoise(z, log_snr, log_snr, 10 * z), z, atol=1e-6)


@pytest.mark.parametrize("log_snr_s", [-1.1, 0.7, 9.0])
def test_ddim_with_eta_1_is_the_ancestral_sampler(log_snr_s: float) -> None:
    with jax.enable_x64(True):
        z_t, x0, noise = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
        rows = jnp.ones(2)
        step = samplers.Step(LOG_SNR_T * rows, log_snr_s * rows, -jnp.inf * rows)

        def predict(z: jax.Array, log_snr: jax.Array) -> samplers.Estimate:
            return samplers.estimate_from_x0(x0, z, log_snr)

        ancestral, ddim = (
            np.asarray(sampler.step(predict, z_t, step, noise, x0)[0])
            for sampler in (samplers.DDPMSampler(gamma=0.0), samplers.DDIMSampler(eta=1.0))
        )
    np.testing.assert_allclose(ddim, ancestral, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", [samplers.DDIMSampler(), samplers.DPMSolverSampler(), samplers.HeunSampler()])
def test_deterministic_samplers_use_no_noise(sampler: samplers.Sampler) -> None:
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    step = samplers.Step(jnp.full(2, -1.0), jnp.full(2, 0.5), jnp.full(2, -2.0))

    def predict(z: jax.Array, log_snr: jax.Array) -> samplers.Estimate:
        return samplers.estimate_from_x0(jnp.tanh(z), z, log_snr)

    quiet, loud = (sampler.step(predict, z, step, noise, 0.1 * z)[0] for noise in (jnp.zeros_like(z), 9.0 * z))
    np.testing.assert_array_equal(quiet, loud)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.DDPMSampler(),
        samplers.DDIMSampler(eta=0.5),
        samplers.DPMSolverSampler(),
        samplers.DPMSolverSampler(eta=1.0),
        samplers.HeunSampler(),
    ],
)
def test_steps_of_no_length_change_nothing(sampler: samplers.Sampler) -> None:
    """As many as one likes where the log-SNR is clipped, e.g. at the start, and what follows is as without them."""

    def predict(z: jax.Array, log_snr: jax.Array) -> samplers.Estimate:
        return samplers.estimate_from_x0(jnp.tanh(z), z, log_snr)

    def run(log_snrs: list[float]) -> np.ndarray:
        z = start
        x0_before = jnp.zeros_like(z)
        for t, s, before in zip(log_snrs, log_snrs[1:], [-jnp.inf, *log_snrs], strict=False):
            step = samplers.Step(jnp.full(2, t), jnp.full(2, s), jnp.full(2, before))
            z, x0_before = sampler.step(predict, z, step, 0.5 * start, x0_before)
        return np.asarray(z)

    start = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    np.testing.assert_allclose(run([-5.0, -5.0, -5.0, -5.0]), start, atol=1e-6)
    np.testing.assert_allclose(run([-5.0, -5.0, -5.0, 0.5]), run([-5.0, 0.5]), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.DDPMSampler(gamma=1.5), "gamma"),
        (lambda: samplers.DDIMSampler(eta=-0.1), "DDIMSampler.eta"),
        (lambda: samplers.DPMSolverSampler(eta=2.0), "DPMSolverSampler.eta"),
        (lambda: samplers.HeunSampler(churn=0.5), "S_churn divided by the number of steps"),
        (lambda: samplers.HeunSampler(churn_min=2.0, churn_max=1.0), "churn_min"),
        (lambda: samplers.HeunSampler(noise_scale=0.0), "noise_scale"),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
