"""FLOPs counted on jaxprs against sums by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from imagen_jax.cost.flops import count_flops, model_flops, peak_flops
from imagen_jax.sharding.mesh import MeshConfig


def test_matmul_scan_and_gradient():
    x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))
    once = 2 * 4 * 8 * 8
    assert count_flops(lambda x, w: x @ w, x, w) == once

    def repeated(x, w):
        return jax.lax.scan(lambda h, _: (jnp.sin(h @ w), None), x, length=5)[0]

    assert count_flops(jax.jit(repeated), x, w) == 5 * once
    # Backward: one matmul for the input's and one for the kernel's gradient.
    assert count_flops(jax.grad(lambda w, x: repeated(x, w).sum()), w, x) == 15 * once


def test_one_devices_program_counts_for_all():
    """Rows split eight ways are the same work; a matmul that every device repeats is eight times the work."""
    mesh = MeshConfig(data=4, fsdp=2).build()
    x, w = jnp.zeros((16, 8)), jnp.zeros((8, 8))
    once = 2 * 16 * 8 * 8
    for rows, times in ((P(("data", "fsdp")), 1), (P("data"), 2), (P(), 8)):
        run = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(rows, P()), out_specs=rows, check_vma=False)
        assert count_flops(run, x, w) == times * once


def test_convolution():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    flops = count_flops(convolve, jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16)))
    assert flops == 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)


@pytest.mark.parametrize("remat", ["none", "each", "whole", "both"])
def test_what_remat_repeats_is_no_work_of_the_model(remat):
    def layer(h, w):
        return jnp.sin(jnp.sin(h @ w) @ w), None

    def loss(ws, x):
        body = jax.checkpoint(layer) if remat in ("each", "both") else layer
        return jax.lax.scan(body, x, ws)[0].sum(), {"also": x}

    whole = jax.checkpoint(loss) if remat in ("whole", "both") else loss
    x, ws = jnp.zeros((4, 8)), jnp.zeros((5, 8, 8))
    once = 2 * 4 * 8 * 8
    # Two matmuls a layer, each with a gradient of its input and of its kernel; the first input needs none, but a scan
    # treats its layers alike.
    assert model_flops(whole, ws, x) == 5 * 6 * once
    with_remat = count_flops(jax.grad(whole, has_aux=True), ws, x)
    assert with_remat > 5 * 6 * once or remat == "none"


def test_a_branch_counts_as_often_as_it_is_taken():
    """A gradient through one matmul always, and a second, undifferentiated one in half of the cases."""

    def loss(w, x, coin):
        first = jax.lax.cond(coin, lambda: jax.lax.stop_gradient(x @ w), lambda: jnp.zeros_like(x))
        return ((x + first) @ w).sum()

    w, x, once = jnp.zeros((8, 8)), jnp.zeros((4, 8)), 2 * 4 * 8 * 8
    for taken in (0.0, 0.5, 1.0):
        assert model_flops(loss, w, x, True, taken=taken) == (2 + taken) * once


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU7x", 2307e12 / 2), ("NVIDIA H200", 989.5e12), ("cpu", None)],
)
def test_peaks(kind, expected):
    assert peak_flops(kind) == expected
