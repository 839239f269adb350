"""Whole trajectories against k-diffusion's own, which are in tests/golden/k_diffusion; its x is z / alpha here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.samplers import (
    DDIMSampler,
    DDPMSampler,
    DPMSolverSampler,
    Estimate,
    HeunSampler,
    Sampler,
    Step,
    estimate_from_x0,
)
from imagen_jax.diffusion.schedules import EDMSchedule

STEPS = np.load(Path(__file__).parents[1] / "golden" / "k_diffusion" / "steps.npz")
CASES: list[tuple[str, Sampler]] = [
    ("euler", DDIMSampler()),
    ("euler_ancestral", DDPMSampler(gamma=0.0)),
    ("euler_ancestral", DDIMSampler(eta=1.0)),
    ("euler_ancestral_0.5", DDIMSampler(eta=0.5)),
    ("heun", HeunSampler()),
    # s_churn 3 over 10 steps.
    ("heun_churn", HeunSampler(churn=0.3, churn_min=0.05, churn_max=50.0, noise_scale=1.007)),
    ("dpmpp_2m", DPMSolverSampler()),
    ("dpmpp_2m_sde_0", DPMSolverSampler(eta=0.0)),
    ("dpmpp_2m_sde_0.5", DPMSolverSampler(eta=0.5)),
    ("dpmpp_2m_sde_1", DPMSolverSampler(eta=1.0)),
]


def two_gaussians(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """The network of the golden file: E[x0 | x0 + sigma noise = x]; see its README.md."""
    densities, means = [], []
    for weight, mean, std in ((0.3, -0.6, 0.1), (0.7, 0.4, 0.25)):
        kept = std**2 / (std**2 + sigma**2)
        densities.append(jnp.log(weight * jnp.sqrt(kept) / std) - kept * (x - mean) ** 2 / (2 * std**2))
        means.append(mean + kept * (x - mean))
    second = jax.nn.sigmoid(densities[1] - densities[0])
    return (1 - second) * means[0] + second * means[1]


def questions(sampler: Sampler, dtype: type) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """x and sigma of the first call of every step, and the end, which is x0_hat at the last of them."""
    sigmas = STEPS["sigmas"][:-1]
    log_snrs = -2 * np.log(sigmas)
    asked: list[tuple[np.ndarray, float]] = []
    new_step = True

    def predict(z: jax.Array, log_snr: jax.Array) -> Estimate:
        nonlocal new_step
        sigma = jnp.exp(-0.5 * log_snr)[:, None]
        x = z * jnp.sqrt(1 + sigma**2)
        if new_step:
            asked.append((np.asarray(x), float(sigma[0, 0])))
        new_step = False
        return estimate_from_x0(two_gaussians(x, sigma), z, log_snr)

    def rows(value: float) -> jax.Array:
        return jnp.full(2, value, dtype)

    z = jnp.asarray(STEPS["start"] / np.sqrt(1 + sigmas[0] ** 2), dtype)
    x0_before = jnp.zeros_like(z)
    triples = zip(log_snrs, log_snrs[1:], [-np.inf, *log_snrs], strict=False)
    for (t, s, before), noise in zip(triples, STEPS["noise"], strict=False):
        new_step = True
        step = Step(rows(t), rows(s), rows(before))
        z, x0_before = sampler.step(predict, z, step, jnp.asarray(noise, dtype), x0_before)
        assert z.dtype == x0_before.dtype == dtype
    new_step = True
    final = np.asarray(predict(z, rows(log_snrs[-1])).x0)
    xs, sigma_hats = zip(*asked, strict=True)
    return list(xs), list(sigma_hats), final


@pytest.mark.parametrize(("case", "sampler"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_trajectory_is_that_of_k_diffusion(case: str, sampler: Sampler, dtype: type, tolerance: float) -> None:
    with jax.enable_x64(dtype is np.float64):
        xs, sigma_hats, final = questions(sampler, dtype)
    np.testing.assert_allclose(sigma_hats, STEPS[f"{case}/sigma_hat"], rtol=tolerance)
    for got, expected in zip([*xs, final], [*STEPS[f"{case}/x"], STEPS[f"{case}/final"]], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, abs(expected).max()))


def test_edm_times_are_karras_sigmas() -> None:
    with jax.enable_x64(True):
        log_snr = EDMSchedule(sigma_min=0.002, sigma_max=80.0, rho=7.0).log_snr(jnp.linspace(1.0, 0.0, 10))
    np.testing.assert_allclose(np.exp(-0.5 * np.asarray(log_snr)), STEPS["sigmas"][:-1], rtol=1e-12)


def test_churned_and_plain_trajectories_differ() -> None:
    """So that each case above is one: what the settings change is far more than the tolerance."""
    cases = {case for case, _ in CASES} - {"dpmpp_2m_sde_0"}
    finals = np.stack([STEPS[f"{case}/final"] for case in sorted(cases)])
    distances = np.abs(finals[:, None] - finals[None]).max(axis=(2, 3)) + np.eye(len(finals))
    assert distances.min() > 1e-3
