"""One update: its gradient, its randomness, its metrics, and its independence of the device layout."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import batch_sharding
from imagen_jax.train.objective import Mean, Objective
from imagen_jax.train.setup import step_settings
from imagen_jax.train.stage_objective import StageObjective, bucket_sums, log_snr_bucket
from imagen_jax.train.state import abstract_state, init_state, shardings_of
from imagen_jax.train.step import jit_train_step, loss_and_grads
from tests.train import tiny_run


def start(config: Any, mesh: Any) -> tuple[TrainState, Any]:
    """A fresh state on a mesh, and the jitted step."""
    optimizer = config.optimizer.build()
    objective = StageObjective(stage=config.stage)
    abstract = abstract_state(objective, optimizer, mesh)
    make = jax.jit(lambda: init_state(objective, optimizer, config.seed), out_shardings=shardings_of(abstract))
    return make(), jit_train_step(objective, step_settings(config), mesh, abstract)


def put(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.Array]:
    return jax.device_put(batch, batch_sharding(mesh))


def test_bucket_sums_against_a_plain_loop():
    log_snr = np.array([-20, -6, -5.9, -3, -0.01, 0, 2.9, 3, 6, 19], np.float32)
    losses = np.arange(1, 11, dtype=np.float32)
    expected = np.zeros((2, 6))
    for loss, value in zip(losses, log_snr, strict=True):
        bucket = sum(value >= edge for edge in (-6, -3, 0, 3, 6))
        expected[0, bucket] += loss
        expected[1, bucket] += 1
    np.testing.assert_array_equal(bucket_sums(jnp.asarray(losses), log_snr_bucket(jnp.asarray(log_snr)), 6), expected)


def test_non_finite_loss_stays_in_its_bucket():
    sums, _ = bucket_sums(jnp.asarray([np.inf, 2.0]), jnp.asarray([0, 5]), 6)
    np.testing.assert_array_equal(sums, [np.inf, 0, 0, 0, 0, 2])


class LeastSquares(Objective):
    """Squared error of a linear map, also by the sign of the first output."""

    metrics = {"error": (), "error_by_sign": ("negative", "positive")}

    def init(self, rng):
        return jnp.zeros((5, 3))

    def batch_spec(self, batch_size):
        shapes = {"x": (batch_size, 5), "y": (batch_size, 3)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def loss(self, params, frozen, batch, rng, mesh=None):
        per_row = ((batch["x"] @ params - batch["y"]) ** 2).mean(-1)
        member = jax.nn.one_hot((batch["y"][:, 0] > 0).astype(int), 2)
        return per_row.mean(), {
            "error": Mean(per_row.sum(), jnp.float32(per_row.size)),
            "error_by_sign": Mean(per_row @ member, member.sum(0)),
        }


@pytest.mark.parametrize("num", [2, 4])
def test_microbatches_give_the_gradient_of_the_whole_batch(num):
    rng = np.random.default_rng(0)
    x, y, params = rng.normal(size=(32, 5)), rng.normal(size=(32, 3)) * 5, rng.normal(size=(5, 3))
    mesh = MeshConfig(fsdp=2).build()
    batch = put({"x": x.astype(np.float32), "y": y.astype(np.float32)}, mesh)
    run = jax.jit(lambda p, b: loss_and_grads(LeastSquares(), p, (), b, jax.random.key(0), mesh, num))
    metrics, grads = run(jnp.asarray(params, jnp.float32), batch)
    residual = x @ params - y
    np.testing.assert_allclose(grads, 2 * x.T @ residual / residual.size, rtol=2e-5)
    assert float(metrics["loss"]) == pytest.approx((residual**2).mean(), rel=1e-5)
    per_row, positive = (residual**2).mean(-1), y[:, 0] > 0
    error, by_sign = metrics["means"]["error"], metrics["means"]["error_by_sign"]
    assert float(error.total) == pytest.approx(per_row.sum(), rel=1e-5) and float(error.count) == 32
    np.testing.assert_allclose(by_sign.total, [per_row[~positive].sum(), per_row[positive].sum()], rtol=1e-5)
    np.testing.assert_array_equal(by_sign.count, [(~positive).sum(), positive.sum()])


def test_one_update_is_the_optimizer_on_the_stages_own_gradient(tmp_path):
    config = tiny_run.tiny_config(tmp_path, seed=1)
    mesh = MeshConfig().build(jax.devices()[:1])
    state, step = start(config, mesh)
    # Copies: a buffer that numpy looks into cannot be donated.
    before = jax.tree.map(jnp.copy, state)
    batch = put(tiny_run.tiny_batch(0, 0, 16), mesh)
    new, metrics = step(state, batch, ())

    rng = jax.random.fold_in(jax.random.key(1), 0)
    loss_of = jax.jit(jax.value_and_grad(config.stage.loss, has_aux=True))
    (loss, _), grads = loss_of(before.params, batch, rng)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    updates, _ = jax.jit(config.optimizer.build().update)(grads, before.opt_state, before.params)
    expected = optax.apply_updates(before.params, updates)
    for got, want, old, ema in zip(
        *map(jax.tree.leaves, (new.params, expected, before.params, new.ema_params)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        # The first average has decay min(0.9, 1/10).
        np.testing.assert_allclose(ema, 0.1 * old + 0.9 * got, rtol=1e-4, atol=1e-6)
    assert int(new.step) == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_text_in_bfloat16_trains_as_its_numbers_in_float32(tmp_path):
    config = tiny_run.tiny_config(tmp_path)
    stage, batch = config.stage, tiny_run.tiny_batch(0, 0, 8)
    half = {**batch, "text": batch["text"].astype(jnp.bfloat16)}
    objective = StageObjective(stage=stage, text_dtype=half["text"].dtype)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in objective.batch_spec(8).items()} == {
        name: (array.shape, array.dtype) for name, array in half.items()
    }
    params, loss = nn.unbox(objective.init(jax.random.key(0))), jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    same = {**batch, "text": half["text"].astype(np.float32)}
    found, expected = (loss(params, one, jax.random.key(1)) for one in (half, same))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_step_draws_its_own_noise(tmp_path):
    config = tiny_run.tiny_config(tmp_path)
    mesh = MeshConfig().build(jax.devices()[:1])
    state, step = start(config, mesh)
    frozen = jax.device_get(state)
    losses = []
    for number in (0, 1, 1):
        batch = put(tiny_run.tiny_batch(0, 0, 16), mesh)
        _, metrics = step(jax.device_put(frozen.replace(step=np.int32(number))), batch, ())
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1] == losses[2]


def _shuffled(num_devices):
    return [jax.devices()[i] for i in np.random.default_rng(0).permutation(num_devices)]


@pytest.mark.parametrize(
    ("mesh_config", "num_devices", "accumulate_steps"),
    [
        (MeshConfig(fsdp=4), 8, 1),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, 1),
        (MeshConfig(fsdp=8), 8, 2),
        (MeshConfig(data=1, tensor=2), 2, 1),
    ],
)
def test_several_devices_train_as_one(tmp_path, mesh_config, num_devices, accumulate_steps):
    """In an order of their own, as a slice's chips lie: rows and their noise follow the batch, not the devices."""
    config = tiny_run.tiny_config(tmp_path, accumulate_steps=accumulate_steps)
    losses, states = [], []
    for mesh in (MeshConfig().build(jax.devices()[:1]), mesh_config.build(_shuffled(num_devices))):
        state, step = start(config, mesh)
        row = []
        for number in range(3):
            state, metrics = step(state, put(tiny_run.tiny_batch(0, number, 16), mesh), ())
            row.append(float(metrics["loss"]))
        losses.append(row)
        states.append(state)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    sharded = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(states[1].params)]
    assert any(sharded)
    moments = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(states[1].opt_state)]
    assert sum(moments) == 2 * sum(sharded)
