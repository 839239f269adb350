"""Spikes of the loss: updates far above the losses before them, told apart on the device.

The loss of diffusion is skewed, and it drifts; its logarithm is nearly normal about a slowly moving mean. With x the
log loss of update n (from 0), a = max(1 / (n + 1), 1 / MEMORY) and d = x - mean:

    mean     += a * d
    variance  = (1 - a) * (variance + a * d**2)

Up to MEMORY updates these are the plain mean and variance, then exponential ones. A spike is an x above
mean + max_sigmas * deviation, once WARM_UP updates were counted. It is not counted itself: the step keeps the old
statistics with the old optimizer state, of which they are a part.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from imagen_jax.typing import Array, Bool, Float, PyTree

WARM_UP, MEMORY = 100, 100
# Of losses that hardly vary rounding would be a spike.
LEAST_DEVIATION = 0.01


class LossStatistics(NamedTuple):
    """Statistics of the log losses so far.

    Attributes:
      number: how many, an int32 scalar; no more than needed are counted.
      mean: float32 scalar.
      variance: float32 scalar, >= 0.
    """

    number: Array
    mean: Array
    variance: Array

    def is_spike(self, loss: Float[Array, ""], max_sigmas: float) -> Bool[Array, ""]:
        """True where the loss is more than `max_sigmas` deviations above the mean, by its logarithm."""
        deviation = jnp.maximum(jnp.sqrt(self.variance), LEAST_DEVIATION)
        return (self.number >= WARM_UP) & (jnp.log(loss) > self.mean + max_sigmas * deviation)

    def with_loss(self, loss: Float[Array, ""]) -> "LossStatistics":
        """Statistics with one more loss; the same where it has no logarithm."""
        x = jnp.log(loss)
        rate = jnp.maximum(1 / (self.number + 1), 1 / MEMORY)
        off = x - self.mean
        new = LossStatistics(
            # It never overflows.
            number=jnp.minimum(self.number + 1, max(WARM_UP, MEMORY)),
            mean=self.mean + rate * off,
            variance=(1 - rate) * (self.variance + rate * off**2),
        )
        return LossStatistics(*(jnp.where(jnp.isfinite(x), *pair) for pair in zip(new, self, strict=True)))


class WatchedState(NamedTuple):
    """State of a `watched` optimizer.

    Attributes:
      optimizer: its own state.
      losses: statistics of the losses whose updates were made.
    """

    optimizer: PyTree
    losses: LossStatistics


def watched(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, whose state also has the statistics of the losses; `update` takes the loss as `value`."""
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> WatchedState:
        none = LossStatistics(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        return WatchedState(inner.init(params), none)

    def update(
        updates: PyTree, state: WatchedState, params: PyTree = None, *, value: Array, **extra: PyTree
    ) -> tuple[PyTree, WatchedState]:
        updates, new = inner.update(updates, state.optimizer, params, value=value, **extra)
        return updates, WatchedState(new, state.losses.with_loss(value))

    return optax.GradientTransformationExtraArgs(init, update)
