"""Schedules against their definitions, evaluated in float64."""

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.schedules import (
    CosineSchedule,
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    LinearSchedule,
    LogNormalSchedule,
    Schedule,
    SigmoidSchedule,
)
from imagen_jax.errors import UserError

STEPS = np.load(Path(__file__).parents[1] / "golden" / "c_schedulers" / "steps.npz")
TIMES = np.linspace(0.02, 0.98, 25)


def log_snrs(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """In float32, as training and sampling ask for them."""
    out = schedule.log_snr(jnp.asarray(times, jnp.float32))
    assert out.dtype == jnp.float32
    return np.asarray(out, np.float64)


def test_cosine_alpha_is_a_cosine() -> None:
    alpha = np.sqrt(1 / (1 + np.exp(-log_snrs(CosineSchedule(), TIMES))))
    np.testing.assert_allclose(alpha, np.cos(np.pi * TIMES / 2), atol=2e-6)


@pytest.mark.parametrize(("limit", "shift"), [(20.0, 0.0), (34.0, 0.0), (80.0, 0.0), (20.0, 20.0), (40.0, -30.0)])
def test_cosine_is_exact_near_both_ends(limit: float, shift: float) -> None:
    times = np.array([0.0, 1e-30, 1e-7, 1e-4, 0.3, 0.5, 0.7, 0.9999, 1 - 2**-20, 1 - 2**-24, 1.0], np.float32)
    exact = times.astype(np.float64)
    with np.errstate(divide="ignore"):
        # cot(pi/2 - a) = tan(a): exact from either end.
        nearer = np.where(exact <= 0.5, exact, 1 - exact)
        value = np.where(exact <= 0.5, -1, 1) * 2 * np.log(np.tan(np.pi / 2 * nearer)) + shift
    got = log_snrs(CosineSchedule(max_log_snr=limit, shift=shift), times)
    np.testing.assert_allclose(got, np.clip(value, -limit, limit), atol=1e-4)


def test_linear_is_the_limit_of_a_thousand_betas() -> None:
    # alpha² of the discrete schedule with ever more steps, betas scaled so that their sum stays the same.
    num = 2_000_000
    betas = np.linspace(1e-4, 0.02, num) * 1000 / num
    alpha2 = np.exp(np.cumsum(np.log1p(-betas)))[(TIMES * num).astype(int) - 1]
    np.testing.assert_allclose(log_snrs(LinearSchedule(), TIMES), np.log(alpha2 / (1 - alpha2)), atol=1e-3)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.3), (-3.0, 1.0, 1.1)])
def test_sigmoid_is_algorithm_1(start: float, end: float, tau: float) -> None:
    def sigmoid(x: np.ndarray | float) -> np.ndarray:
        return 1 / (1 + np.exp(-np.asarray(x, np.float64)))

    first, last = sigmoid(start / tau), sigmoid(end / tau)
    alpha2 = (last - sigmoid((TIMES * (end - start) + start) / tau)) / (last - first)
    got = log_snrs(SigmoidSchedule(start=start, end=end, tau=tau), TIMES)
    np.testing.assert_allclose(got, np.log(alpha2 / (1 - alpha2)), atol=1e-5)


@pytest.mark.parametrize("tau", [0.7, 0.03, 0.001])
def test_a_narrow_sigmoid_is_finite_and_reaches_both_ends(tau: float) -> None:
    got = log_snrs(SigmoidSchedule(tau=tau), np.linspace(0, 1, 101))
    assert (got[0], got[50], got[-1]) == (20.0, pytest.approx(0.0, abs=1e-3), -20.0)
    assert (np.diff(got) <= 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_a_straight_line_and_shift_is_that_of_larger_images(shift: float) -> None:
    """r = sigma / (alpha + sigma) is t, and with a shift shift t / (1 + (shift - 1) t) (arXiv 2403.03206, eq. 23)."""
    ratio = np.exp(-log_snrs(FlowSchedule(shift=shift), TIMES) / 2)
    np.testing.assert_allclose(ratio / (1 + ratio), shift * TIMES / (1 + (shift - 1) * TIMES), rtol=1e-6)


def test_edm_is_equation_5() -> None:
    num, rho, sigma_min, sigma_max = 18, 7.0, 0.002, 80.0
    i = np.arange(num)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + i / (num - 1) * (low - high)) ** rho
    got = np.exp(-log_snrs(EDMSchedule(), 1 - i / (num - 1)) / 2)
    np.testing.assert_allclose(got, sigmas, rtol=2e-5)
    with jax.enable_x64(True):
        exact = EDMSchedule(sigma_min=0.01, sigma_max=50.0, rho=1.0).log_snr(jnp.linspace(0.0, 1.0, 7))
    np.testing.assert_allclose(np.exp(-np.asarray(exact) / 2), np.linspace(0.01, 50, 7), rtol=1e-12)


def test_log_normal_has_the_quantiles_of_its_normal() -> None:
    schedule = LogNormalSchedule(mean=-0.4, std=0.9)
    expected = [-2 * NormalDist(-0.4, 0.9).inv_cdf(t) for t in TIMES]
    np.testing.assert_allclose(log_snrs(schedule, TIMES), expected, atol=2e-5)


@pytest.mark.parametrize(("betas", "name"), [("cosine", "squaredcos_cap_v2"), ("linear", "linear")])
def test_discrete_tables_are_those_of_diffusers(betas: str, name: str) -> None:
    alpha2 = STEPS[f"alphas_cumprod/{name}"].astype(np.float64)
    got = log_snrs(DiscreteSchedule(betas=betas), np.arange(1, 1001) / 1000)
    # alpha² of their float32 product, and from log-SNR: where 1 - alpha² is tiny it has lost the digits.
    np.testing.assert_allclose(1 / (1 + np.exp(-got)), alpha2, rtol=2e-5)
    kept = (1 - alpha2) > 0.01
    assert kept.sum() > 900
    theirs = np.log(alpha2 / (1 - alpha2))
    np.testing.assert_allclose(got[kept], theirs[kept], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num", [1000, 4000])
def test_every_discrete_time_is_its_own_entry(num: int) -> None:
    """All k / num in float32 have different values, those of the definition; times in between have the later one's."""
    schedule = DiscreteSchedule(betas="linear", num_timesteps=num)
    betas = np.linspace(0.1, 20, num) / num
    alpha2 = np.cumprod(1 - betas)
    k = np.arange(1, num + 1)
    np.testing.assert_allclose(log_snrs(schedule, k / num), np.log(alpha2 / (1 - alpha2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(log_snrs(schedule, (k - 0.5) / num), log_snrs(schedule, k / num))
    assert log_snrs(schedule, np.zeros(1))[0] > log_snrs(schedule, np.array([1 / num]))[0] + 1


SHAPES: list[Schedule] = [
    CosineSchedule(),
    CosineSchedule(shift=-2.0),
    LinearSchedule(),
    SigmoidSchedule(),
    SigmoidSchedule(start=0.0, tau=0.5),
    FlowSchedule(shift=3.0),
    LogNormalSchedule(),
    EDMSchedule(),
    DiscreteSchedule(betas="cosine"),
    DiscreteSchedule(betas="linear"),
]


@pytest.mark.parametrize("schedule", SHAPES, ids=repr)
def test_decreasing_finite_and_clipped(schedule: Schedule) -> None:
    log_snr = log_snrs(schedule, np.linspace(0.0, 1.0, 1001))
    assert np.isfinite(log_snr).all()
    assert (np.diff(log_snr) <= 0).all()
    # The clean image of a table has a placeholder.
    largest = abs(log_snr[1:]).max() if isinstance(schedule, DiscreteSchedule) else abs(log_snr).max()
    assert largest <= getattr(schedule, "max_log_snr", 20.0) + 1e-4
    assert (np.diff(log_snr[50:-50]) < 0).all()


def test_shift_moves_the_whole_curve() -> None:
    moved = log_snrs(CosineSchedule(shift=-1.5), TIMES) - log_snrs(CosineSchedule(), TIMES)
    np.testing.assert_allclose(moved, -1.5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -3.0, 500.0, float("nan")])
@pytest.mark.parametrize("make", [CosineSchedule, LinearSchedule, SigmoidSchedule, FlowSchedule, LogNormalSchedule])
def test_impossible_clip_is_refused(make: Callable[..., Schedule], value: float) -> None:
    with pytest.raises(UserError, match="max_log_snr"):
        make(max_log_snr=value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SigmoidSchedule(start=3.0, end=-3.0), "start"),
        (lambda: SigmoidSchedule(tau=0.0), "tau"),
        (lambda: FlowSchedule(shift=0.0), "FlowSchedule.shift"),
        (lambda: EDMSchedule(sigma_min=80.0, sigma_max=0.002), "sigma_min"),
        (lambda: EDMSchedule(sigma_min=0.0), "sigma_min"),
        (lambda: EDMSchedule(rho=-7.0), "rho"),
        (lambda: LogNormalSchedule(std=0.0), "LogNormalSchedule.std"),
        (lambda: DiscreteSchedule(betas="sigmoid"), "'cosine' or 'linear'"),
        (lambda: DiscreteSchedule(num_timesteps=20), "num_timesteps"),
        (lambda: DiscreteSchedule(num_timesteps=2**32), r"num_timesteps \(4294967296\) must be at most"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
