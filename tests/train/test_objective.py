"""Objectives that are no stage: the step and the loop train them as they are."""

import doctest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.errors import UserError
from imagen_jax.sharding import rules
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train import objective as objective_module
from imagen_jax.train.hooks import Hook
from imagen_jax.train.loop import Period, update_loop
from imagen_jax.train.metrics import Window
from imagen_jax.train.objective import Mean, Objective
from imagen_jax.train.saving import Saver, SaveTimes
from imagen_jax.train.setup import global_batches
from imagen_jax.train.state import abstract_state, init_state, shardings_of
from imagen_jax.train.step import StepSettings, abstract_batch, jit_train_step

ROWS, INPUTS, OUTPUTS = 64, 4, 2


def test_the_example_of_the_module_runs():
    assert doctest.testmod(objective_module).attempted > 10
    assert doctest.testmod(objective_module).failed == 0


class OnFeatures:
    """Least squares on fixed features of the input; subclasses nothing."""

    metrics = {"squared_error": ()}

    def __init__(self, features: np.ndarray):
        self._features = features

    def init(self, rng):
        return {"weight": jax.random.normal(rng, (INPUTS, OUTPUTS))}

    def batch_spec(self, batch_size):
        shapes = {"x": (batch_size, INPUTS), "y": (batch_size, OUTPUTS)}
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def frozen_spec(self, mesh):
        return {"features": jax.ShapeDtypeStruct((INPUTS, INPUTS), jnp.float32, sharding=rules.replicated(mesh))}

    def load_frozen(self, mesh):
        return {"features": jax.device_put(jnp.float32(self._features), rules.replicated(mesh))}

    def loss(self, params, frozen, batch, rng, mesh=None):
        error = batch["x"] @ frozen["features"] @ params["weight"] - batch["y"]
        squares = (error**2).sum(-1)
        return squares.mean(), {"squared_error": Mean(squares.sum(), jnp.float32(squares.size))}


class Lines(Hook):
    """Keeps the lines."""

    def __init__(self):
        self.lines = []

    def after_step(self, info):
        self.lines += [info.line] if info.line else []


@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_the_loop_trains_a_regression_to_the_least_squares_solution(accumulate_steps):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, INPUTS)), rng.normal(size=(ROWS, OUTPUTS))
    features = rng.normal(size=(INPUTS, INPUTS)) / 2 + np.eye(INPUTS)
    objective, mesh = OnFeatures(features), MeshConfig(fsdp=2).build()
    settings = StepSettings(
        optimizer=optax.adam(optax.cosine_decay_schedule(0.3, 300)),
        rate=optax.cosine_decay_schedule(0.3, 300),
        accumulate_steps=accumulate_steps,
    )
    abstract = abstract_state(objective, settings.optimizer, mesh)
    fresh = jax.jit(lambda: init_state(objective, settings.optimizer, 0), out_shardings=shardings_of(abstract))
    step = jit_train_step(objective, settings, mesh, abstract)
    batch = abstract_batch(objective, ROWS, mesh)
    compiled = step.lower(abstract, batch, objective.frozen_spec(mesh)).compile()
    frozen, hook, saved = objective.load_frozen(mesh), Lines(), []
    rows = iter([{"x": x.astype(np.float32), "y": y.astype(np.float32)}] * 300)
    state, reason = update_loop(
        lambda state, batch: compiled(state, batch, frozen),
        fresh(),
        global_batches(rows, mesh, ROWS),
        period=Period(end=300, log_every=100),
        window=Window(0, ROWS, 1, None, objective.metrics),
        hooks=hook,
        saver=Saver(lambda state: lambda: saved.append(int(state.step)) or Path("checkpoint"), SaveTimes(every=150)),
        stop=lambda step: None,
    )
    solution, residual, *_ = np.linalg.lstsq(x @ features, y, rcond=None)
    np.testing.assert_allclose(state.params["weight"], solution, atol=1e-3)
    assert reason is None and saved == [150, 300]
    assert [line["step"] for line in hook.lines] == [100, 200, 300]
    assert hook.lines[-1]["squared_error"] == pytest.approx(residual.sum() / ROWS, rel=1e-3)
    assert hook.lines[-1]["loss"] == pytest.approx(hook.lines[-1]["squared_error"], rel=1e-5)
    assert "loss_by_log_snr" not in hook.lines[-1]


def test_frozen_parameters_are_an_argument_not_a_constant():
    objective, mesh = OnFeatures(np.eye(INPUTS)), MeshConfig().build(jax.devices()[:1])
    settings = StepSettings(optimizer=optax.sgd(0.1), rate=optax.constant_schedule(0.1))
    abstract = abstract_state(objective, settings.optimizer, mesh)
    step = jit_train_step(objective, settings, mesh, abstract)
    batch = {"x": jnp.ones((2, INPUTS)), "y": jnp.zeros((2, OUTPUTS))}
    losses = []
    for scale in (1.0, 2.0):
        state = jax.jit(lambda: init_state(objective, settings.optimizer, 0), out_shardings=shardings_of(abstract))()
        frozen = jax.tree.map(lambda leaf, scale=scale: scale * leaf, objective.load_frozen(mesh))
        losses.append(float(step(state, batch, frozen)[1]["loss"]))
    assert losses[1] == pytest.approx(4 * losses[0], rel=1e-5) and step._cache_size() == 1


def test_metrics_that_are_not_named_are_refused():
    class Nameless(OnFeatures):
        metrics = {}

    objective, mesh = Nameless(np.eye(INPUTS)), MeshConfig().build(jax.devices()[:1])
    settings = StepSettings(optimizer=optax.sgd(0.1), rate=optax.constant_schedule(0.1))
    abstract = abstract_state(objective, settings.optimizer, mesh)
    step = jit_train_step(objective, settings, mesh, abstract)
    with pytest.raises(UserError, match=r"Nameless returned the metrics \['squared_error'\].*names \[\]"):
        step.lower(abstract, abstract_batch(objective, 8, mesh), objective.frozen_spec(mesh))


def test_an_objective_needs_no_more_than_parameters_batches_and_a_loss():
    class Least(Objective):
        def init(self, rng):
            return jnp.zeros(())

        def batch_spec(self, batch_size):
            return {"x": jax.ShapeDtypeStruct((batch_size,), jnp.float32)}

        def loss(self, params, frozen, batch, rng, mesh=None):
            return ((batch["x"] - params) ** 2).mean(), {}

    mesh = MeshConfig().build(jax.devices()[:1])
    objective, settings = Least(), StepSettings(optimizer=optax.sgd(0.5), rate=optax.constant_schedule(0.5))
    abstract = abstract_state(objective, settings.optimizer, mesh)
    state = jax.jit(lambda: init_state(objective, settings.optimizer, 0), out_shardings=shardings_of(abstract))()
    state, _ = jit_train_step(objective, settings, mesh, abstract)(state, {"x": jnp.float32([1, 4])}, ())
    # A step of half the curvature lands on the mean.
    assert float(state.params) == pytest.approx(2.5)
