"""Any settings of a sampler either draw pictures or are refused in one line."""

import dataclasses
import random
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, samplers, schedules, time_grids
from imagen_jax.errors import UserError
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
from imagen_jax.stage.guided import Edit
from imagen_jax.stage.sampling_config import SamplingConfig
from tests.tiny import BASE, SR, batch
from tests.train.tiny_run import tiny_config

INF, NAN = float("inf"), float("nan")


class Halves(nn.Module):
    """eps from an image of half the size, which takes even sides alone, as a U-Net does."""

    size_factor = 2
    learned_variance = False
    conditions = CONDITIONS

    @nn.compact
    def __call__(self, z_t, log_snr, cond):
        b, h, w, c = z_t.shape
        small = z_t.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        told = cond.text_mask.mean(1)[:, None, None, None]
        return 0.3 * z_t + 0.1 * told * jnp.repeat(jnp.repeat(small, 2, 1), 2, 2)


STAGES = [dataclasses.replace(stage, model=Halves()) for stage in (BASE, SR)]
# Of each setting, makers of values that are fine by themselves, and of some that are not.
FINE: dict[str, list[Any]] = {
    "num_steps": [lambda: 1, lambda: 2, lambda: 3],
    "guidance_weight": [lambda: 0.0, lambda: 1.0, lambda: 3.0, lambda: 1e6],
    "thresholding": [lambda: "none", lambda: "static", lambda: "dynamic"],
    "percentile": [lambda: 99.5, lambda: 100.0, lambda: 1.5],
    "threshold_cap": [lambda: INF, lambda: 1.0, lambda: 1.5],
    "aug_level": [lambda: 0.0, lambda: 0.5, lambda: 1.0],
    "tile_size": [lambda: None, lambda: 8, lambda: 4, lambda: 99],
    "sampler": [
        lambda: samplers.DDPMSampler(),
        lambda: samplers.DDPMSampler(gamma=1.0),
        lambda: samplers.DDIMSampler(),
        lambda: samplers.DDIMSampler(eta=1.0),
        lambda: samplers.DPMSolverSampler(),
        lambda: samplers.DPMSolverSampler(eta=1.0),
        lambda: samplers.HeunSampler(),
        lambda: samplers.HeunSampler(churn=0.4, noise_scale=1.01),
    ],
    "times": [
        lambda: time_grids.UniformGrid(),
        lambda: time_grids.UniformGrid(t_last=0.9),
        lambda: time_grids.EDMGrid(),
        lambda: time_grids.RespacedGrid(sections=(1, 1)),
    ],
    "schedule": [
        lambda: None,
        lambda: schedules.LinearSchedule(),
        lambda: schedules.FlowSchedule(shift=3.0),
        lambda: schedules.EDMSchedule(),
        lambda: schedules.DiscreteSchedule(),
        lambda: schedules.DiscreteSchedule(num_timesteps=21),
        lambda: schedules.LogNormalSchedule(),
    ],
    "guidance_schedule": [
        lambda: guidance.ConstantGuidance(),
        lambda: guidance.IntervalGuidance(t_min=0.2, t_max=0.5),
        lambda: guidance.OscillatingGuidance(low=0.0),
    ],
}
BAD: dict[str, list[Any]] = {
    "num_steps": [lambda: 0, lambda: -1, lambda: 22, lambda: 10**11],
    "guidance_weight": [lambda: -1.0, lambda: INF, lambda: NAN],
    "thresholding": [lambda: "soft"],
    "percentile": [lambda: 0.5, lambda: NAN],
    "threshold_cap": [lambda: 0.5, lambda: NAN],
    "aug_level": [lambda: 1.5, lambda: NAN],
    "tile_size": [lambda: 3, lambda: 1, lambda: 0],
    "tile_overlap": [lambda: 8, lambda: -1],
    "sampler": [lambda: samplers.DDIMSampler(eta=NAN), lambda: samplers.HeunSampler(churn=NAN)],
    "times": [lambda: time_grids.RespacedGrid(sections=(1,) * 9), lambda: time_grids.RespacedGrid(sections=())],
    "schedule": [
        lambda: schedules.FlowSchedule(shift=INF),
        lambda: schedules.EDMSchedule(rho=1e-9),
        lambda: schedules.EDMSchedule(sigma_max=INF),
        lambda: schedules.CosineSchedule(shift=NAN),
    ],
    "guidance_schedule": [
        lambda: guidance.IntervalGuidance(t_min=0.5, t_max=0.2),
        lambda: guidance.OscillatingGuidance(low=NAN),
    ],
}


def draw_at_random(rng: random.Random) -> np.ndarray:
    stage = rng.choice(STAGES)
    makers = {name: rng.choice(fine) for name, fine in FINE.items() if rng.random() < 0.5}
    if rng.random() < 0.5:
        name = rng.choice(list(BAD))
        makers[name] = rng.choice(BAD[name])
    config = SamplingConfig(**{"num_steps": 2, **{name: make() for name, make in makers.items()}})
    rows = batch(stage, rng.choice([1, 2]))
    given = SampleRows(image_keys(0, jnp.arange(len(rows["x0"]))), rows["text"], rows["text_mask"], rows.get("low_res"))
    edit = None
    if rng.random() < 0.3:
        mask = rng.choice([None, (rows["x0"][..., :1] > 0).astype(jnp.float32)])
        again = {"num_resamples": rng.choice([1, 2]), "jump_length": rng.choice([1, 5])}
        edit = Edit(image=rows["x0"], mask=mask, strength=rng.choice([1.0, 0.5, 1e-6]), **again)
    size = rng.choice([None, (8, 8), (4, 12), (7, 8)]) if stage.low_res_size is None and edit is None else None
    return np.asarray(sample_stage(stage, config, {}, given, size=size, edit=edit))


@pytest.mark.parametrize("seed", range(4))
def test_pictures_or_one_line(seed: int) -> None:
    rng = random.Random(seed)
    drawn = refused = 0
    for _ in range(16):
        try:
            images = draw_at_random(rng)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert np.isfinite(images).all() and np.abs(images).max() <= 1.0
            drawn += 1
    assert drawn > 2 and refused > 2


def test_previews_that_the_network_cannot_draw_are_refused_before_training(tmp_path) -> None:
    halves = dataclasses.replace(tiny_config(tmp_path).stage, model=Halves())
    with pytest.raises(UserError, match=r"tile_size \(3\) must be a multiple of 2, .* choose 2 or 4"):
        tiny_config(tmp_path, stage=halves, sampling=SamplingConfig(tile_size=3))
    few = dataclasses.replace(halves, schedule=schedules.DiscreteSchedule(num_timesteps=21))
    with pytest.raises(UserError, match=r"num_steps \(64\) is more than the schedule has: 21"):
        tiny_config(tmp_path, stage=few)
