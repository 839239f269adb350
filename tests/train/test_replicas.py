"""Replicas on several devices: one flipped bit is found, and its device named."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.train.hooks import StepInfo
from imagen_jax.train.replicas import ReplicaCheck, check_replicas, odd_ones


def state_on(num_devices: int, fsdp: int) -> TrainState:
    mesh = MeshConfig(fsdp=fsdp).build(jax.devices()[:num_devices])
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(8, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("fsdp"))
    placed = {"kernel": jax.device_put(params["kernel"], split), "bias": jax.device_put(params["bias"], whole)}
    opt_state = jax.device_put(optax.adam(1e-3).init(params), whole)
    return TrainState(step=jax.device_put(np.int32(4), whole), params=placed, ema_params=placed, opt_state=opt_state)


def flipped(array: jax.Array, device: jax.Device, bit: int) -> jax.Array:
    """The same array, but for one bit of one device's copy."""
    parts = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device == device:
            data.view(np.uint32).flat[1] ^= np.uint32(1 << bit)
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


@pytest.mark.parametrize("bit", [0, 17, 31])
@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_one_flipped_bit_is_found_and_its_device_named(name, bit):
    state = state_on(6, fsdp=2)
    check_replicas(state, 4)
    device = jax.devices()[3]
    bad = state.replace(params={**state.params, name: flipped(state.params[name], device, bit)})
    check = ReplicaCheck(4)
    assert [step for step in range(9) if check.wants(step)] == [0, 4, 8]
    with pytest.raises(UserError, match=rf"differ at step 4, on {device} of process 0, in params.{name}: a device"):
        check.before_step(StepInfo(step=4, state=bad))


def test_of_two_replicas_both_are_named():
    state = state_on(2, fsdp=1)
    one, two = jax.devices()[:2]
    bad = state.replace(params={**state.params, "bias": flipped(state.params["bias"], two, 3)})
    with pytest.raises(UserError, match=f"on {one} of process 0, {two} of process 0, in params.bias"):
        check_replicas(bad, 4)


def test_most_are_taken_for_right():
    assert odd_ones({0: 5, 1: 5, 2: 5}) == [] and odd_ones({7: 1}) == []
    assert odd_ones({0: 5, 1: 6, 2: 5}) == [1]
    assert odd_ones({0: 5, 1: 6, 2: 5, 3: 6}) == [0, 1, 2, 3]
