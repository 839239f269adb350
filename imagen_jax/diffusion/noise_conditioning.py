"""Noise conditioning augmentation of the low-resolution input (paper section 2.4, figure A.32).

The low-resolution image, already resized to the size of the stage, is corrupted by the variance-preserving
process of the cosine schedule at time aug_level, and the network is told that level:

    low_res' = cos(pi aug / 2) low_res + sin(pi aug / 2) eps
"""

import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float


def corrupt(
    low_res: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], aug_level: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Corrupts low_res with unit Gaussian eps; aug_level in [0, 1] per example, 0 leaves it as it is."""
    angle = (0.5 * jnp.pi * aug_level).reshape((-1,) + (1,) * (low_res.ndim - 1))
    return jnp.cos(angle) * low_res + jnp.sin(angle) * eps


def check_aug_level(aug_level: float) -> None:
    """Raises UserError outside [0, 1]."""
    if not 0.0 <= aug_level <= 1.0:
        raise UserError(f"aug_level ({aug_level}) must be in [0, 1]: 0 is a clean low-res image, 0.1 to 0.3 is usual")
