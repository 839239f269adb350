"""Static and dynamic thresholding of x0_hat (paper section 2.3).

    static   clip(x0_hat, -1, 1)
    dynamic  s = max(1, min(p-th percentile of |x0_hat| per image, cap));  clip(x0_hat, -s, s) / s

High guidance weights push x0_hat outside [-1, 1]; the dynamic rule pulls saturated pixels inwards at every step.
The paper has no cap; DeepFloyd IF has 1.5 on its first stage and 1, which is the static rule, on its second.
"""

import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

THRESHOLDINGS = ("dynamic", "static", "none")


def static_threshold(x0_hat: Float[Array, "b *s"]) -> Float[Array, "b *s"]:
    """Clips to [-1, 1]."""
    return jnp.clip(x0_hat, -1.0, 1.0)


def dynamic_threshold(
    x0_hat: Float[Array, "b *s"], percentile: float = 99.5, cap: float = float("inf")
) -> Float[Array, "b *s"]:
    """Clips each image to its own percentile of |x0_hat|, at least 1, and rescales to [-1, 1].

    Args:
      x0_hat: estimates of the clean image.
      percentile: on the 0-100 scale; the paper uses 99.5.
      cap: s at most, >= 1.
    """
    flat = jnp.abs(x0_hat).reshape(x0_hat.shape[0], -1)
    s = jnp.clip(jnp.percentile(flat, percentile, axis=1), 1.0, cap)
    s = s.reshape((-1,) + (1,) * (x0_hat.ndim - 1))
    return jnp.clip(x0_hat, -s, s) / s


def check_thresholding(thresholding: str, percentile: float, cap: float) -> None:
    """Raises UserError for an unknown rule, a percentile that is not on the 0-100 scale or a cap below 1."""
    if thresholding not in THRESHOLDINGS:
        raise UserError(f"thresholding ({thresholding!r}) must be one of {', '.join(THRESHOLDINGS)}")
    if not 1.0 < percentile <= 100.0:
        raise UserError(
            f"percentile ({percentile}) must be in (1, 100]: the scale is 0-100, so the paper's value is 99.5"
        )
    if not cap >= 1.0:
        raise UserError(f"threshold_cap ({cap}) must be at least 1, the range of the images; DeepFloyd IF uses 1.5")


def threshold(
    x0_hat: Float[Array, "b *s"], thresholding: str, percentile: float = 99.5, cap: float = float("inf")
) -> Float[Array, "b *s"]:
    """Applies the named rule: "dynamic", "static" or "none"."""
    if thresholding == "dynamic":
        return dynamic_threshold(x0_hat, percentile, cap)
    if thresholding == "static":
        return static_threshold(x0_hat)
    return x0_hat
