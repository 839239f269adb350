"""Random times for training: t ~ U(0, 1), one per example."""

import jax
import jax.numpy as jnp

from imagen_jax.typing import Array, Float, PRNGKeyArray


def stratified(rng: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
    """Uniform times, one in each of `batch` equal intervals: (i + u) / batch with one shared offset u, shuffled.

    Each time is marginally U(0, 1); the batch covers [0, 1] evenly, which lowers the variance of the loss
    (arXiv 2107.00630, appendix I.1). The shuffle keeps a time independent of its row.
    """
    offset_rng, order_rng = jax.random.split(rng)
    offset = jax.random.uniform(offset_rng, ())
    times = (jnp.arange(batch) + offset) / batch
    return jax.random.permutation(order_rng, times)
