"""A network on a mesh that splits no rows: its loss and gradient are those of one device."""

import jax
import numpy as np
import pytest

from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import batch_sharding, param_shardings, unbox
from imagen_jax.stage.spec import Stage
from tests.tiny import BASE, SR, TRANSFORMER, batch


@pytest.mark.parametrize(
    ("stage", "config"),
    [
        pytest.param(BASE, MeshConfig(tensor=4), marks=pytest.mark.slow),
        pytest.param(SR, MeshConfig(tensor=2), marks=pytest.mark.slow),
        (SR, MeshConfig(spatial=2)),
        pytest.param(TRANSFORMER, MeshConfig(tensor=2), marks=pytest.mark.slow),
        pytest.param(TRANSFORMER, MeshConfig(spatial=2), marks=pytest.mark.slow),
    ],
    ids=["base_tensor4", "sr_tensor2", "sr_spatial2", "transformer_tensor2", "transformer_spatial2"],
)
def test_axes_inside_a_layer_work_without_rows_to_split(stage: Stage, config: MeshConfig) -> None:
    mesh = config.build(jax.devices()[: max(config.tensor, config.spatial)])
    boxed = jax.jit(stage.init)(jax.random.key(0))
    # The last layers begin at zero, behind which no gradient passes.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), unbox(boxed))
    rows = batch(stage, 3)

    def loss(params, rows, mesh=None):
        return stage.loss(params, rows, jax.random.key(3), mesh=mesh)[0]

    want, want_grads = jax.jit(jax.value_and_grad(loss))(params, rows)
    placed = jax.device_put(params, param_shardings(boxed, mesh)), jax.device_put(rows, batch_sharding(mesh))
    got, got_grads = jax.jit(jax.value_and_grad(lambda params, rows: loss(params, rows, mesh)))(*placed)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    for one, other in zip(jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(want)))
    if config.tensor > 1:
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed[0]))
