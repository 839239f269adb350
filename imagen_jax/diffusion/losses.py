"""The training loss: mean squared error of the network's own prediction, per example.

With eps-prediction this is the paper's unweighted loss (section 2.2, eq. 1 with weight 1 in eps space). In v
and x0 space the same unweighted error weights eps errors by 1 + 1/SNR and 1/SNR (arXiv 2202.00512, section 4).
"""

import jax.numpy as jnp

from imagen_jax.typing import Array, Float


def per_example_mse(output: Float[Array, "b *s"], target: Float[Array, "b *s"]) -> Float[Array, " b"]:
    """Mean over all but the first axis of (output - target)²."""
    return jnp.mean(jnp.square(output - target), axis=tuple(range(1, output.ndim)))
