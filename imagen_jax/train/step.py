"""The one training step of every objective.

rng      = fold_in(key(seed), step)                      so that resuming needs no generator state
gradient = mean over microbatches of d loss / d params   a scan, one microbatch in memory at a time
params  += optimizer(clip(gradient))
ema      = decay * ema + (1 - decay) * params

Where loss or gradient is not finite, or the loss is a spike and those are looked for (`train.spikes`), the device skips
the update itself: parameters, average and optimizer state stay bit for bit, and only the step counts on. The host
learns of it from the metric `skipped`, when it reads the others.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.errors import UserError
from imagen_jax.sharding import rules
from imagen_jax.train.ema import ema_decay_at, ema_update
from imagen_jax.train.objective import Batch, Objective
from imagen_jax.train.state import shardings_of
from imagen_jax.typing import Array, PRNGKeyArray, PyTree

Metrics = dict[str, PyTree]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Parts of one update besides the objective.

    Args:
      optimizer: the optax transformation; `spikes.watched` where spikes are looked for.
      rate: its learning rate after so many updates; reported only.
      seed: seed of every draw.
      ema_decay: decay of the parameter average, in [0, 1).
      ema_warmup: starts the average at a smaller decay, see `train.ema`.
      accumulate_steps: microbatches of one update.
      max_spike_sigmas: deviations above the mean log loss beyond which an update is skipped; None: skips no spike.
    """

    optimizer: optax.GradientTransformation
    rate: Callable[[Array], Array | float]
    seed: int = 0
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    accumulate_steps: int = 1
    max_spike_sigmas: float | None = None


def split_microbatches(batch: Batch, num: int, mesh: Mesh) -> Batch:
    """Rows [b, ...] as [num, b / num, ...]: microbatch j holds rows j, j + num, ….

    Strided, because every device then keeps the rows it already has.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, rules.BATCH_AXES))

    def split(x: Array) -> Array:
        x = x.reshape(x.shape[0] // num, num, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(split, batch)


def loss_and_grads(
    objective: Objective,
    params: PyTree,
    frozen: PyTree,
    batch: Batch,
    rng: PRNGKeyArray,
    mesh: Mesh,
    accumulate_steps: int = 1,
) -> tuple[Metrics, PyTree]:
    """Mean loss, sums of the metrics and mean gradient of one batch, taken in `accumulate_steps` microbatches.

    Raises:
      UserError: the objective returns other metrics than it names.
    """

    def one(micro: Batch, rng: PRNGKeyArray) -> tuple[Metrics, PyTree]:
        value_and_grad = jax.value_and_grad(objective.loss, has_aux=True)
        (mean, means), grads = value_and_grad(params, frozen, micro, rng, mesh)
        if means.keys() != objective.metrics.keys():
            raise UserError(
                f"the loss of {type(objective).__name__} returned the metrics {sorted(means)}, but its attribute "
                f"metrics names {sorted(objective.metrics)}: name the same in both"
            )
        return {"loss": mean, "means": means}, grads

    if accumulate_steps == 1:
        return one(batch, rng)
    micros = split_microbatches(batch, accumulate_steps, mesh)
    rngs = jax.random.split(rng, accumulate_steps)

    def add(total: tuple[Metrics, PyTree], xs: tuple[Batch, PRNGKeyArray]) -> tuple[tuple[Metrics, PyTree], None]:
        return jax.tree.map(jnp.add, total, one(*xs)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micros), rngs[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (metrics, grads), _ = jax.lax.scan(add, zeros, (micros, rngs))
    metrics["loss"] = metrics["loss"] / accumulate_steps
    return metrics, jax.tree.map(lambda g: g / accumulate_steps, grads)


def make_train_step(
    objective: Objective, settings: StepSettings, mesh: Mesh
) -> Callable[[TrainState, Batch, PyTree], tuple[TrainState, Metrics]]:
    """The step as a plain function of state, batch and the objective's frozen parameters."""

    optimizer = optax.with_extra_args_support(settings.optimizer)

    def train_step(state: TrainState, batch: Batch, frozen: PyTree) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        metrics, grads = loss_and_grads(objective, state.params, frozen, batch, rng, mesh, settings.accumulate_steps)
        grad_norm = optax.global_norm(grads)
        # Of the gradient alone, not of the new parameters: to wait for all of those would hold them twice.
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        if settings.max_spike_sigmas is not None:
            good &= ~state.opt_state.losses.is_spike(metrics["loss"], settings.max_spike_sigmas)

        def kept(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(functools.partial(jnp.where, good), new, old)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=metrics["loss"])
        params = kept(optax.apply_updates(state.params, updates), state.params)
        decay = ema_decay_at(state.step, settings.ema_decay, settings.ema_warmup)
        metrics |= {
            "grad_norm": grad_norm,
            "param_norm": optax.global_norm(params),
            "learning_rate": settings.rate(state.step),
            "skipped": ~good,
        }
        new = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=kept(ema_update(state.ema_params, params, decay), state.ema_params),
            opt_state=kept(opt_state, state.opt_state),
        )
        return new, metrics

    return train_step


def jit_train_step(objective: Objective, settings: StepSettings, mesh: Mesh, state: TrainState) -> jax.stages.Wrapped:
    """The step under `jax.jit`: the state is donated and stays where it lies, metrics are replicated.

    Args:
      objective: what is trained.
      settings: optimizer, average, seed, microbatches.
      mesh: the devices.
      state: abstract state with shardings.
    """
    shardings = shardings_of(state)
    return jax.jit(
        make_train_step(objective, settings, mesh),
        in_shardings=(shardings, rules.batch_sharding(mesh), shardings_of(objective.frozen_spec(mesh))),
        out_shardings=(shardings, rules.replicated(mesh)),
        donate_argnums=0,
    )


def abstract_batch(objective: Objective, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of one global batch."""
    sharding = rules.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf in objective.batch_spec(batch_size).items()
    }
