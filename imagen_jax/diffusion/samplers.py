"""Steps from z_t to z_s, s < t, given the thresholded x0_hat (paper appendix A; DDIM: arXiv 2010.02502).

Both samplers use the same discrete grid of times 1 = t_0 > t_1 > … > t_N = 0. With alpha, sigma at t and
alpha_s, sigma_s at s, and snr_ratio = SNR(t) / SNR(s) = exp(log_snr_t - log_snr_s) < 1:

    posterior q(z_s | z_t, x0):
      mean = snr_ratio (alpha_s / alpha) z_t + (1 - snr_ratio) alpha_s x0
      var_small = (1 - snr_ratio) sigma_s²            var_large = (1 - snr_ratio) sigma²
    DDPM   z_s = mean(x0_hat) + sqrt(var) noise,  log var = (1 - gamma) log var_small + gamma log var_large
    DDIM   z_s = alpha_s x0_hat + sigma_s eps_hat   (deterministic)

At the last step z_s is x0_hat itself.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from imagen_jax.diffusion.process import alpha_sigma, eps_from_x0
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float


@runtime_checkable
class Sampler(Protocol):
    """One reverse step; the scan that drives it lives in sampling/."""

    def step(
        self,
        z_t: Float[Array, "b *s"],
        x0_hat: Float[Array, "b *s"],
        log_snr_t: Float[Array, " b"],
        log_snr_s: Float[Array, " b"],
        noise: Float[Array, "b *s"],
    ) -> Float[Array, "b *s"]:
        """Draws z_s from z_t."""


def posterior_moments(
    z_t: Float[Array, "b *s"],
    x0: Float[Array, "b *s"],
    log_snr_t: Float[Array, " b"],
    log_snr_s: Float[Array, " b"],
) -> tuple[Float[Array, "b *s"], Float[Array, "..."]]:
    """Mean and variance of q(z_s | z_t, x0), a Gaussian; log_snr_s > log_snr_t."""
    alpha_t, _ = alpha_sigma(log_snr_t, z_t.ndim)
    alpha_s, sigma_s = alpha_sigma(log_snr_s, z_t.ndim)
    gap = (log_snr_t - log_snr_s).reshape(alpha_t.shape)
    snr_ratio, one_minus = jnp.exp(gap), -jnp.expm1(gap)
    mean = snr_ratio * (alpha_s / alpha_t) * z_t + one_minus * alpha_s * x0
    return mean, one_minus * sigma_s**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMSampler:
    """Ancestral sampler with the variance interpolated in log space.

    Args:
      gamma: in [0, 1]; 0 is the posterior variance, 1 the variance of the forward step.
    """

    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma ({self.gamma}) must be in [0, 1]: 0 is the posterior variance, 1 the forward one")

    def step(
        self,
        z_t: Float[Array, "b *s"],
        x0_hat: Float[Array, "b *s"],
        log_snr_t: Float[Array, " b"],
        log_snr_s: Float[Array, " b"],
        noise: Float[Array, "b *s"],
    ) -> Float[Array, "b *s"]:
        """Draws z_s from the posterior of x0_hat."""
        mean, var_small = posterior_moments(z_t, x0_hat, log_snr_t, log_snr_s)
        _, sigma_t = alpha_sigma(log_snr_t, z_t.ndim)
        _, sigma_s = alpha_sigma(log_snr_s, z_t.ndim)
        # var_large / var_small = sigma_t² / sigma_s², so the log-space mix is one power of that ratio.
        return mean + jnp.sqrt(var_small) * (sigma_t / sigma_s) ** self.gamma * noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIMSampler:
    """Deterministic sampler: the noise argument is not used."""

    def step(
        self,
        z_t: Float[Array, "b *s"],
        x0_hat: Float[Array, "b *s"],
        log_snr_t: Float[Array, " b"],
        log_snr_s: Float[Array, " b"],
        noise: Float[Array, "b *s"],
    ) -> Float[Array, "b *s"]:
        """Moves along the probability-flow line through (x0_hat, eps_hat)."""
        alpha_s, sigma_s = alpha_sigma(log_snr_s, z_t.ndim)
        return alpha_s * x0_hat + sigma_s * eps_from_x0(x0_hat, z_t, log_snr_t)
