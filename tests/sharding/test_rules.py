"""Which dimension is sharded, and how batches divide."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import AXES, MeshConfig
from imagen_jax.sharding.rules import (
    batch_sharding,
    param_shardings,
    partition_spec,
    per_device_batch,
    rows_of_process,
    unbox,
)

CONV = ("conv_h", "conv_w", "conv_in", "conv_out")


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (CONV, (3, 3, 16, 32), P(None, None, None, "fsdp")),
        (CONV, (3, 3, 16, 3), P(None, None, "fsdp")),
        (CONV, (3, 3, 3, 3), P()),
        (("embed", "heads"), (16, 64), P("fsdp", "tensor")),
        (("heads", "embed"), (64, 16), P("tensor", "fsdp")),
        (("embed", "mlp"), (15, 64), P(None, "tensor")),
        (("somewhere", "else"), (64, 64), P()),
        (("layers", "embed"), (4, 16), P(None, "fsdp")),
        (("conv_out",), (32,), P()),
    ],
)
def test_specs(names, shape, expected):
    assert partition_spec(names, shape, MeshConfig(data=2, fsdp=2, tensor=2).build()) == expected


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that says which process it belongs to."""

    id: int
    process_index: int


@pytest.mark.parametrize(
    ("config", "process_of", "expected"),
    [
        # Two hosts of four devices, one row a device.
        (MeshConfig(data=8), [0, 0, 0, 0, 1, 1, 1, 1], {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}),
        # The same, the devices of a host no neighbours.
        (MeshConfig(data=8), [0, 1, 1, 0, 0, 0, 1, 1], {0: [0, 3, 4, 5], 1: [1, 2, 6, 7]}),
        # tensor spans both hosts: each row lies on both.
        (MeshConfig(data=1, tensor=8), [0, 0, 0, 0, 1, 1, 1, 1], {0: list(range(8)), 1: list(range(8))}),
        # Four hosts of two devices, pairs of them share rows.
        (MeshConfig(data=2, tensor=4), [0, 0, 1, 1, 2, 2, 3, 3], {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 3: [4, 5, 6, 7]}),
        (MeshConfig(data=2, spatial=4), [0, 0, 1, 1, 2, 2, 3, 3], {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 3: [4, 5, 6, 7]}),
        (MeshConfig(data=2, tensor=4), [0, 1, 0, 1, 0, 1, 0, 1], {0: list(range(8)), 1: list(range(8))}),
    ],
)
def test_a_process_has_the_rows_of_its_devices(config, process_of, expected):
    mesh = Mesh(np.asarray(jax.devices()).reshape(config.shape(8)), AXES)
    placed = {
        Device(device.id, process_of[device.id]): index
        for device, index in batch_sharding(mesh).devices_indices_map((8,)).items()
    }
    for process, rows in expected.items():
        assert rows_of_process(placed, 8, process).tolist() == rows


def test_axes_of_size_one_shard_nothing():
    assert partition_spec(CONV, (3, 3, 16, 32), MeshConfig().build()) == P()


def test_shardings_of_boxed_parameters_follow_the_unboxed_structure():
    mesh = MeshConfig(fsdp=8).build()
    boxed = {
        "kernel": nn.LogicallyPartitioned(jnp.zeros((3, 3, 8, 16)), CONV),
        "plain": jnp.zeros((8, 8)),
    }
    shardings = param_shardings(boxed, mesh)
    assert shardings["kernel"].spec == P(None, None, None, "fsdp")
    assert shardings["plain"].spec == P()
    placed = jax.device_put(unbox(boxed), shardings)
    assert placed["kernel"].addressable_shards[0].data.shape == (3, 3, 8, 2)


def test_batch_divides_over_data_and_fsdp_and_microbatches():
    mesh = MeshConfig(fsdp=2, tensor=2).build()
    assert per_device_batch(24, mesh) == 6
    assert per_device_batch(24, mesh, accumulate_steps=3) == 2


@pytest.mark.parametrize(("batch", "nearest"), [(10, "choose 8 or 16"), (3, "choose 8$")])
def test_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch, nearest):
    with pytest.raises(UserError, match=rf"batch_size \({batch}\).*8 devices split it 8 ways.*{nearest}"):
        per_device_batch(batch, MeshConfig().build())
