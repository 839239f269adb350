"""Bytes of collectives, in programs whose bytes are known, as XLA compiles them for eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from imagen_jax.cost import hlo
from imagen_jax.cost.collectives import Collective, _groups, by_kind_and_axis, largest_by_kind, read_collectives

AXES = ("data", "fsdp", "tensor")
ALL = PartitionSpec(AXES)
N = 128  # float32 values of one device.
BYTES = 4 * N


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), AXES)


def compiled(function, mesh) -> hlo.Module:
    """The program of `function` of one device's N values, on all of them."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=ALL, out_specs=ALL, check_vma=False)
    lowered = jax.jit(mapped).lower(jax.ShapeDtypeStruct((8 * N,), jnp.float32))
    return hlo.parse(lowered.compile().as_text())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: jax.lax.psum(x, "data"), {"all-reduce": {"data": BYTES}}),
        (lambda x: jax.lax.psum(x, ("data", "tensor")), {"all-reduce": {"data+tensor": BYTES}}),
        (lambda x: jax.lax.psum(x, AXES), {"all-reduce": {"data+fsdp+tensor": BYTES}}),
        (lambda x: jax.lax.all_gather(x, "fsdp"), {"all-gather": {"fsdp": 2 * BYTES}}),
        (lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True), {"reduce-scatter": {"tensor": BYTES}}),
        (lambda x: jax.lax.all_to_all(x.reshape(2, -1), "fsdp", 0, 0), {"all-to-all": {"fsdp": BYTES}}),
        (
            lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]),
            {"collective-permute": {"tensor": BYTES}},
        ),
        (lambda x: jnp.sin(x), {}),
    ],
)
def test_one_collective(mesh, function, expected):
    assert by_kind_and_axis(read_collectives(compiled(function, mesh), mesh)) == expected


@pytest.mark.parametrize("length", [3, 7])
def test_a_scan_repeats_its_collectives(mesh, length):
    def function(x):
        def inner(h, _):
            return jax.lax.psum(jnp.sin(h), "data"), None

        def outer(h, _):
            h = jax.lax.scan(inner, h, length=length)[0]
            return jax.lax.psum(jnp.cos(h), "fsdp"), None

        return jax.lax.scan(outer, x, length=5)[0]

    found = read_collectives(compiled(function, mesh), mesh)
    assert by_kind_and_axis(found) == {"all-reduce": {"data": 5 * length * BYTES, "fsdp": 5 * BYTES}}
    assert largest_by_kind(found) == {"all-reduce": BYTES}


@pytest.mark.parametrize(
    ("kind", "size", "sent"),
    [
        ("all-gather", 4, 75.0),
        ("reduce-scatter", 4, 75.0),
        ("all-to-all", 4, 75.0),
        ("all-reduce", 4, 150.0),
        ("all-reduce", 2, 100.0),
        ("collective-permute", 4, 100.0),
    ],
)
def test_what_a_device_sends(kind, size, sent):
    one = Collective(kind, ("data",), size, 100, 1, False)
    assert one.sent == sent
    assert Collective(kind, ("data",), size, 100, 6, False).sent == 6 * sent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, x={}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ],
)
def test_every_spelling_of_groups(text, expected):
    assert _groups(hlo.Instruction("a", "f32[]", "all-reduce", "%b", ", " + text, False), 4) == expected


# What the TPU compiler writes and the CPU compiler does not, cut short from programs for v5e.
TPU = """
%all-reduce-scatter.1 (input: bf16[8,4]) -> bf16[2,4] {
  %input = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.5 = bf16[8,4]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[2,4]{1,0} slice(%all-reduce.5), slice={[0:2], [0:4]}
}

%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %state = (s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = bf16[8,4]{1,0} get-tuple-element(%state), index=1
  %scatter = bf16[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (bf16[8,4], bf16[8,4], u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,4},{4,0}}
  ROOT %out = (s32[], bf16[8,4]{1,0}) tuple(%next, %x)
}

%condition (state.1: (s32[], bf16[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %state.1 = (s32[]{:T(128)}, /*index=1*/bf16[8,4]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (x.1: bf16[8,4]) -> bf16[8,4] {
  %x.1 = bf16[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], bf16[8,4]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], bf16[8,4]{1,0}) while(%init), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %result = bf16[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_what_the_tpu_compiler_writes(mesh):
    found = by_kind_and_axis(read_collectives(hlo.parse(TPU), mesh))
    # The loop counts 0, 2, 4, 6.
    size = 8 * 4 * 2
    assert found == {"reduce-scatter": {"fsdp+tensor": 4 * size}, "collective-permute": {"data": 4 * size}}
