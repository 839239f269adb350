"""Protocol of what a run trains: parameters, batches, a loss and its metrics.

The step, its state and the loop know an objective by this protocol alone, so they train anything that has one. An
objective of its own subclasses `Objective` for the defaults, or has the same attributes. Least squares, for example:

    >>> import jax, jax.numpy as jnp, optax
    >>> from imagen_jax.sharding.mesh import MeshConfig
    >>> from imagen_jax.train.objective import Mean, Objective
    >>> from imagen_jax.train.state import abstract_state, init_state
    >>> from imagen_jax.train.step import StepSettings, jit_train_step

    >>> class LeastSquares(Objective):
    ...     metrics = {"absolute_error": ()}
    ...
    ...     def init(self, rng):
    ...         return {"slope": jnp.zeros(())}
    ...
    ...     def batch_spec(self, batch_size):
    ...         rows = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    ...         return {"x": rows, "y": rows}
    ...
    ...     def loss(self, params, frozen, batch, rng, mesh=None):
    ...         error = params["slope"] * batch["x"] - batch["y"]
    ...         return (error**2).mean(), {"absolute_error": Mean(jnp.abs(error).sum(), jnp.float32(error.size))}

    >>> objective, mesh = LeastSquares(), MeshConfig().build(jax.devices()[:1])
    >>> settings = StepSettings(optimizer=optax.sgd(0.1), rate=optax.constant_schedule(0.1))
    >>> step = jit_train_step(objective, settings, mesh, abstract_state(objective, settings.optimizer, mesh))
    >>> state = jax.jit(lambda: init_state(objective, settings.optimizer, settings.seed))()
    >>> batch = {"x": jnp.float32([1, 2]), "y": jnp.float32([3, 6])}
    >>> for _ in range(20):
    ...     state, metrics = step(state, batch, ())
    >>> print(f"{float(state.params['slope']):.3f}")
    3.000
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import flax.struct
import jax
from jax.sharding import Mesh

from imagen_jax.typing import Array, Float, PRNGKeyArray, PyTree

Batch = dict[str, Array]


class Mean(flax.struct.PyTreeNode):
    """A mean as sum and count, so that means of microbatches and steps add up; scalars, or one entry a label.

    Args:
      total: float32 sum.
      count: float32 number of what was summed, of the same shape.
    """

    total: PyTree
    count: PyTree


@runtime_checkable
class Objective(Protocol):
    """Something to minimise.

    Attributes:
      metrics: what `loss` measures besides itself: name to the labels of its entries, () for a scalar. A metrics line
        gives each as its mean over the line's steps, a labelled one as {label: mean}.
    """

    @property
    def metrics(self) -> Mapping[str, tuple[str, ...]]:
        """Names and labels of the metrics; none by default."""
        return {}

    def init(self, rng: PRNGKeyArray) -> PyTree:
        """Fresh parameters; arrays, or boxes with logical axis names (`sharding.rules`), which are then sharded.

        Called under `jax.jit` and `jax.eval_shape`; the state holds them as float32.
        """
        ...

    def batch_spec(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of one global batch; axis 0 of each array is the rows."""
        ...

    def frozen_spec(self, mesh: Mesh) -> PyTree:
        """Shapes, dtypes and shardings of the parameters that `loss` reads and nobody trains; () by default.

        They are an argument of the compiled step, not constants in it: large ones cost no compile time.
        """
        return ()

    def load_frozen(self, mesh: Mesh) -> PyTree:
        """Values of the frozen parameters, laid out as `frozen_spec` says.

        Raises:
          UserError: they cannot be read.
        """
        return ()

    def loss(
        self, params: PyTree, frozen: PyTree, batch: Batch, rng: PRNGKeyArray, mesh: Mesh | None = None
    ) -> tuple[Float[Array, ""], dict[str, Mean]]:
        """Mean loss over the rows of `batch`, whose gradient is taken by `params`, and the metrics.

        Args:
          params: as `init` gives them, unboxed.
          frozen: as `load_frozen` gives them.
          batch: as `batch_spec` says, or fewer rows: a microbatch.
          rng: source of all randomness.
          mesh: where the parameters lie; None for one device.

        Returns:
          The loss, and exactly the names of `metrics`.
        """
        ...
