"""Optimizers against their published update rules, written in float64 numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.errors import UserError
from imagen_jax.train.optimizer import OptimizerConfig, decayed
from tests import tiny

GRADS = np.random.default_rng(0).normal(size=(6, 5))
START = np.linspace(-1, 1, 5)


def run(config: OptimizerConfig, grads: np.ndarray, name: str = "kernel") -> np.ndarray:
    optimizer = config.build()
    params = {name: jnp.asarray(START, jnp.float32)}
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update({name: jnp.asarray(grad, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params[name])


def adam_by_hand(grads: np.ndarray, rates: list[float], decay: float = 0.0) -> np.ndarray:
    params, m, v = START.copy(), np.zeros(5), np.zeros(5)
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        params = params - rate * (update + decay * params)
    return params


def test_adam_with_warmup_follows_the_paper_of_adam():
    config = OptimizerConfig(name="adam", learning_rate=0.1, warmup_steps=4)
    rates = [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(run(config, GRADS), adam_by_hand(GRADS, rates), rtol=1e-5)


@pytest.mark.parametrize(("name", "decay"), [("kernel", 0.3), ("bias", 0.0), ("scale", 0.0)])
def test_adamw_decays_kernels_by_rate_times_decay(name, decay):
    config = OptimizerConfig(name="adamw", learning_rate=0.1, warmup_steps=0, weight_decay=0.3)
    expected = adam_by_hand(GRADS, [0.1] * 6, decay)
    np.testing.assert_allclose(run(config, GRADS, name), expected, rtol=1e-5, atol=1e-6)


def test_what_decays_are_the_kernels_of_a_network():
    """By name: norms and biases of a scanned network have a second axis, and a convolution's kernel has four."""
    params = nn.unbox(jax.eval_shape(tiny.SR.init, jax.random.key(0)))
    marks = jax.tree_util.tree_leaves_with_path(decayed(params))
    names = {(path[-1].key, mark) for path, mark in marks}
    assert {name for name, mark in names if mark} == {"kernel"}
    assert {"bias", "scale"} <= {name for name, mark in names if not mark}


def test_clipping_scales_the_gradient_to_the_global_norm():
    clipped = GRADS * np.minimum(1, 0.5 / np.linalg.norm(GRADS, axis=1, keepdims=True))
    config = OptimizerConfig(name="adam", learning_rate=0.1, warmup_steps=0, grad_clip_norm=0.5)
    np.testing.assert_allclose(run(config, GRADS), adam_by_hand(clipped, [0.1] * 6), rtol=1e-5)


def test_adafactor_follows_the_paper_of_adafactor_on_a_vector():
    # Unfactored (vectors): v = b v + (1-b)(g^2 + 1e-30), b = 1 - t^-0.8; u = g / sqrt(v), clipped to RMS 1;
    # the step is rate * max(RMS(p), 1e-3) * u.
    params, v = START.copy(), np.zeros(5)
    for t, grad in enumerate(GRADS, 1):
        beta = 1 - t**-0.8
        v = beta * v + (1 - beta) * (grad**2 + 1e-30)
        update = grad / np.sqrt(v)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        params = params - 0.1 * max(np.sqrt(np.mean(params**2)), 1e-3) * update
    config = OptimizerConfig(name="adafactor", learning_rate=0.1, warmup_steps=0)
    np.testing.assert_allclose(run(config, GRADS), params, rtol=1e-5)


def test_cosine_falls_to_zero_after_the_warmup():
    rate = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine", num_steps=110).rate()
    got = [float(rate(jnp.int32(step))) for step in (0, 9, 10, 60, 85, 110, 500)]
    expected = [0.2, 2.0, 2.0, 1.0, 1 + np.cos(0.75 * np.pi), 0.0, 0.0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_defaults_are_the_papers():
    config = OptimizerConfig()
    assert (config.name, config.schedule, config.weight_decay) == ("adafactor", "constant", 0)
    rate = config.rate()
    assert float(rate(jnp.int32(9_999))) == pytest.approx(1e-4)
    assert float(rate(jnp.int32(4_999))) == pytest.approx(0.5e-4)
    assert float(rate(jnp.int32(2_499_999))) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "sgd"}, "must be one of adafactor, adam, adamw"),
        ({"schedule": "linear"}, "must be one of constant, cosine"),
        ({"learning_rate": 0.0}, "must be > 0"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"b1": 1.0}, "in \\[0, 1\\)"),
        ({"weight_decay": 0.1}, "must be 0 for adafactor; choose adamw"),
        ({"grad_clip_norm": 0.0}, "None for no clipping"),
        ({"schedule": "cosine"}, "needs num_steps"),
        ({"num_steps": 5}, "cosine schedule; drop it"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**values)


def test_optimizer_state_is_float32():
    state = OptimizerConfig(name="adam").build().init({"w": jnp.zeros((3, 3))})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
