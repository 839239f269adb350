"""The same gradient on all devices: a device that computes other bits is found and named."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.checkpoints.trees import TrainState
from imagen_jax.errors import UserError
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import batch_sharding, replicated
from imagen_jax.train import loop
from imagen_jax.train.hooks import StepInfo
from imagen_jax.train.objective import Objective
from imagen_jax.train.recomputation import GradientCheck
from imagen_jax.train.replicas import check_replicas
from tests.train import tiny_run
from tests.train.test_replicas import flipped

AXES = ("data", "fsdp", "tensor", "spatial")


class Line(Objective):
    """Squared error of a linear map; one device of a mesh computes it wrongly, in the last bit."""

    def __init__(self, wrong_place: int | None = None):
        self._wrong_place = wrong_place

    def loss(self, params, frozen, batch, rng, mesh=None):
        noise = jax.random.normal(rng, batch["x"].shape)
        error = (batch["x"] + noise) @ params["slope"] - params["offset"]
        if self._wrong_place is not None:
            here = jax.lax.axis_index(AXES) == self._wrong_place
            error = error * jnp.where(here, 1 + 2.0**-23, 1.0)
        return (error**2).mean(), {}


def at_step(step: int, num_devices: int, **axes: int) -> tuple[Any, StepInfo, dict[str, jax.Array]]:
    mesh = MeshConfig(**axes).build(jax.devices()[:num_devices])
    rng = np.random.default_rng(0)
    params = {"slope": rng.normal(size=6).astype(np.float32), "offset": np.float32(2)}
    state = TrainState(step=np.int32(step), params=params, ema_params=(), opt_state=())
    batch = {"x": rng.normal(size=(12, 6)).astype(np.float32)}
    info = StepInfo(step=step, state=jax.device_put(state, replicated(mesh)))
    return mesh, info, jax.device_put(batch, batch_sharding(mesh))


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2}, {"fsdp": 3, "tensor": 2}])
def test_a_device_that_computes_wrongly_is_named(axes):
    mesh, info, batch = at_step(8, 6, **axes)
    for place in (None, 4):
        check = GradientCheck(4, Line(place), mesh)
        assert [step for step in range(9) if check.wants(step)] == [0, 4, 8]
        assert list(check.remembered(iter([batch]))) == [batch]
        if place is None:
            check.before_step(info)
            continue
        # All copies of the state are alike all the same.
        check_replicas(info.state, 8)
        device = mesh.devices.flat[place]
        with pytest.raises(UserError, match=rf"after step 8: {device} of process 0, in (loss; )?the gradient of"):
            check.before_step(info)


@pytest.mark.parametrize("bit", [12, 31])
def test_a_flipped_bit_of_one_copy_is_found_by_the_gradient_too(bit):
    """But for the last bits, which rounding may lose: those `check_replicas` finds."""
    mesh, info, batch = at_step(4, 3)
    check = GradientCheck(4, Line(), mesh, accumulate_steps=2)
    list(check.remembered(iter([batch])))
    bad = {**info.state.params, "slope": flipped(info.state.params["slope"], jax.devices()[2], bit)}
    with pytest.raises(UserError, match=rf"{jax.devices()[2]} of process 0, in loss; the gradient of offset; the grad"):
        check.before_step(StepInfo(step=4, state=info.state.replace(params=bad)))


def test_of_two_devices_both_are_named_and_one_alone_is_not_compared():
    mesh, info, batch = at_step(4, 2)
    check = GradientCheck(2, Line(1), mesh)
    check.before_step(info)  # No batch was drawn yet.
    list(check.remembered(iter([batch])))
    one, two = jax.devices()[:2]
    with pytest.raises(UserError, match=f"{one} of process 0, {two} of process 0, in"):
        check.before_step(info)
    assert not GradientCheck(2, Line(1), at_step(4, 1)[0]).wants(4)


@pytest.mark.usefixtures("tiny_data")
def test_a_sound_run_on_several_devices_is_checked_and_trains_the_same_bits(tmp_path, monkeypatch):
    build, looked = MeshConfig.build, []
    monkeypatch.setattr(MeshConfig, "build", lambda self, devices=None: build(self, devices or jax.devices()[:4]))
    before_step = GradientCheck.before_step
    monkeypatch.setattr(GradientCheck, "before_step", lambda self, info: looked.append(before_step(self, info)))
    changes: dict[str, Any] = {"num_steps": 5, "mesh": MeshConfig(fsdp=2), "accumulate_steps": 2}
    plain = loop.train(tiny_run.tiny_config(tmp_path / "plain", **changes))
    assert not looked
    checked = loop.train(tiny_run.tiny_config(tmp_path / "checked", sdc_every=2, **changes))
    assert looked == [None, None] and tiny_run.leaves_equal(checked, plain)
