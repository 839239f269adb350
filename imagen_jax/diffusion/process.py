"""The variance-preserving process and its four predictions.

    z_t = alpha x0 + sigma eps          v = alpha eps - sigma x0          u = eps - x0

Any network output is turned into the one canonical pair (x0_hat, eps_hat), and everything else (guidance,
thresholding, samplers) speaks of that pair. The inverse of the v rotation follows from alpha² + sigma² = 1:

    x0 = alpha z_t - sigma v            eps = sigma z_t + alpha v

(arXiv 2202.00512, appendix D). "flow" is the velocity u of a rectified flow (arXiv 2209.03003, eq. 1), whose straight
line (1 - r) x0 + r eps is z_t / (alpha + sigma) at r = sigma / (alpha + sigma), so that every network here sees z_t
alike:

    x0 = (z_t - sigma u) / (alpha + sigma)      eps = (z_t + alpha u) / (alpha + sigma)
"""

from typing import Literal

import jax
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

Prediction = Literal["eps", "x0", "v", "flow"]
PREDICTIONS: tuple[Prediction, ...] = ("eps", "x0", "v", "flow")


def check_prediction(prediction: str) -> None:
    """Raises UserError unless `prediction` is one of PREDICTIONS."""
    if prediction not in PREDICTIONS:
        raise UserError(f"prediction ({prediction!r}) must be one of {', '.join(PREDICTIONS)}")


def alpha_sigma(log_snr: Float[Array, "*b"], ndim: int = 0) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """alpha and sigma at a log-SNR, with trailing axes appended until they have `ndim` axes (0: as given)."""
    log_snr = jnp.reshape(log_snr, log_snr.shape + (1,) * max(ndim - log_snr.ndim, 0))
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def diffuse(x0: Float[Array, "b *s"], eps: Float[Array, "b *s"], log_snr: Float[Array, " b"]) -> Float[Array, "b *s"]:
    """Draws z_t from x0 and unit Gaussian eps (paper section 2.2: z_t = alpha x0 + sigma eps)."""
    alpha, sigma = alpha_sigma(log_snr, x0.ndim)
    return alpha * x0 + sigma * eps


def target(
    prediction: str, x0: Float[Array, "b *s"], eps: Float[Array, "b *s"], log_snr: Float[Array, " b"]
) -> Float[Array, "b *s"]:
    """Target of a network of this prediction kind for (x0, eps) at log_snr."""
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "flow":
        return eps - x0
    check_prediction(prediction)
    alpha, sigma = alpha_sigma(log_snr, x0.ndim)
    return alpha * eps - sigma * x0


def to_x0_eps(
    prediction: str, output: Float[Array, "b *s"], z_t: Float[Array, "b *s"], log_snr: Float[Array, " b"]
) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
    """Turns a network output of this prediction kind into (x0_hat, eps_hat)."""
    alpha, sigma = alpha_sigma(log_snr, z_t.ndim)
    if prediction == "eps":
        return (z_t - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (z_t - alpha * output) / sigma
    if prediction == "flow":
        return (z_t - sigma * output) / (alpha + sigma), (z_t + alpha * output) / (alpha + sigma)
    check_prediction(prediction)
    return alpha * z_t - sigma * output, sigma * z_t + alpha * output


def x0_error_scale(prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
    """Squared error of x0_hat for one unit of squared error in the space of the prediction."""
    if prediction == "x0":
        return jnp.ones_like(log_snr)
    if prediction == "eps":
        return jnp.exp(-log_snr)
    alpha, sigma = alpha_sigma(log_snr)
    if prediction == "flow":
        return (sigma / (alpha + sigma)) ** 2
    check_prediction(prediction)
    return sigma**2


def eps_from_x0(
    x0_hat: Float[Array, "b *s"], z_t: Float[Array, "b *s"], log_snr: Float[Array, " b"]
) -> Float[Array, "b *s"]:
    """The eps_hat that belongs to an x0_hat, e.g. after thresholding changed it."""
    return to_x0_eps("x0", x0_hat, z_t, log_snr)[1]
