"""Noise schedules: log-SNR as a function of continuous time.

    cosine  alpha = cos(pi t / 2)             log_snr = -2 log tan(pi t / 2)          (base and 64→256)
    linear  beta(t) = 0.1 + 19.9 t            log_snr = -log(expm1(0.1 t + 9.95 t²))  (256→1024)

The linear schedule is the exact continuous limit of 1000 steps of beta from 1e-4 to 0.02:
alpha² = exp(-∫ beta) with beta scaled by the number of steps. Both are clipped to [-max_log_snr, max_log_snr],
since the cosine schedule reaches ±infinity at the ends.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float


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
        # Clipping the angle instead of the result keeps gradients and values finite at t = 0 and t = 1.
        edge = jnp.arctan(jnp.exp(-0.5 * jnp.float32(self.max_log_snr + abs(self.shift))))
        angle = jnp.clip(0.5 * jnp.pi * t, edge, 0.5 * jnp.pi - edge)
        log_snr = -2.0 * jnp.log(jnp.tan(angle)) + self.shift
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


def _check_max_log_snr(value: float) -> None:
    if not 0 < value <= 80:
        raise UserError(f"max_log_snr ({value}) must be in (0, 80]: outside, float32 exponentials overflow; choose 20")
