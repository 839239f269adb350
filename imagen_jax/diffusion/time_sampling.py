"""Random times for training, one per example; a `Stage` has the rule as its `time_sampler`."""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float, PRNGKeyArray


@runtime_checkable
class TimeSampler(Protocol):
    """A distribution of training times, apart from the schedule that gives each its log-SNR."""

    def times(self, rng: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
        """Times in [0, 1], in an order that says nothing of their size; 1 is noise."""


def stratified(rng: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
    """Uniform times, one in each of `batch` equal intervals: (i + u) / batch with one shared offset u, shuffled.

    Each time is marginally U(0, 1); the batch covers [0, 1] evenly, which lowers the variance of the loss
    (arXiv 2107.00630, appendix I.1). The shuffle keeps a time independent of its row.
    """
    offset_rng, order_rng = jax.random.split(rng)
    offset = jax.random.uniform(offset_rng, ())
    times = (jnp.arange(batch) + offset) / batch
    return jax.random.permutation(order_rng, times)


@dataclasses.dataclass(frozen=True)
class StratifiedTimes:
    """t ~ U(0, 1), by `stratified`: the paper's distribution."""

    def times(self, rng: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
        """As `stratified`."""
        return stratified(rng, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormalTimes:
    """t = sigmoid(mean + std n) with n ~ N(0, 1): times in the middle more often (SD3, arXiv 2403.03206, section 3.1).

    P(t <= x) = Φ((logit(x) - mean) / std), of which `stratified` uniform times take the quantiles: a batch covers the
    distribution evenly. The loss then weighs each time by how often it comes, and so does the variational bound of a
    learned variance.

    Args:
      mean: below 0 trains cleaner times more, above 0 noisier ones.
      std: width; small is near sigmoid(mean) alone.

    Raises:
      UserError: mean is not finite, or std not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise UserError(f"LogitNormalTimes.mean ({self.mean}) must be a finite number; 0 is usual")
        if not 0.0 < self.std < math.inf:
            raise UserError(f"LogitNormalTimes.std ({self.std}) must be a positive number; 1 is usual")

    def times(self, rng: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
        """Quantiles of the distribution at stratified uniform times."""
        return jax.nn.sigmoid(self.mean + self.std * ndtri(stratified(rng, batch)))
