"""Training losses, per example: a weighted squared error, and the variational bound of a learned variance.

Error and weight. The error is taken in the space of the network's own prediction. `SimpleWeighting` leaves it as it is,
which with eps-prediction is the paper's loss (section 2.2). Every other weighting is a function w(log_snr) of the
squared error of x0_hat, so that it means the same whatever the network predicts (SNR = exp(log_snr), s² = 1 / SNR):

    SNR       SNR                                     the eps loss of arXiv 2006.11239
    min-SNR   min(SNR, gamma)                         arXiv 2303.09556, eq. 7
    truncated max(SNR, 1)                             arXiv 2202.00512, section 4, for distillation
    P2        SNR / (k + SNR)^gamma                   arXiv 2204.00227, eq. 8
    sigmoid   SNR sigmoid(bias - log_snr)             arXiv 2303.00848, appendix K
    EDM       (s² + sigma_data²) / (s sigma_data)²    arXiv 2206.00364, table 1

Learned variance (arXiv 2102.09672, section 3.1). The network's other output v chooses the variance of a step between
its two bounds,

    ln var = f ln var_large + (1 - f) ln var_small,   f = (v + 1) / 2

and is trained by the bound alone, with x0_hat held fixed: KL(q(z_s | z_t, x0) || p(z_s | z_t)) for steps of length
1 / num_steps, and at the last step the likelihood of the 8-bit pixels.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import x0_error_scale
from imagen_jax.diffusion.schedules import DiscreteSchedule, Schedule
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

# Steps that the bound of a continuous schedule is of, as in improved diffusion.
CONTINUOUS_STEPS = 1000
# Smallest posterior variance of the second step that the likelihood takes, as a share of the first step's.
LEAST_SHARE = 1e-6


def per_example_mse(output: Float[Array, "b *s"], target: Float[Array, "b *s"]) -> Float[Array, " b"]:
    """Mean over all but the first axis of (output - target)²."""
    return jnp.mean(jnp.square(output - target), axis=tuple(range(1, output.ndim)))


@runtime_checkable
class Weighting(Protocol):
    """Weight of an example's loss by its noise."""

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Factor of the squared error in the space of the prediction."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleWeighting:
    """1 in the space of the prediction: the paper's loss for eps."""

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Ones."""
        return jnp.ones_like(log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SNRWeighting:
    """The eps loss, whatever is predicted."""

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """See the module's table."""
        return jnp.exp(log_snr) * x0_error_scale(prediction, log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNRWeighting:
    """The eps loss with the SNR bounded: easy, nearly clean images count less.

    Args:
      gamma: the bound, positive.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"MinSNRWeighting.gamma ({self.gamma}) must be positive; 5 is usual")

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """See the module's table."""
        return jnp.minimum(jnp.exp(log_snr), self.gamma) * x0_error_scale(prediction, log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedSNRWeighting:
    """The larger of the eps loss and the x0 loss: where z_t is all noise, x0_hat counts still."""

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """See the module's table."""
        return jnp.maximum(jnp.exp(log_snr), 1.0) * x0_error_scale(prediction, log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class P2Weighting:
    """The eps loss turned down where the image is nearly clean.

    Args:
      gamma: how much, >= 0.
      k: where it begins, positive.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0 or not self.k > 0:
            raise UserError(
                f"P2Weighting needs gamma ({self.gamma}) >= 0 and k ({self.k}) > 0; the usual values are 1, 1"
            )

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """See the module's table."""
        snr = jnp.exp(log_snr)
        return snr / (self.k + snr) ** self.gamma * x0_error_scale(prediction, log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidWeighting:
    """The eps loss times a sigmoid that falls with log-SNR.

    Args:
      bias: log-SNR at which it is one half.
    """

    bias: float = 2.0

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """See the module's table."""
        return jnp.exp(log_snr) * jax.nn.sigmoid(self.bias - log_snr) * x0_error_scale(prediction, log_snr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMWeighting:
    """EDM's weight, which makes the error of its own preconditioned network count alike at all noise.

    Args:
      sigma_data: standard deviation of the data, positive.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"EDMWeighting.sigma_data ({self.sigma_data}) must be positive; EDM's is 0.5")

    def weight(self, prediction: str, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """See the module's table."""
        return (self.sigma_data**-2 + jnp.exp(log_snr)) * x0_error_scale(prediction, log_snr)


def variational_bound(
    x0: Float[Array, "b *s"],
    x0_hat: Float[Array, "b *s"],
    fraction: Float[Array, "b *s"],
    t: Float[Array, " b"],
    schedule: Schedule,
    num_steps: int | None = None,
) -> Float[Array, " b"]:
    """The bound's term of the step that begins at t, in bits a value: it trains a learned variance and nothing else.

    With x0 - x0_hat = d and e = ln(var / var_small) the divergence is
    (e + exp(-e) - 1 + exp(-e) (SNR(s) - SNR(t)) d²) / 2. The step that ends at the clean image has no smaller variance;
    it takes that of the step before, as improved diffusion does. Where the log-SNR is clipped at both, that variance
    would be zero; it counts as `LEAST_SHARE` of the larger one.

    Args:
      x0: images in [-1, 1], of 256 levels.
      x0_hat: the estimate of which the step's mean is made; not differentiated.
      fraction: f of the module's formula: 0 is the posterior variance, 1 the forward one.
      t: in (0, 1]; the step ends at s = t - 1 / num_steps, or at the clean image.
      schedule: gives log-SNR at t and s.
      num_steps: steps of the whole process; None: the entries of a discrete schedule, 1000 of a continuous one.
    """
    if num_steps is None:
        num_steps = schedule.num_timesteps if isinstance(schedule, DiscreteSchedule) else CONTINUOUS_STEPS
    length = 1.0 / num_steps
    diff = x0 - jax.lax.stop_gradient(x0_hat)
    ones = (-1,) + (1,) * (x0.ndim - 1)
    log_snr_t, log_snr_s = schedule.log_snr(t), schedule.log_snr(jnp.maximum(t - length, length))
    # ln var_large - ln var_small = ln sigma_t² - ln sigma_s², as logs, for sigma_s² may be tiny.
    # Never negative within a step; at times before the first step's end, whose term is the likelihood, it would be, and
    # what overflows on the unused side of a `where` spoils the gradient all the same.
    gap = jnp.maximum(jax.nn.log_sigmoid(-log_snr_t) - jax.nn.log_sigmoid(-log_snr_s), 0.0)
    excess = fraction * gap.reshape(ones)
    snr_gain = jnp.exp(log_snr_s) * -jnp.expm1(jnp.minimum(log_snr_t - log_snr_s, 0.0))
    kl = 0.5 * (excess + jnp.expm1(-excess) + jnp.exp(-excess) * snr_gain.reshape(ones) * jnp.square(diff))
    first, second = schedule.log_snr(jnp.float32(length)), schedule.log_snr(jnp.float32(2 * length))
    log_small = jnp.log(jnp.maximum(-jnp.expm1(second - first), LEAST_SHARE)) + jax.nn.log_sigmoid(-first)
    log_large = jax.nn.log_sigmoid(-log_snr_t).reshape(ones)
    log_std = 0.5 * (fraction * log_large + (1.0 - fraction) * log_small)
    nll = -discretised_log_likelihood(x0, x0 - diff, log_std)
    term = jnp.where((t <= length).reshape(ones), nll, kl) / jnp.log(2.0)
    return jnp.mean(term, axis=tuple(range(1, x0.ndim)))


def discretised_log_likelihood(
    x0: Float[Array, "b *s"], mean: Float[Array, "b *s"], log_std: Float[Array, "b *s"]
) -> Float[Array, "b *s"]:
    """Natural log of a Gaussian's mass in each value's bin of 256 over [-1, 1]; the outermost bins are open.

    (arXiv 2006.11239, eq. 13.)
    """
    inverse = jnp.exp(-log_std)
    upper, lower = ((x0 + side / 255.0 - mean) * inverse for side in (1.0, -1.0))
    upper_cdf, lower_cdf = jax.scipy.stats.norm.cdf(upper), jax.scipy.stats.norm.cdf(lower)
    inside = jnp.where(x0 > 0.999, 1.0 - lower_cdf, upper_cdf - lower_cdf)
    mass = jnp.where(x0 < -0.999, upper_cdf, inside)
    return jnp.log(jnp.maximum(mass, 1e-12))
