"""The process and its predictions: closed forms in float64, all round trips, and diffusers' outputs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process
from imagen_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "c_schedulers"
LOG_SNR = jnp.array([-9.0, -2.0, 0.0, 1.3, 6.0])


def _pair() -> tuple[jax.Array, jax.Array]:
    x0, eps = np.random.default_rng(0).normal(size=(2, 5, 3, 3, 2)).astype(np.float32)
    return jnp.asarray(x0), jnp.asarray(eps)


def test_alpha_and_sigma_are_on_the_unit_circle_at_the_given_ratio() -> None:
    alpha, sigma = (np.asarray(a, np.float64) for a in process.alpha_sigma(LOG_SNR))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.log(alpha**2 / sigma**2), LOG_SNR, atol=1e-5)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_a_perfect_prediction_gives_back_x0_and_eps(prediction: str) -> None:
    x0, eps = _pair()
    z_t = process.diffuse(x0, eps, LOG_SNR)
    output = process.target(prediction, x0, eps, LOG_SNR)
    x0_hat, eps_hat = process.to_x0_eps(prediction, output, z_t, LOG_SNR)
    # Dividing by alpha (or sigma) magnifies float32 rounding of z_t by its inverse.
    log_snr = np.asarray(LOG_SNR)[:, None, None, None]
    np.testing.assert_array_less(np.abs(x0_hat - x0) / np.exp(np.maximum(-log_snr, 0) / 2), 3e-6)
    np.testing.assert_array_less(np.abs(eps_hat - eps) / np.exp(np.maximum(log_snr, 0) / 2), 3e-6)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_any_prediction_satisfies_the_process_equation(prediction: str) -> None:
    """z_t = alpha x0_hat + sigma eps_hat holds whatever the network says."""
    output, z_t = _pair()
    x0_hat, eps_hat = process.to_x0_eps(prediction, output, z_t, LOG_SNR)
    np.testing.assert_allclose(process.diffuse(x0_hat, eps_hat, LOG_SNR), z_t, atol=1e-4)


def test_flow_is_the_velocity_of_a_straight_line() -> None:
    """z / (alpha + sigma) is (1 - r) x0 + r eps at r = sigma / (alpha + sigma); its derivative in r is the target."""
    with jax.enable_x64(True):
        x0, eps = np.random.default_rng(0).normal(size=(2, 5, 3))
        # r from 0.1 to 0.9, and a step on from each.
        ratio, step = np.linspace(0.1, 0.9, 5), 1e-6
        points = []
        for r in (ratio, ratio + step):
            alpha, sigma = (1 - r) / np.hypot(1 - r, r), r / np.hypot(1 - r, r)
            z_t = process.diffuse(jnp.asarray(x0), jnp.asarray(eps), jnp.asarray(2 * np.log(alpha / sigma)))
            points.append(np.asarray(z_t) / (alpha + sigma)[:, None])
        velocity = process.target("flow", jnp.asarray(x0), jnp.asarray(eps), jnp.asarray(2 * np.log(alpha / sigma)))
    np.testing.assert_allclose(points[0], (1 - ratio)[:, None] * x0 + ratio[:, None] * eps, rtol=1e-12)
    np.testing.assert_allclose((points[1] - points[0]) / step, velocity, atol=1e-8)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_error_of_x0_for_an_error_of_the_prediction(prediction: str) -> None:
    """x0_hat moves with the output as the scale says, measured by moving the output by one unit."""
    with jax.enable_x64(True):
        log_snr = jnp.asarray(LOG_SNR, jnp.float64)
        z_t = jnp.zeros((5, 1))
        low, high = (process.to_x0_eps(prediction, jnp.full((5, 1), value), z_t, log_snr)[0] for value in (2.0, 3.0))
        scale = process.x0_error_scale(prediction, log_snr)
        np.testing.assert_allclose(np.square(high - low)[:, 0], scale, rtol=1e-12)


def test_noising_and_velocity_match_diffusers() -> None:
    steps = np.load(GOLDEN / "steps.npz")
    for name in ("squaredcos_cap_v2", "linear", "scaled_linear"):
        alpha2 = steps[f"alphas_cumprod/{name}"].astype(np.float64)[steps["q/t"]]
        log_snr = jnp.asarray(np.log(alpha2 / (1 - alpha2)), jnp.float32)
        x0, noise = jnp.asarray(steps["q/x0"]), jnp.asarray(steps["q/noise"])
        z_t = process.diffuse(x0, noise, log_snr)
        if np.allclose(z_t, steps["q/xt"], atol=1e-5):
            velocity = process.target("v", x0, noise, log_snr)
            np.testing.assert_allclose(velocity, steps["q/velocity"], atol=1e-5)
            return
    pytest.fail("no beta schedule of the golden file reproduces its noised samples")


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(UserError, match="one of eps, x0, v, flow"):
        process.check_prediction("noise")
    with pytest.raises(UserError, match="'noise'"):
        process.x0_error_scale("noise", LOG_SNR)
