"""Settings as plain data: what comes back equals what was given, and nothing else can be built."""

import dataclasses
import json

import flax.linen as nn
import jax.numpy as jnp
import pytest

from imagen_jax.checkpoints import plain_data
from imagen_jax.diffusion.guidance import IntervalGuidance
from imagen_jax.diffusion.losses import MinSNRWeighting
from imagen_jax.diffusion.samplers import DPMSolverSampler
from imagen_jax.diffusion.schedules import DiscreteSchedule
from imagen_jax.diffusion.time_grids import RespacedGrid
from imagen_jax.errors import UserError
from imagen_jax.models.unet import UNet
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage

STAGE = Stage(
    name="base",
    model=UNet(dim=8, dim_mults=(1, 2), num_res_blocks=1, attention=("none", "joint"), dtype=jnp.bfloat16),
    image_size=16,
    text_embed_dim=8,
    max_text_length=4,
    schedule=DiscreteSchedule(num_timesteps=100),
    weighting=MinSNRWeighting(),
)
SAMPLING = SamplingConfig(
    num_steps=4,
    sampler=DPMSolverSampler(eta=1.0),
    times=RespacedGrid(sections=(2, 2), num_timesteps=100),
    guidance_schedule=IntervalGuidance(t_min=0.2, t_max=0.8),
    guidance_weight=3.5,
)


@pytest.mark.parametrize("value", [STAGE, SAMPLING, (1, 2.5, None, True, "a"), float("inf"), float("-inf")])
def test_settings_survive_json(value):
    data = plain_data.to_data(value)
    text = json.dumps(data, allow_nan=False)
    assert plain_data.from_data(json.loads(text)) == value


def test_absent_fields_take_their_defaults():
    data = {"type": "SamplingConfig", "num_steps": 7}
    assert plain_data.from_data(data) == SamplingConfig(num_steps=7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Popen", "args": ["true"]}, "class 'Popen', which this program does not know"),
        ({"type": "os.system", "command": "true"}, "does not know"),
        ({"type": "UniformGrid", "t_first": 0.5}, "fields t_first, which it does not have"),
        ({"type": "UniformGrid", "t_last": 2.0}, "must be in"),
        ({"type": "Stage"}, "Stage cannot be built"),
        ({"type": "UNet", "dim": "8"}, "gives UNet '8' for dim; expected a whole number"),
        ({"type": "UNet", "dim": True}, "gives UNet 'True' for dim; expected a whole number"),
        ({"type": "UNet", "dim_mults": [1, 2.5]}, r"gives UNet '\(1, 2.5\)' for dim_mults; expected a tuple \(a whole"),
        ({"type": "UNet", "remat": 0.0}, "for remat; expected text"),
        ({"type": "SamplingConfig", "tile_size": "8"}, "for tile_size; expected a whole number or None"),
        ({"type": "SamplingConfig", "percentile": None}, "for percentile; expected a number"),
        ({"command": "true"}, "without a type"),
        ({"dtype": "object"}, "without a type"),
        ({"float": "1"}, "without a type"),
    ],
)
def test_a_record_builds_registered_classes_alone(data, message):
    with pytest.raises(UserError, match=message):
        plain_data.from_data(data)


class Unknown(nn.Module):
    dtype: type = jnp.float32


class Wider(UNet):
    pass


@pytest.mark.parametrize("model", [Unknown(), Wider(dim=8, dim_mults=(1,), num_res_blocks=1, attention=("none",))])
def test_classes_that_are_not_registered_are_named(model):
    with pytest.raises(UserError, match=f"{type(model).__name__}.*plain_data.register"):
        plain_data.to_data(model)


def test_a_name_belongs_to_one_class():
    class UNet:
        pass

    with pytest.raises(UserError, match="must be a dataclass"):
        plain_data.register(UNet)
    with pytest.raises(UserError, match="one class named UNet"):
        plain_data.register(dataclasses.dataclass(UNet))
