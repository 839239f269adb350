"""Data of which everything is known: values N(MEAN, std²), so that x0_hat and the probability flow are linear in z.

    x0_hat = E[x0 | z] = MEAN + alpha std² (z - alpha MEAN) / (alpha² std² + sigma²)
    (z - alpha MEAN) / sqrt(alpha² std² + sigma²)  is constant along the flow

Every function here is meant for float64: call it inside `jax.enable_x64()`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.samplers import Estimate, Predict, Sampler, Step

MEAN, STD = 0.3, 0.5


def moments(log_snr: float, std: float = STD) -> tuple[float, float]:
    """Mean and variance of z at a log-SNR."""
    alpha2 = 1 / (1 + np.exp(-log_snr))
    return float(np.sqrt(alpha2) * MEAN), float(alpha2 * std**2 + 1 / (1 + np.exp(log_snr)))


def flow(z_t: np.ndarray, log_snr_t: float, log_snr_s: float, std: float = STD) -> np.ndarray:
    """Where the probability flow takes z_t."""
    (mean_t, var_t), (mean_s, var_s) = moments(log_snr_t, std), moments(log_snr_s, std)
    return mean_s + (z_t - mean_t) * np.sqrt(var_s / var_t)


def denoiser(std: float = STD) -> Predict:
    """What a perfect network says."""

    def predict(z: jax.Array, log_snr: jax.Array) -> Estimate:
        alpha2, sigma2 = 1 / (1 + jnp.exp(-log_snr))[:, None], 1 / (1 + jnp.exp(log_snr))[:, None]
        residual = (z - jnp.sqrt(alpha2) * MEAN) / (alpha2 * std**2 + sigma2)
        return Estimate(MEAN + jnp.sqrt(alpha2) * std**2 * residual, jnp.sqrt(sigma2) * residual)

    return predict


def stepper(sampler: Sampler, predict: Predict) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A compiled step of rows of single values: (z, log-SNRs at t, s, before; noise, x0_before) -> (z_s, x0_hat)."""

    @jax.jit
    def step(z: jax.Array, log_snrs: jax.Array, noise: jax.Array, x0_before: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jnp.ones(len(z))
        return sampler.step(predict, z, Step(*(log_snr * rows for log_snr in log_snrs)), noise, x0_before)

    return lambda *arrays: tuple(np.asarray(out) for out in step(*(jnp.asarray(array) for array in arrays)))


def log_snr_triples(log_snrs: np.ndarray) -> list[tuple[float, float, float]]:
    """Log-SNR at t, s and where the step before began, of every step."""
    return list(zip(log_snrs, log_snrs[1:], [-np.inf, *log_snrs], strict=False))


def solve(sampler: Sampler, log_snrs: np.ndarray, z: np.ndarray, std: float = STD) -> np.ndarray:
    """Where the steps without noise take the rows of z."""
    step = stepper(sampler, denoiser(std))
    x0_before = np.zeros_like(z)
    for triple in log_snr_triples(log_snrs):
        z, x0_before = step(z, np.asarray(triple), np.zeros_like(z), x0_before)
    return z


def final_moments(sampler: Sampler, log_snrs: np.ndarray, std: float = STD) -> tuple[float, float]:
    """Mean and variance of z after the steps, without chance: a step is affine in (z, x0_before) and the noise."""
    step = stepper(sampler, denoiser(std))
    mean, variance = moments(log_snrs[0], std)
    means, covariance = np.array([mean, 0.0]), np.diag([variance, 0.0])
    # The origin, and a unit of z, of x0_before and of the noise.
    z, x0_before, noise = np.vstack([np.zeros(3), np.eye(3)]).T[..., None]
    for triple in log_snr_triples(log_snrs):
        out = np.concatenate(step(z, np.asarray(triple), noise, x0_before), axis=1)
        matrix, shift = (out[1:] - out[0]).T, out[0]
        means = matrix[:, :2] @ means + shift
        covariance = matrix[:, :2] @ covariance @ matrix[:, :2].T + np.outer(matrix[:, 2], matrix[:, 2])
    return float(means[0]), float(covariance[0, 0])


def slope(numbers: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error against log number."""
    return float(-np.polyfit(np.log(numbers), np.log(errors), 1)[0])
