"""FLOPs and bytes read from compiled programs against sums by hand."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.cost import hlo
from imagen_jax.cost.hlo_work import _taps, hbm_bytes, layout_bytes, matmul_flops

ROWS, WIDTH, LENGTH = 16, 32, 5
ONE = 2 * ROWS * WIDTH * WIDTH


def flops(function, *args) -> int:
    """FLOPs of the compiled program."""
    return matmul_flops(hlo.parse(jax.jit(function).lower(*args).compile().as_text()))


@pytest.mark.parametrize(("remat", "matmuls"), [(False, 3), (True, 4)])
def test_a_scan_counts_every_iteration_and_what_is_recomputed(remat, matmuls):
    def layer(h, w):
        return jnp.sin(h @ w), None

    def loss(ws, x):
        return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, ws)[0].sum()

    # Forward, gradient of the input and of the kernel; with remat the forward product once more.
    assert flops(jax.grad(loss), jnp.ones((LENGTH, WIDTH, WIDTH)), jnp.ones((ROWS, WIDTH))) == matmuls * LENGTH * ONE


def test_batched_matmul():
    assert (
        flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6)))
        == 2 * 3 * 4 * 5 * 6
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_gradients(stride):
    numbers = ("NHWC", "HWIO", "NHWC")

    def loss(kernel, x):
        return jnp.sin(
            jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)
        ).sum()

    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 16))
    once = 2 * (2 * (8 // stride) ** 2 * 16) * (3 * 3 * 4)
    assert flops(loss, kernel, x) == once
    assert flops(jax.grad(loss, argnums=(0, 1)), kernel, x) == 3 * once


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((8, 3, 8, 1, (1, 1), 1, 1), 24),
        # Batched matmuls as the TPU compiler writes them: four windows, each meets one entry.
        ((4, 4, 4, 3, (0, 0), 4, 1), 4),
        # An outer dimension of 3, written as a padded window over one entry.
        ((1, 3, 3, 1, (2, 2), 1, 1), 3),
    ],
)
def test_taps_that_are_work(window, expected):
    assert _taps(*window) == expected


TEXT = """
%fused (p0: f32[6,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[6,256]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,256]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,256}
}

%update (q0: f32[6,256], q1: f32[1,256], q2: s32[]) -> f32[6,256] {
  %q0 = f32[6,256]{1,0} parameter(0)
  %q1 = f32[1,256]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = f32[6,256]{1,0} dynamic-update-slice(%q0, %q1, %q2, %q2)
}

ENTRY %main (x: f32[6,256], i: s32[]) -> f32[6,256] {
  %x = f32[6,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %part = f32[1,256]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %near = f32[1,256]{1,0:T(8,128)S(1)} negate(%part)
  %sum = f32[1,256]{1,0} add(%near, %part)
  ROOT %all = f32[6,256]{1,0} fusion(%x, %sum, %i), kind=kLoop, calls=%update
}
"""


def test_slices_and_on_chip_memory_count_what_moves():
    row, index = 4 * 256, 4
    fused = row + row + index  # A slice is read, its copy written.
    negate = row  # The result stays on chip.
    add = row + row
    update = row + row + index  # The slice is written in place; the rest of the buffer stays.
    assert hbm_bytes(hlo.parse(TEXT)) == fused + negate + add + update


@pytest.mark.parametrize(
    ("shape", "logical", "in_hbm"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096, 4096),
        ("f32[3,5]{1,0:T(8,128)}", 60, 4096),
        ("f32[3,5]{0,1:T(8,128)}", 60, 4096),
        ("bf16[9,200]{0,1:T(8,128)(2,1)}", 3600, 2 * 128 * 200),
        ("f32[5]{0:T(128)}", 20, 512),
        ("f32[5]{0:T(128)S(1)}", 20, 0),
        ("pred[4]{0}", 4, 4),
        ("(f32[2], /*index=1*/s32[], token[])", 12, 12),
    ],
)
def test_sizes_with_and_without_tiles(shape, logical, in_hbm):
    arrays = hlo.parse_shape(shape)
    assert sum(array.num_bytes for array in arrays) == logical
    assert sum(array.hbm_bytes for array in arrays) == in_hbm


def test_bytes_that_only_change_a_layout():
    """A transposed product needs an array to be written anew; a sum that is read transposed does not."""
    x = jnp.ones((64, 32, 16))

    def layouts(function) -> int:
        return layout_bytes(hlo.parse(jax.jit(function).lower(x).compile().as_text()))

    assert layouts(lambda x: x.transpose(2, 0, 1)) == 2 * 4 * 64 * 32 * 16
    assert layouts(lambda x: jnp.sin(x.transpose(2, 0, 1))) == 0
    assert layouts(lambda x: jnp.sin(x)) == 0
