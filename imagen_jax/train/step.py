"""The one training step of every stage.

rng      = fold_in(key(seed), step)                      so that resuming needs no generator state
gradient = mean over microbatches of d loss / d params   a scan, one microbatch in memory at a time
params  += optimizer(clip(gradient))
ema      = decay * ema + (1 - decay) * params
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sharding import rules
from imagen_jax.train.config import TrainConfig
from imagen_jax.train.distill import DistillObjective
from imagen_jax.train.ema import ema_decay_at, ema_update
from imagen_jax.train.state import shardings_of
from imagen_jax.typing import Array, Float, PRNGKeyArray, PyTree

# Inner edges of the log-SNR buckets; the outermost buckets are open.
LOG_SNR_EDGES = (-6.0, -3.0, 0.0, 3.0, 6.0)
NUM_BUCKETS = len(LOG_SNR_EDGES) + 1

Batch = dict[str, Array]
Metrics = dict[str, Array]
Loss = Callable[..., tuple[Array, dict[str, Array]]]


def bucket_sums(
    per_example_loss: Float[Array, " b"], log_snr: Float[Array, " b"]
) -> tuple[Float[Array, " buckets"], Float[Array, " buckets"]]:
    """Sum of the losses and number of examples in each log-SNR bucket: what averages are made of."""
    bucket = jnp.searchsorted(jnp.asarray(LOG_SNR_EDGES), log_snr, side="right")
    member = jax.nn.one_hot(bucket, NUM_BUCKETS, dtype=jnp.float32)
    # Not a matmul: a non-finite loss would spoil the buckets it is not in (0 * inf).
    return jnp.where(member > 0, per_example_loss[:, None], 0.0).sum(0), member.sum(0)


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
    loss: Loss,
    params: PyTree,
    batch: Batch,
    rng: PRNGKeyArray,
    accumulate_steps: int,
    mesh: Mesh,
    null: Conditioning | None = None,
) -> tuple[Metrics, PyTree]:
    """Mean loss, bucket sums and mean gradient of one batch, taken in `accumulate_steps` microbatches.

    `loss` has the arguments and results of `Stage.loss`.
    """

    def one(micro: Batch, rng: PRNGKeyArray) -> tuple[Metrics, PyTree]:
        (mean, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, micro, rng, null, mesh)
        sums, counts = bucket_sums(aux["per_example_loss"], aux["log_snr"])
        return {"loss": mean, "bucket_loss_sum": sums, "bucket_count": counts}, grads

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
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    null: Conditioning | None = None,
    lesson: DistillObjective | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The step as a plain function of (state, batch), with a lesson of (state, batch, teacher's parameters).

    `null` is a constant of it.
    """
    rate = config.optimizer.rate()

    def train_step(state: TrainState, batch: Batch, *teacher: PyTree) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss(params: PyTree, *rest: Any) -> tuple[Array, dict[str, Array]]:
            return config.stage.loss(params, *rest) if lesson is None else lesson.loss(params, *teacher, *rest)

        metrics, grads = loss_and_grads(loss, state.params, batch, rng, config.accumulate_steps, mesh, null)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, config.ema_decay, config.ema_warmup)
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "param_norm": optax.global_norm(params),
            "learning_rate": rate(state.step),
        }
        new = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=ema_update(state.ema_params, params, decay),
            opt_state=opt_state,
        )
        return new, metrics

    return train_step


def jit_train_step(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    null: Conditioning | None = None,
    lesson: DistillObjective | None = None,
) -> jax.stages.Wrapped:
    """The step under `jax.jit`: the state is donated and stays where it lies, metrics are replicated.

    Args:
      config: the run.
      optimizer: `config.optimizer.build()`.
      mesh: `config.mesh.build()`.
      state: abstract state with shardings.
      null: the null text that `config.stage.null_text` names, on the host; None is zeros.
      lesson: what `config.distill` asks for; the step then takes the teacher's parameters, which lie as the run's do.
    """
    shardings = shardings_of(state)
    teacher = () if lesson is None else (shardings.params,)
    return jax.jit(
        make_train_step(config, optimizer, mesh, null, lesson),
        in_shardings=(shardings, rules.batch_sharding(mesh), *teacher),
        out_shardings=(shardings, rules.replicated(mesh)),
        donate_argnums=0,
    )


def abstract_batch(config: TrainConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global batch."""
    stage, b = config.stage, config.batch_size
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "x0": ((b, stage.image_size, stage.image_size, 3), jnp.float32),
        "text": ((b, stage.max_text_length, stage.text_embed_dim), jnp.float32),
        "text_mask": ((b, stage.max_text_length), jnp.bool_),
    }
    if stage.low_res_size is not None:
        shapes["low_res"] = ((b, stage.low_res_size, stage.low_res_size, 3), jnp.float32)
    sharding = rules.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}
