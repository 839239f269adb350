"""Classifier-free guidance (paper section 2.2):  eps~ = w eps(z, c) + (1 - w) eps(z),  w = 1 is off.

Applied to x0_hat it is the same rule, since x0_hat is affine in eps_hat and the two weights sum to one. Over the steps
of a sampler w is constant (the paper), or has its value on an interval of times alone (arXiv 2404.07724), or swings
between two values (arXiv 2210.02303, section 2.7: "oscillating guidance" of Imagen Video).
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float


def guide(
    cond: Float[Array, "b *s"], null: Float[Array, "b *s"], guidance_weight: float | Float[Array, "..."]
) -> Float[Array, "b *s"]:
    """Extrapolates from the unconditional prediction through the conditional one; w = 1 gives `cond`.

    The weight is one number, or one a row with axes that broadcast against the images.
    """
    return null + guidance_weight * (cond - null)


# Far beyond any use; still far from float32's largest number, also times an x0_hat of a bad network.
MAX_GUIDANCE_WEIGHT = 1e6


def check_guidance_weight(guidance_weight: float) -> None:
    """Raises UserError for a weight that is negative or of no use; 0 is unconditional, 1 without guidance."""
    if not 0 <= guidance_weight <= MAX_GUIDANCE_WEIGHT:
        raise UserError(
            f"guidance_weight ({guidance_weight}) must be in [0, {MAX_GUIDANCE_WEIGHT:g}]: 0 is unconditional, 1 is "
            "off, the paper sweeps 1 to 18"
        )


@runtime_checkable
class GuidanceSchedule(Protocol):
    """The weight of every step."""

    def weights(self, guidance_weight: float, times: np.ndarray) -> np.ndarray:
        """float32 [n]: w at each of the n decreasing times."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantGuidance:
    """The same weight at every step."""

    def weights(self, guidance_weight: float, times: np.ndarray) -> np.ndarray:
        """float32 [n]."""
        return np.full(len(times), guidance_weight, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalGuidance:
    """The weight on an interval of times; outside of it w = 1, and the network is called without null text.

    Args:
      t_min, t_max: 0 <= t_min < t_max <= 1.
    """

    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_min < self.t_max <= 1.0:
            raise UserError(f"IntervalGuidance needs 0 <= t_min ({self.t_min}) < t_max ({self.t_max}) <= 1")

    def weights(self, guidance_weight: float, times: np.ndarray) -> np.ndarray:
        """float32 [n]."""
        inside = (times >= self.t_min) & (times <= self.t_max)
        return np.where(inside, guidance_weight, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OscillatingGuidance:
    """The weight for the first steps, then a low one and it in turn.

    Args:
      low: the other weight, >= 0 (Imagen Video: 1, with w = 15).
      num_constant: steps before the first low one.
    """

    low: float = 1.0
    num_constant: int = 0

    def __post_init__(self) -> None:
        check_guidance_weight(self.low)
        check_count("OscillatingGuidance.num_constant", self.num_constant, 0)

    def weights(self, guidance_weight: float, times: np.ndarray) -> np.ndarray:
        """float32 [n]."""
        later = np.arange(len(times)) - self.num_constant
        return np.where((later >= 0) & (later % 2 == 0), self.low, guidance_weight).astype(np.float32)
