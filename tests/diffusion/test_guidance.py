"""Guidance: the paper's rule, and its weight over the steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, process
from imagen_jax.errors import UserError

TIMES = np.linspace(1.0, 0.0, 11)[:-1]


def test_guidance_is_the_papers_line() -> None:
    cond, null = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 3))
    np.testing.assert_allclose(guidance.guide(cond, null, 1.0), cond, atol=1e-6)
    np.testing.assert_allclose(guidance.guide(cond, null, 0.0), null, atol=1e-6)
    np.testing.assert_allclose(guidance.guide(cond, null, 7.5), 7.5 * cond - 6.5 * null, atol=1e-5)


def test_guiding_x0_is_guiding_eps() -> None:
    with jax.enable_x64(True):
        cond, null, z_t = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
        log_snr = jnp.array([-1.0, 2.0])

        def x0_of(eps: jax.Array) -> jax.Array:
            return process.to_x0_eps("eps", eps, z_t, log_snr)[0]

        guided = guidance.guide(x0_of(cond), x0_of(null), 5.0)
        np.testing.assert_allclose(guided, x0_of(5.0 * cond - 4.0 * null), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_negative_weight_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match="guidance_weight"):
        guidance.check_guidance_weight(weight)


def test_the_papers_weight_is_constant() -> None:
    weights = guidance.ConstantGuidance().weights(7.5, TIMES)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights, [7.5] * 10)


def test_an_interval_has_the_weight_and_the_rest_has_none() -> None:
    weights = guidance.IntervalGuidance(t_min=0.25, t_max=0.65).weights(7.5, TIMES)
    # Times 1, 0.9, …, 0.1.
    np.testing.assert_array_equal(weights, [1, 1, 1, 1, 7.5, 7.5, 7.5, 7.5, 1, 1])
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(guidance.IntervalGuidance(t_min=0.0, t_max=1.0).weights(3.0, TIMES), [3.0] * 10)


def test_oscillating_weights_begin_after_the_constant_ones() -> None:
    weights = guidance.OscillatingGuidance(low=2.0, num_constant=3).weights(15.0, TIMES)
    np.testing.assert_array_equal(weights, [15, 15, 15, 2, 15, 2, 15, 2, 15, 2])
    np.testing.assert_array_equal(guidance.OscillatingGuidance().weights(15.0, TIMES), [1, 15] * 5)


def test_impossible_guidance_schedules_are_refused() -> None:
    for t_min, t_max in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.9, 0.1)):
        with pytest.raises(UserError, match="t_min"):
            guidance.IntervalGuidance(t_min=t_min, t_max=t_max)
    with pytest.raises(UserError, match="num_constant"):
        guidance.OscillatingGuidance(num_constant=-1)
    with pytest.raises(UserError, match="guidance_weight"):
        guidance.OscillatingGuidance(low=-1.0)
