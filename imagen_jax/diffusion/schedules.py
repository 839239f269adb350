"""Noise schedules: log-SNR as a function of continuous time.

    cosine   alpha = cos(pi t / 2)             log_snr = -2 log tan(pi t / 2)          (base and 64→256)
    linear   beta(t) = 0.1 + 19.9 t            log_snr = -log(expm1(0.1 t + 9.95 t²))  (256→1024)
    sigmoid  alpha² falls like sigmoid(-u / tau), u from start to end, rescaled to reach 1 and 0
    flow     alpha : sigma = 1 - t : t         log_snr = 2 log((1 - t) / t)
    EDM      sigma / alpha = (a + t (b - a))^rho, a and b the rho-th roots of sigma_min and sigma_max
    EDM's training noise  sigma / alpha log-normal when t is uniform
    discrete a table of 1000 betas

The linear schedule is the exact continuous limit of 1000 steps of beta from 1e-4 to 0.02:
alpha² = exp(-∫ beta) with beta scaled by the number of steps. Where a log-SNR would be infinite at an end it is clipped
to [-max_log_snr, max_log_snr].
"""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

# Far above any sampler's steps and any table of betas; a damaged number's table would fill the memory.
MAX_STEPS = 100_000


@runtime_checkable
class Schedule(Protocol):
    """Anything that maps times in [0, 1] to log-SNR, decreasing in t."""

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Cosine schedule in continuous time (paper appendix F.1, F.2: base and 64→256 models).

    Args:
      max_log_snr: the log-SNR is clipped to ± this value; positive.
      shift: added to the log-SNR before the clip; 2 ln(64 / size) keeps the noise of a 64-pixel image after
        average pooling ("simple diffusion", arXiv 2301.11093, eq. 4). 0 is the paper.
    """

    max_log_snr: float = 20.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        _check_max_log_snr(self.max_log_snr)

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        # Clipping the angle instead of the result keeps gradients and values finite at t = 0 and t = 1. The angle is
        # measured from the nearer end, tan(pi/2 - a) = 1 / tan(a): float32 has no angles close enough to pi/2.
        edge = jnp.arctan(jnp.exp(-0.5 * jnp.float32(self.max_log_snr + abs(self.shift))))
        to_end = jnp.minimum(t, 1.0 - t)
        above_zero = -2.0 * jnp.log(jnp.tan(jnp.maximum(0.5 * jnp.pi * to_end, edge)))
        log_snr = jnp.where(t <= 0.5, above_zero, -above_zero) + self.shift
        return jnp.clip(log_snr, -self.max_log_snr, self.max_log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """Exact continuous limit of the linear beta schedule 1e-4..0.02 (paper appendix F.3: 256→1024 model).

    Args:
      max_log_snr: the log-SNR is clipped to ± this value; positive.
    """

    max_log_snr: float = 20.0

    def __post_init__(self) -> None:
        _check_max_log_snr(self.max_log_snr)

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        integral = jnp.maximum(0.1 * t + 9.95 * t**2, jnp.exp(-jnp.float32(self.max_log_snr)))
        return jnp.clip(-jnp.log(jnp.expm1(integral)), -self.max_log_snr, self.max_log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidSchedule:
    """alpha² is a piece of a falling sigmoid, rescaled to go from 1 to 0 (arXiv 2301.10972, algorithm 1).

    Args:
      start, end: the piece, start < end.
      tau: width of the sigmoid, positive; larger ones spend less time near the ends.
      max_log_snr: the log-SNR is clipped to ± this value.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    max_log_snr: float = 20.0

    def __post_init__(self) -> None:
        _check_max_log_snr(self.max_log_snr)
        if not self.start < self.end or not self.tau > 0:
            raise UserError(
                f"SigmoidSchedule needs start ({self.start}) < end ({self.end}) and tau ({self.tau}) > 0; "
                "the usual values are -3, 3, 1"
            )

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        first, last = 0.5 * self.start / self.tau, 0.5 * self.end / self.tau
        # sigmoid(2x) - sigmoid(2y) = sinh(x - y) / (2 cosh(x) cosh(y)), which loses no digits when x ≈ y; of the three
        # points the middle one's factor cancels in the ratio.
        above = _log_two_sinh((1.0 - t) * (last - first)) - np.logaddexp(last, -last)
        below = _log_two_sinh(t * (last - first)) - np.logaddexp(first, -first)
        return jnp.clip(above - below, -self.max_log_snr, self.max_log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """The straight line of a rectified flow, (1 - t) x0 + t eps, in variance-preserving scale (arXiv 2209.03003).

    Args:
      shift: multiplies sigma / alpha: positive; above 1 puts more noise at every time, as larger images want
        (arXiv 2403.03206, eq. 23).
      max_log_snr: the log-SNR is clipped to ± this value.
    """

    shift: float = 1.0
    max_log_snr: float = 20.0

    def __post_init__(self) -> None:
        _check_max_log_snr(self.max_log_snr)
        if not self.shift > 0:
            raise UserError(f"FlowSchedule.shift ({self.shift}) must be positive; 1 is the plain line")

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        tiny = jnp.float32(1e-30)
        ratio = jnp.log(jnp.maximum(1.0 - t, tiny)) - jnp.log(jnp.maximum(t, tiny))
        return jnp.clip(2.0 * (ratio - np.log(self.shift)), -self.max_log_snr, self.max_log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMSchedule:
    """EDM's times for sampling (arXiv 2206.00364, eq. 5): here for any network, as `SamplingConfig.schedule`.

    sigma / alpha, which EDM calls sigma, falls from sigma_max at t = 1 to sigma_min at t = 0.

    Args:
      sigma_min, sigma_max: 0 < sigma_min < sigma_max.
      rho: 1 is even steps of sigma; larger ones shorten the steps near sigma_min.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or not self.rho > 0:
            raise UserError(
                f"EDMSchedule needs 0 < sigma_min ({self.sigma_min}) < sigma_max ({self.sigma_max}) and rho "
                f"({self.rho}) > 0; EDM's values are 0.002, 80, 7"
            )

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return -2.0 * self.rho * jnp.log(low + t * (high - low))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormalSchedule:
    """EDM's noise for training: ln(sigma / alpha) ~ N(mean, std²) when t is uniform (arXiv 2206.00364, table 1).

    Args:
      mean, std: of ln(sigma / alpha); std positive.
      max_log_snr: the log-SNR is clipped to ± this value.
    """

    mean: float = -1.2
    std: float = 1.2
    max_log_snr: float = 20.0

    def __post_init__(self) -> None:
        _check_max_log_snr(self.max_log_snr)
        if not self.std > 0:
            raise UserError(f"LogNormalSchedule.std ({self.std}) must be positive; EDM's is 1.2")

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        log_sigma = self.mean + self.std * jax.scipy.stats.norm.ppf(jnp.asarray(t, jnp.float32))
        return jnp.clip(-2.0 * log_sigma, -self.max_log_snr, self.max_log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteSchedule:
    """A table of betas, as networks trained with discrete time have it: time k / num_timesteps is entry k, from 1.

    Times between two entries count as the later one, so uniform times train every entry equally often. t = 0 is the
    clean image.

    Args:
      betas: "cosine", arXiv 2102.09672, eq. 17, each beta at most 0.999 (DeepFloyd IF's); or "linear", from
        0.1 / num_timesteps to 20 / num_timesteps (arXiv 2006.11239, scaled to the number of entries).
      num_timesteps: entries of the table.
    """

    betas: str = "cosine"
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.betas not in ("cosine", "linear"):
            raise UserError(f"DiscreteSchedule.betas ({self.betas!r}) must be 'cosine' or 'linear'")
        check_count("DiscreteSchedule.num_timesteps", self.num_timesteps, 21, hint="1000 is usual", most=MAX_STEPS)

    def log_snr(self, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """log(alpha² / sigma²) at time t in [0, 1]."""
        table = jnp.asarray(discrete_log_snrs(self.betas, self.num_timesteps), jnp.float32)
        # A hair less than t, so that k / num_timesteps in float32 does not count as the entry after k.
        entry = jnp.ceil(t * self.num_timesteps - 1e-3).astype(int)
        return table[jnp.clip(entry, 0, self.num_timesteps)]

    def integer_time(self, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """The integer time of a log-SNR, as programs that count times from 0 call it: of entry k, k - 1.

        Between two entries it is that of the nearer one.
        """
        table = jnp.asarray(discrete_log_snrs(self.betas, self.num_timesteps)[1:], jnp.float32)
        return jnp.argmin(jnp.abs(log_snr[:, None] - table), axis=1).astype(jnp.float32)


@functools.lru_cache(maxsize=8)
def discrete_log_snrs(betas: str, num_timesteps: int) -> np.ndarray:
    """Log-SNR of the clean image (its place holder, 40) and then of every entry, float64 [num_timesteps + 1]."""
    edges = np.arange(num_timesteps + 1) / num_timesteps
    if betas == "linear":
        values = np.linspace(0.1, 20.0, num_timesteps) / num_timesteps
    else:
        alpha2 = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
        values = np.minimum(1 - alpha2[1:] / alpha2[:-1], 0.999)
    log_alpha2 = np.cumsum(np.log1p(-values))
    return np.concatenate([[40.0], log_alpha2 - np.log(-np.expm1(log_alpha2))])


def _log_two_sinh(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    x = jnp.maximum(x, 1e-30)
    return x + jnp.log(-jnp.expm1(-2.0 * x))


def _check_max_log_snr(value: float) -> None:
    if not 0 < value <= 80:
        raise UserError(f"max_log_snr ({value}) must be in (0, 80]: outside, float32 exponentials overflow; choose 20")
