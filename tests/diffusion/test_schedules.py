"""Schedules against their definitions, evaluated in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.schedules import CosineSchedule, LinearSchedule
from imagen_jax.errors import UserError

TIMES = np.linspace(0.02, 0.98, 25)


def test_cosine_alpha_is_a_cosine() -> None:
    log_snr = np.asarray(CosineSchedule().log_snr(jnp.asarray(TIMES, jnp.float32)), np.float64)
    alpha = np.sqrt(1 / (1 + np.exp(-log_snr)))
    np.testing.assert_allclose(alpha, np.cos(np.pi * TIMES / 2), atol=2e-6)


def test_linear_is_the_limit_of_a_thousand_betas() -> None:
    log_snr = np.asarray(LinearSchedule().log_snr(jnp.asarray(TIMES, jnp.float32)), np.float64)
    # alpha² of the discrete schedule with ever more steps, betas scaled so that their sum stays the same.
    num = 2_000_000
    betas = np.linspace(1e-4, 0.02, num) * 1000 / num
    alpha2 = np.exp(np.cumsum(np.log1p(-betas)))[(TIMES * num).astype(int) - 1]
    np.testing.assert_allclose(log_snr, np.log(alpha2 / (1 - alpha2)), atol=1e-3)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule(), CosineSchedule(shift=-2.0)])
def test_decreasing_finite_and_clipped(schedule) -> None:
    log_snr = np.asarray(schedule.log_snr(jnp.linspace(0.0, 1.0, 1001)))
    assert np.isfinite(log_snr).all()
    assert (np.diff(log_snr) <= 0).all()
    assert abs(log_snr).max() <= schedule.max_log_snr + 1e-4
    assert (np.diff(log_snr[50:-50]) < 0).all()


def test_shift_moves_the_whole_curve() -> None:
    t = jnp.asarray(TIMES, jnp.float32)
    moved = CosineSchedule(shift=-1.5).log_snr(t) - CosineSchedule().log_snr(t)
    np.testing.assert_allclose(moved, -1.5, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, -3.0, 500.0])
def test_impossible_clip_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="max_log_snr"):
        CosineSchedule(max_log_snr=value)
