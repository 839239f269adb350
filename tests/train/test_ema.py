"""The moving average against its closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.train.ema import ema_decay_at, ema_update


def test_average_of_a_sequence_is_the_weighted_sum():
    values = np.random.default_rng(1).normal(size=(20, 4))
    ema = {"w": jnp.asarray(values[0], jnp.float32)}
    for value in values[1:]:
        ema = ema_update(ema, {"w": jnp.asarray(value, jnp.float32)}, jnp.float32(0.9))
    weights = 0.1 * 0.9 ** np.arange(18, -1, -1)
    expected = 0.9**19 * values[0] + weights @ values[1:]
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "warmup", "expected"),
    [(0, True, 0.1), (8, True, 0.5), (10**6, True, 0.9999), (0, False, 0.9999), (89, True, 90 / 99)],
)
def test_decay_warms_up(step, warmup, expected):
    assert float(ema_decay_at(jnp.int32(step), 0.9999, warmup)) == pytest.approx(expected, rel=1e-6)


def test_equal_parameters_do_not_drift():
    params = {"w": jnp.asarray([0.1, 1 / 3, 1e8])}
    np.testing.assert_array_equal(ema_update(params, params, jnp.float32(0.9999))["w"], params["w"])
