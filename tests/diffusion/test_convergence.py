"""Samplers against the exact answer for Gaussian data, in float64: order of convergence, and where noisy ones end."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverSampler, HeunSampler, Sampler
from imagen_jax.diffusion.schedules import CosineSchedule, EDMSchedule, Schedule
from tests.diffusion import gaussian

NUMBERS = [16, 32, 64, 128, 256]
STARTS = np.array([[-2.0], [0.7], [3.0]])


def log_snrs(schedule: Schedule, num_steps: int) -> np.ndarray:
    """Of num_steps steps over a schedule's times, without its clipped ends."""
    last, first = (0.0, 1.0) if isinstance(schedule, EDMSchedule) else (0.02, 0.98)
    return np.asarray(schedule.log_snr(jnp.linspace(first, last, num_steps + 1)))


@pytest.mark.parametrize(
    ("sampler", "schedule", "order"),
    [
        (DDIMSampler(), CosineSchedule(), 1),
        (DDIMSampler(), EDMSchedule(), 1),
        (DPMSolverSampler(), CosineSchedule(), 2),
        (DPMSolverSampler(), EDMSchedule(), 2),
        (HeunSampler(), CosineSchedule(), 2),
        (HeunSampler(), EDMSchedule(), 2),
    ],
)
def test_order_of_convergence_to_the_probability_flow(sampler: Sampler, schedule: Schedule, order: int) -> None:
    errors = []
    with jax.enable_x64(True):
        for number in NUMBERS:
            grid = log_snrs(schedule, number)
            exact = gaussian.flow(STARTS, grid[0], grid[-1])
            errors.append(float(np.abs(gaussian.solve(sampler, grid, STARTS) - exact).max()))
    assert gaussian.slope(NUMBERS, errors) == pytest.approx(order, abs=0.15)
    # Between the two finest grids, where terms of higher order are gone.
    assert np.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.07)
    assert errors[-1] < (0.02 if order == 1 else 5e-4)


STOCHASTIC: dict[str, tuple[Callable[[int], Sampler], Schedule, int]] = {
    "DDPM, posterior variance": (lambda n: DDPMSampler(), CosineSchedule(), 1),
    "DDPM, forward variance": (lambda n: DDPMSampler(gamma=1.0), CosineSchedule(), 1),
    "DDIM, eta 1": (lambda n: DDIMSampler(eta=1.0), CosineSchedule(), 1),
    "DDIM, eta 0.5": (lambda n: DDIMSampler(eta=0.5), CosineSchedule(), 1),
    "2M, eta 1": (lambda n: DPMSolverSampler(eta=1.0), CosineSchedule(), 2),
    "2M, eta 0.5": (lambda n: DPMSolverSampler(eta=0.5), CosineSchedule(), 2),
    "Heun, S_churn 6": (lambda n: HeunSampler(churn=6 / n), EDMSchedule(), 2),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noisy_samplers_end_in_the_distribution_of_the_data(name: str) -> None:
    make, schedule, order = STOCHASTIC[name]
    errors = []
    with jax.enable_x64(True):
        for number in NUMBERS:
            grid = log_snrs(schedule, number)
            mean, variance = gaussian.final_moments(make(number), grid)
            true_mean, true_variance = gaussian.moments(grid[-1])
            # A path through the means has x0_hat = MEAN throughout, on which no step errs.
            assert mean == pytest.approx(true_mean, abs=1e-12)
            errors.append(abs(variance - true_variance))
    assert np.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.15)
    assert errors[-1] < (0.01 if order == 1 else 1e-3)


@pytest.mark.parametrize("sampler", [DDIMSampler(), DPMSolverSampler(), HeunSampler()])
@pytest.mark.parametrize("gap", [0.5, 4.0, 12.0])
def test_a_single_image_is_reached_in_one_step(sampler: Sampler, gap: float) -> None:
    """Data that are one point: the flow is a straight line, which no step leaves however long it is."""
    with jax.enable_x64(True):
        grid = np.array([-6.0, -6.0 + gap])
        got = gaussian.solve(sampler, grid, STARTS, std=0.0)
    np.testing.assert_allclose(got, gaussian.flow(STARTS, grid[0], grid[1], std=0.0), rtol=1e-12)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPMSampler(),
        DDIMSampler(eta=0.3),
        DDIMSampler(eta=1.0),
        DPMSolverSampler(eta=0.4),
        DPMSolverSampler(eta=1.0),
        HeunSampler(churn=0.3),
    ],
)
def test_steps_to_a_single_image_have_its_marginals_exactly(sampler: Sampler) -> None:
    """With the true x0 every step is a draw from alpha_s x0 + sigma_s noise, in however few steps."""
    with jax.enable_x64(True):
        grid = np.array([-6.0, -1.0, 0.5, 5.0])
        got = gaussian.final_moments(sampler, grid, std=0.0)
    np.testing.assert_allclose(got, gaussian.moments(grid[-1], std=0.0), rtol=1e-12)


def test_the_forward_variance_is_too_large_for_a_single_image() -> None:
    """gamma is between the variances that are right for one point (0) and for a unit Gaussian (1)."""
    with jax.enable_x64(True):
        variances = [
            gaussian.final_moments(DDPMSampler(gamma=gamma), np.array([-1.0, 1.0]), std=0.0)[1]
            for gamma in (0.0, 0.5, 1.0)
        ]
        unit = gaussian.final_moments(DDPMSampler(gamma=1.0), np.array([-1.0, 1.0]), std=1.0)[1]
    ratio, sigma2_t, sigma2_s = np.exp(-2.0), 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(1.0))
    added = (1 - ratio) * np.array([sigma2_s, np.sqrt(sigma2_s * sigma2_t), sigma2_t])
    kept = sigma2_s - added[0]
    np.testing.assert_allclose(variances, kept + added, rtol=1e-12)
    assert unit == pytest.approx(1.0, rel=1e-12)
