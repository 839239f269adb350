"""Sampler steps against diffusers' schedulers on fixed noise, and against Gaussian algebra in float64."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, samplers, thresholding
from imagen_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "c_schedulers"
CASES = json.loads((GOLDEN / "cases.json").read_text())
STEPS = np.load(GOLDEN / "steps.npz")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def _ours(case: dict[str, Any]) -> bool:
    """Cases without what is not part of a sampler here: learned variance, eta > 0, diffusers' threshold cap."""
    config = case["config"]
    if config["thresholding"] or config.get("variance_type") == "learned_range":
        return False
    return case.get("eta", 0.0) == 0.0


SELECTED = [case for case in CASES if _ours(case)]


def test_the_golden_file_still_has_the_cases() -> None:
    assert len(SELECTED) == 14


@pytest.mark.parametrize("case", SELECTED, ids=[case["case"] for case in SELECTED])
def test_step_matches_diffusers(case: dict[str, Any]) -> None:
    config = case["config"]
    alpha2 = STEPS[f"alphas_cumprod/{config['beta_schedule']}"].astype(np.float64)
    sampler: samplers.Sampler = samplers.DDIMSampler()
    if case["case"].startswith("ddpm"):
        sampler = samplers.DDPMSampler(gamma=0.0 if config["variance_type"] == "fixed_small" else 1.0)
    rule = "static" if config["clip_sample"] else "none"
    arrays = {name: STEPS[f"{case['case']}/{name}"] for name in ("model_output", "sample", "noise", "prev_sample")}
    for i, (t, s) in enumerate(zip(case["timesteps"], case["prev_timesteps"], strict=True)):
        batch = arrays["sample"].shape[1]
        log_snr = jnp.full(batch, np.log(alpha2[t] / (1 - alpha2[t])), jnp.float32)
        sample = jnp.asarray(arrays["sample"][i])
        output = jnp.asarray(arrays["model_output"][i])
        x0_hat, _ = process.to_x0_eps(PREDICTIONS[config["prediction_type"]], output, sample, log_snr)
        x0_hat = thresholding.threshold(x0_hat, rule)
        if s < 0:  # The end of the grid: the estimate itself.
            got = x0_hat
        else:
            log_snr_s = jnp.full(batch, np.log(alpha2[s] / (1 - alpha2[s])), jnp.float32)
            got = sampler.step(sample, x0_hat, log_snr, log_snr_s, jnp.asarray(arrays["noise"][i]))
        expected = arrays["prev_sample"][i]
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, abs(expected).max()))


def test_posterior_is_bayes_rule() -> None:
    """Mean and variance from conditioning the joint Gaussian of (z_s, z_t) given x0, in float64."""
    log_snr_t, log_snr_s, x0, z_t = -1.2, 0.7, 0.3, -0.8
    alpha_t, alpha_s = (np.sqrt(1 / (1 + np.exp(-v))) for v in (log_snr_t, log_snr_s))
    var_t, var_s = 1 - alpha_t**2, 1 - alpha_s**2
    ratio = alpha_t / alpha_s  # z_t = ratio z_s + noise, so cov(z_s, z_t) = ratio var_s
    mean = alpha_s * x0 + ratio * var_s / var_t * (z_t - alpha_t * x0)
    variance = var_s - (ratio * var_s) ** 2 / var_t
    got_mean, got_variance = samplers.posterior_moments(
        jnp.full((1, 1), z_t), jnp.full((1, 1), x0), jnp.full((1,), log_snr_t), jnp.full((1,), log_snr_s)
    )
    np.testing.assert_allclose(got_mean[0, 0], mean, atol=1e-7)
    np.testing.assert_allclose(got_variance[0, 0], variance, rtol=2e-6)


def test_ddpm_with_the_true_x0_ends_in_the_marginal() -> None:
    """Ancestral steps with the exact posterior keep the distribution: alpha_s x0 + sigma_s noise."""
    rng = np.random.default_rng(0)
    x0 = jnp.full((20_000, 1), 0.5)
    log_snrs = np.linspace(-6, 3, 12).astype(np.float32)
    rows = jnp.ones(len(x0))
    z = process.diffuse(x0, jnp.asarray(rng.normal(size=x0.shape), jnp.float32), log_snrs[0] * rows)
    for t, s in zip(log_snrs, log_snrs[1:], strict=False):
        noise = jnp.asarray(rng.normal(size=x0.shape), jnp.float32)
        z = samplers.DDPMSampler().step(z, x0, t * rows, s * rows, noise)
    alpha, sigma = (float(v) for v in process.alpha_sigma(jnp.float32(log_snrs[-1])))
    assert abs(float(z.mean()) - alpha * 0.5) < 4 * sigma / np.sqrt(len(x0))
    assert abs(float(z.std()) - sigma) < 4 * sigma / np.sqrt(2 * len(x0))


def test_gamma_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="gamma"):
        samplers.DDPMSampler(gamma=1.5)
