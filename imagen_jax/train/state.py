"""State that a training run carries from step to step, and its shardings on the mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.checkpoints.trees import TrainState, named_leaves, path_name
from imagen_jax.sharding import rules
from imagen_jax.train.objective import Objective
from imagen_jax.typing import PRNGKeyArray, PyTree


def init_state(objective: Objective, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A fresh state; call it under `jax.jit` or `jax.eval_shape`.

    Args:
      objective: gives the parameters.
      optimizer: gives their optimizer state.
      seed: seed of the parameters.
    """
    params = rules.unbox(objective.init(jax.random.key(seed)))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return TrainState(step=jnp.int32(0), params=params, ema_params=params, opt_state=optimizer.init(params))


def abstract_params(init: Callable[[PRNGKeyArray], PyTree], mesh: Mesh) -> PyTree:
    """Shapes, dtypes and shardings of parameters, computing nothing.

    Args:
      init: makes them, boxed, e.g. `Stage.init` or `Objective.init`.
      mesh: where they are to lie.
    """
    boxed = jax.eval_shape(init, jax.random.key(0))
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, rules.unbox(boxed), rules.param_shardings(boxed, mesh))


def abstract_state(objective: Objective, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, computing nothing.

    Optimizer leaves that mirror a parameter (same path end, same shape) lie as it does; the others
    (counters, Adafactor's factored rows and columns) are small and replicated.
    """
    params = named_leaves(abstract_params(objective.init, mesh))
    state = jax.eval_shape(lambda: init_state(objective, optimizer, 0))

    def place(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        parts = path_name(path).split(".")
        tails = (".".join(parts[start:]) for start in range(1, len(parts)))
        name = next((tail for tail in tails if tail in params and params[tail].shape == leaf.shape), None)
        sharding = rules.replicated(mesh) if name is None else params[name].sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def shardings_of(abstract: PyTree) -> PyTree:
    """Shardings of an abstract tree."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
