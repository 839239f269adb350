"""A run on fewer devices than planned: the same batch, as many rows of a device at a time."""

import jax
import pytest

from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import per_device_batch
from imagen_jax.train.fewer_devices import on_devices
from tests.train import tiny_run


@pytest.mark.parametrize(
    ("mesh", "left", "shape"),
    [
        ({}, 2, (2, 1, 1, 1)),
        ({"fsdp": 4}, 4, (1, 4, 1, 1)),
        ({"fsdp": 4}, 2, (1, 2, 1, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 1, (1, 1, 1, 1)),
    ],
)
def test_rows_of_a_device_stay_and_the_batch_too(mesh, left, shape):
    config = tiny_run.tiny_config("none", mesh=MeshConfig(**mesh), planned_devices=8, accumulate_steps=2)
    found, told = on_devices(config, left)
    assert found.mesh.shape(left) == shape and f"{left} of 8 planned devices are here" in told
    rows = [
        per_device_batch(one.batch_size, one.mesh.build(jax.devices()[:number]), one.accumulate_steps)
        for one, number in ((config, 8), (found, left))
    ]
    assert rows[0] == rows[1] and found.batch_size == config.batch_size


def test_enough_devices_or_no_plan_change_nothing_and_odd_numbers_are_refused():
    plain = tiny_run.tiny_config("none")
    assert on_devices(plain, 3) == (plain, "")
    planned = tiny_run.with_changes(plain, planned_devices=8)
    assert on_devices(planned, 8) == (planned, "")
    with pytest.raises(UserError, match="6 devices are here, of 8 planned ones; .* start the run on 4 of them"):
        on_devices(planned, 6)
