"""All networks on meshes of eight devices: loss and gradients are those of one device."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from imagen_jax.sharding import rules
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.train.stage_objective import StageObjective
from imagen_jax.train.step import loss_and_grads
from tests.tiny import BASE, SR, TRANSFORMER, batch

MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp and tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    "data and fsdp": MeshConfig(data=2, fsdp=4),
    "spatial": MeshConfig(data=4, spatial=2),
    "fsdp and spatial": MeshConfig(data=2, fsdp=2, spatial=2),
}


@functools.cache
def _params(stage: Stage):
    boxed = jax.jit(stage.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(nn.unbox(boxed))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.device_get(jax.tree.unflatten(tree, noisy)), boxed


def _lowered(stage: Stage, mesh: jax.sharding.Mesh):
    values, boxed = _params(stage)
    params = jax.device_put(values, rules.param_shardings(boxed, mesh))
    rows = jax.device_put(batch(stage, 16), rules.batch_sharding(mesh))
    objective = StageObjective(stage=stage)
    step = jax.jit(lambda params, rows: loss_and_grads(objective, params, (), rows, jax.random.key(3), mesh))
    return step.lower(params, rows), params, rows


def _run(stage: Stage, mesh: jax.sharding.Mesh):
    lowered, params, rows = _lowered(stage, mesh)
    return lowered.compile(), params, rows


@functools.cache
def _on_one_device(stage: Stage):
    compiled, params, rows = _run(stage, MeshConfig().build(jax.devices()[:1]))
    return jax.device_get(compiled(params, rows)), compiled.cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [BASE, SR, TRANSFORMER], ids=["base", "sr", "transformer"])
@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_are_those_of_one_device(stage: Stage, mesh: str) -> None:
    compiled, params, rows = _run(stage, MESHES[mesh].build())
    metrics, grads = jax.device_get(compiled(params, rows))
    (expected, expected_grads), work = _on_one_device(stage)
    assert abs(metrics["loss"] / expected["loss"] - 1) < 1e-5
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), grads, expected_grads)
    if "tensor" not in mesh:
        # No device does the work of another: an eighth each, and what every row does not share. Along the height
        # of these tiny pictures the text and the neighbours' edges count for more.
        assert compiled.cost_analysis()["flops"] < (1.5 if "spatial" in mesh else 1.3) * work / 8


def test_kept_kernels_are_gathered_once() -> None:
    """Of a rematerialised block the backward pass gathers again, unless they are kept."""
    mesh = MeshConfig(data=4, fsdp=2).build()

    def gathers(remat: str) -> int:
        stage = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, remat=remat))
        return _lowered(stage, mesh)[0].as_text().count('"stablehlo.all_gather"')

    once = gathers("none")
    assert gathers("kernels") == once
    assert once < gathers("matmuls") <= 2 * once
