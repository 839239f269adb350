"""Weightings against their published formulas, and the variational bound against Gaussian and pixel algebra."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import losses, process
from imagen_jax.diffusion.schedules import CosineSchedule, DiscreteSchedule, FlowSchedule, LinearSchedule, Schedule
from imagen_jax.errors import UserError

LOG_SNRS = np.linspace(-9.0, 9.0, 13)
SNR = np.exp(LOG_SNRS)
EDM_SIGMA = np.exp(-LOG_SNRS / 2)

# Each as its paper has it: the weight of the squared error of eps_hat, or of x0_hat.
PUBLISHED: dict[str, tuple[losses.Weighting, str, np.ndarray]] = {
    "DDPM, eq. 14": (losses.SNRWeighting(), "eps", np.ones(13)),
    "min-SNR, table 1, eps": (losses.MinSNRWeighting(gamma=5.0), "eps", np.minimum(SNR, 5) / SNR),
    "min-SNR, eq. 7, x0": (losses.MinSNRWeighting(gamma=5.0), "x0", np.minimum(SNR, 5)),
    "min-SNR, section 3.4, v": (losses.MinSNRWeighting(gamma=5.0), "v", np.minimum(SNR, 5) / (SNR + 1)),
    "P2, eq. 8": (losses.P2Weighting(gamma=0.5, k=2.0), "eps", 1 / (2 + SNR) ** 0.5),
    "sigmoid": (losses.SigmoidWeighting(bias=1.5), "eps", 1 / (1 + np.exp(LOG_SNRS - 1.5))),
    "EDM, table 1": (losses.EDMWeighting(sigma_data=0.4), "x0", (EDM_SIGMA**2 + 0.4**2) / (EDM_SIGMA * 0.4) ** 2),
}
WEIGHTINGS = [
    losses.SNRWeighting(),
    losses.MinSNRWeighting(gamma=3.0),
    losses.P2Weighting(gamma=0.7, k=0.5),
    losses.SigmoidWeighting(bias=-1.0),
    losses.EDMWeighting(sigma_data=0.3),
]


def test_loss_is_the_mean_of_squares_of_each_example() -> None:
    output, target = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
    expected = ((output.astype(np.float64) - target) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(losses.per_example_mse(jnp.asarray(output), jnp.asarray(target)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_weight_is_the_published_one(name: str) -> None:
    weighting, prediction, expected = PUBLISHED[name]
    with jax.enable_x64(True):
        got = np.asarray(weighting.weight(prediction, jnp.asarray(LOG_SNRS)))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_a_weighted_error_is_the_same_in_every_space(weighting: losses.Weighting) -> None:
    """One wrong x0_hat, told in four ways: the loss is one number."""
    with jax.enable_x64(True):
        x0, eps, wrong = jnp.asarray(np.random.default_rng(0).normal(size=(3, 13, 4)))
        log_snr = jnp.asarray(LOG_SNRS)
        z_t = process.diffuse(x0, eps, log_snr)
        eps_wrong = process.eps_from_x0(wrong, z_t, log_snr)
        found = []
        for prediction in process.PREDICTIONS:
            output = process.target(prediction, wrong, eps_wrong, log_snr)
            target = process.target(prediction, x0, eps, log_snr)
            error = losses.per_example_mse(output, target)
            found.append(np.asarray(weighting.weight(prediction, log_snr) * error))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-9)
    assert (found[0] > 0).all()


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_the_papers_loss_has_no_weight(prediction: str) -> None:
    weights = losses.SimpleWeighting().weight(prediction, jnp.asarray(LOG_SNRS, jnp.float32))
    np.testing.assert_array_equal(weights, np.ones(13))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.MinSNRWeighting(gamma=0.0), "MinSNRWeighting.gamma"),
        (lambda: losses.P2Weighting(gamma=-1.0), "P2Weighting"),
        (lambda: losses.P2Weighting(k=0.0), "P2Weighting"),
        (lambda: losses.EDMWeighting(sigma_data=0.0), "sigma_data"),
    ],
)
def test_impossible_weightings_are_refused(make: Callable[[], losses.Weighting], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def bound(x0: np.ndarray, x0_hat: Any, fraction: Any, t: np.ndarray, schedule: Schedule | None = None) -> np.ndarray:
    """`variational_bound` of rows of values, for 1000 steps."""
    images, estimates, fractions = (
        jnp.asarray(np.broadcast_to(array, np.shape(x0)), float) for array in (x0, x0_hat, fraction)
    )
    times = jnp.asarray(t, float)
    return np.asarray(losses.variational_bound(images, estimates, fractions, times, schedule or DiscreteSchedule()))


@pytest.mark.parametrize("schedule", [DiscreteSchedule(), DiscreteSchedule(betas="linear"), CosineSchedule()], ids=repr)
def test_bound_is_the_divergence_of_two_gaussians(schedule: Schedule) -> None:
    """From betas, as arXiv 2102.09672 has it: eq. 10, 11 of the posterior, eq. 15 of the learned variance."""
    entries = np.array([2, 3, 40, 500, 900, 999])
    rng = np.random.default_rng(0)
    x0, x0_hat, fraction = (*rng.uniform(-1, 1, size=(2, 6, 5)), rng.uniform(-0.5, 1.5, size=(6, 5)))
    with jax.enable_x64(True):
        alpha2_t, alpha2_s = (
            1 / (1 + np.exp(-np.asarray(schedule.log_snr(jnp.asarray(k / 1000)), np.float64)))[:, None]
            for k in (entries, entries - 1)
        )
        got = bound(x0, x0_hat, fraction, entries / 1000, schedule)
    beta = 1 - alpha2_t / alpha2_s
    beta_tilde = (1 - alpha2_s) / (1 - alpha2_t) * beta
    mean_difference = np.sqrt(alpha2_s) * beta / (1 - alpha2_t) * (x0 - x0_hat)
    variance = np.exp(fraction * np.log(beta) + (1 - fraction) * np.log(beta_tilde))
    divergence = 0.5 * (np.log(variance / beta_tilde) + (beta_tilde + mean_difference**2) / variance - 1)
    np.testing.assert_allclose(got, divergence.mean(1) / np.log(2), rtol=2e-6)


def test_the_last_step_is_the_likelihood_of_pixels() -> None:
    """At the end var_large is beta_1 and var_small the posterior variance of the step before."""
    schedule = DiscreteSchedule(betas="linear")
    beta_1, beta_2 = 1e-4, 1e-4 + (0.02 - 1e-4) / 999
    small = beta_1 / (1 - (1 - beta_1) * (1 - beta_2)) * beta_2
    x0, x0_hat, fraction = np.array([[-1.0, 1.0, 31 / 127.5 - 1]]), np.array([[-0.99, 1.004, -0.75]]), 0.3
    std = np.exp(0.5 * (fraction * np.log(beta_1) + (1 - fraction) * np.log(small)))
    pixels = [NormalDist(mean, std) for mean in x0_hat[0]]
    masses = [
        pixels[0].cdf(-1 + 1 / 255),
        1 - pixels[1].cdf(1 - 1 / 255),
        pixels[2].cdf(x0[0, 2] + 1 / 255) - pixels[2].cdf(x0[0, 2] - 1 / 255),
    ]
    with jax.enable_x64(True):
        got = bound(x0, x0_hat, fraction, np.array([0.001]), schedule)
    np.testing.assert_allclose(got[0], -np.mean(np.log2(masses)), rtol=1e-5)


@pytest.mark.parametrize("num", [250, 500, 4000])
def test_the_bound_has_the_steps_of_its_schedule(num: int) -> None:
    """Term of entry k from the table's betas, and the likelihood at entry 1: as many steps as the table has entries."""
    schedule, entry = DiscreteSchedule(betas="linear", num_timesteps=num), num // 3
    betas = np.linspace(0.1, 20.0, num) / num
    alpha2 = np.cumprod(1 - betas)
    beta, alpha2_t, alpha2_s = betas[entry - 1], alpha2[entry - 1], alpha2[entry - 2]
    beta_tilde = (1 - alpha2_s) / (1 - alpha2_t) * beta
    x0, x0_hat, fraction = np.array([[0.3, -0.8]]), np.array([[0.1, -0.7]]), 0.4
    variance = beta**fraction * beta_tilde ** (1 - fraction)
    difference = np.sqrt(alpha2_s) * beta / (1 - alpha2_t) * (x0 - x0_hat)
    divergence = 0.5 * (np.log(variance / beta_tilde) + (beta_tilde + difference**2) / variance - 1)
    small = betas[0] / (1 - alpha2[1]) * betas[1]
    pixel = NormalDist(x0_hat[0, 0], np.sqrt(betas[0] ** fraction * small ** (1 - fraction)))
    mass = max(pixel.cdf(x0[0, 0] + 1 / 255) - pixel.cdf(x0[0, 0] - 1 / 255), 1e-12)
    with jax.enable_x64(True):
        got = bound(x0, x0_hat, fraction, np.array([entry / num]), schedule)
        last = bound(x0[:, :1], x0_hat[:, :1], fraction, np.array([1 / num]), schedule)
    # The table holds log-SNRs in float32; a step's term is made of their difference, which more entries make smaller.
    np.testing.assert_allclose(got, divergence.mean(1) / np.log(2), rtol=1e-5 * max(1, num / 1000))
    np.testing.assert_allclose(last, -np.log2(mass), rtol=1e-5)


@pytest.mark.parametrize(
    "schedule",
    [
        DiscreteSchedule(num_timesteps=250),
        DiscreteSchedule(num_timesteps=4000),
        # Clipped at the first two of a thousand times: log-SNR 12.9 and 11.5.
        CosineSchedule(max_log_snr=5.0),
        LinearSchedule(max_log_snr=1.0),
        FlowSchedule(max_log_snr=80.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("t", [1e-6, 0.0005, 0.001, 0.002, 0.004, 0.3, 1.0])
def test_its_gradient_is_finite_at_every_time(schedule: Schedule, t: float) -> None:
    x0, x0_hat, fraction = np.random.default_rng(1).uniform(-1, 1, size=(3, 2, 4, 4, 3)).astype(np.float32)

    def total(share: jax.Array) -> jax.Array:
        return losses.variational_bound(jnp.asarray(x0), jnp.asarray(x0_hat), share, jnp.full(2, t), schedule).sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(3 * fraction))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.01), (-0.999, 0.2), (1.3, 0.05), (0.0, 2.0)])
def test_the_256_levels_have_all_of_the_mass(mean: float, std: float) -> None:
    with jax.enable_x64(True):
        levels = jnp.arange(256)[:, None] / 127.5 - 1
        logs = losses.discretised_log_likelihood(levels, jnp.full((256, 1), mean), jnp.full((256, 1), np.log(std)))
        assert float(jnp.exp(logs).sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("t", [0.001, 0.002, 0.3, 1.0])
def test_only_the_variance_is_trained(t: float) -> None:
    x0, x0_hat, fraction = np.random.default_rng(0).uniform(-1, 1, size=(3, 2, 4, 4, 3)).astype(np.float32)
    # Close enough for its likelihood to be more than the least that is counted.
    x0_hat = x0 + 0.01 * x0_hat
    of_x0, of_fraction = jax.grad(
        lambda estimate, share: losses.variational_bound(
            jnp.asarray(x0), estimate, share, jnp.full(2, t), DiscreteSchedule()
        ).sum(),
        argnums=(0, 1),
    )(jnp.asarray(x0_hat), jnp.asarray(fraction))
    np.testing.assert_array_equal(of_x0, np.zeros_like(x0))
    assert np.isfinite(of_fraction).all() and (np.asarray(of_fraction) != 0).any()


def test_the_best_variance_is_that_of_the_posterior_and_the_error() -> None:
    """The least divergence has var = var_small + (difference of the means)², here with it between the two bounds."""
    log_snr_t, log_snr_s = (float(DiscreteSchedule().log_snr(jnp.float32(k / 1000))) for k in (40, 39))
    alpha2_t, alpha2_s = (1 / (1 + np.exp(-value)) for value in (log_snr_t, log_snr_s))
    beta = 1 - alpha2_t / alpha2_s
    small = (1 - alpha2_s) / (1 - alpha2_t) * beta
    error = 0.4 * np.sqrt(beta - small) * (1 - alpha2_t) / (np.sqrt(alpha2_s) * beta)
    best = np.log((small + 0.16 * (beta - small)) / small) / np.log(beta / small)
    fractions = np.linspace(0, 1, 2001)[:, None]
    with jax.enable_x64(True):
        got = bound(np.zeros((2001, 1)), error, fractions, np.full(2001, 0.04))
    assert 0.1 < best < 0.9
    assert fractions[np.argmin(got), 0] == pytest.approx(best, abs=2e-3)
