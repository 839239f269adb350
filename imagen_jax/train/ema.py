"""Exponential moving average of the parameters (decay not stated in the paper; 0.9999 is the usual one)."""

import jax
import jax.numpy as jnp

from imagen_jax.typing import Array, Float, Int, PyTree


def ema_decay_at(step: Int[Array, ""], decay: float, warmup: bool) -> Float[Array, ""]:
    """Decay of the update after `step` updates: min(decay, (1 + step) / (10 + step)) with warm-up.

    Args:
      step: number of averaging updates done before this one, >= 0.
      decay: final decay in [0, 1).
      warmup: without it a short run's average is mostly its random start.
    """
    if not warmup:
        return jnp.float32(decay)
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))


def ema_update(ema_params: PyTree, params: PyTree, decay: Float[Array, ""]) -> PyTree:
    """decay * ema + (1 - decay) * params, leaf by leaf."""
    # Written as a step towards params: ema stays exactly itself where the two are equal.
    return jax.tree.map(lambda ema, new: ema + (1 - decay) * (new - ema), ema_params, params)
