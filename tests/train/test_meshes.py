"""A whole network on a mesh of eight devices: loss and gradients are those of one device."""

import flax.linen as nn
import jax
import numpy as np

from imagen_jax.sharding import rules
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train.step import loss_and_grads
from tests.tiny import BASE, batch


def test_loss_and_gradients_are_those_of_one_device() -> None:
    """All three axes are larger than one, which simpler meshes do not stand for: XLA takes other ways there."""
    boxed = jax.jit(BASE.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(nn.unbox(boxed))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    values = jax.device_get(jax.tree.unflatten(tree, noisy))
    found = []
    for mesh in (MeshConfig().build(jax.devices()[:1]), MeshConfig(data=2, fsdp=2, tensor=2).build()):
        params = jax.device_put(values, rules.param_shardings(boxed, mesh))
        rows = jax.device_put(batch(BASE, 16), rules.batch_sharding(mesh))
        step = jax.jit(lambda params, rows, mesh=mesh: loss_and_grads(BASE, params, rows, jax.random.key(3), 1, mesh))
        found.append(jax.device_get(step(params, rows)))
    (expected, expected_grads), (metrics, grads) = found
    assert abs(metrics["loss"] / expected["loss"] - 1) < 1e-5
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), grads, expected_grads)
