"""Mesh shapes, and the errors for those that do not fit."""

import jax
import numpy as np
import pytest

from imagen_jax.cost import topologies
from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig


@pytest.mark.parametrize(
    ("config", "num", "expected"),
    [
        (MeshConfig(), 8, (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), 8, (2, 4, 1, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), 256, (1, 128, 2, 1)),
        (MeshConfig(fsdp=2, spatial=2), 8, (2, 2, 1, 2)),
    ],
)
def test_shapes(config, num, expected):
    assert config.shape(num) == expected


def test_built_mesh_has_every_device_once():
    mesh = MeshConfig(fsdp=2, tensor=2).build()
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "spatial": 1}
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), "does not fit 8 devices: the fixed axes multiply to 3"),
        (MeshConfig(data=2, fsdp=2, tensor=1), "uses 4 of 8 devices"),
        (MeshConfig(data=16), "does not fit 8 devices"),
        (MeshConfig(tensor=2, spatial=2), "tensor or spatial must be 1"),
    ],
)
def test_wrong_products_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        config.build()


@pytest.mark.parametrize("values", [{"fsdp": 0}, {"data": -2}, {"tensor": True}, {"data": -1, "fsdp": -1}])
def test_wrong_sizes_are_refused(values):
    with pytest.raises(UserError, match="mesh axis"):
        MeshConfig(**values)


def test_slices_lie_along_data():
    pytest.importorskip("libtpu")
    mesh = MeshConfig(fsdp=2).build(topologies.devices("v5e-4", num_slices=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1, "spatial": 1}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices[:2] == slices[0, 0, 0, 0]).all() and (slices[2:] == slices[2, 0, 0, 0]).all()
    assert slices[0, 0, 0, 0] != slices[2, 0, 0, 0]


def test_an_axis_that_leaves_its_slice_is_refused():
    assert MeshConfig(fsdp=4).shape(8, num_slices=2) == (2, 4, 1, 1)
    with pytest.raises(UserError, match=r"data \(1\) must be divisible by the 2 slices.*divides 4"):
        MeshConfig(fsdp=8).shape(8, num_slices=2)
