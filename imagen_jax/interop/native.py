"""A stage of DeepFloyd IF as one of ours: network, diffusion and sampling settings in the terms of `Stage`."""

from typing import Any

from imagen_jax.diffusion.noise_conditioning import CosineNoise, DiscreteNoise
from imagen_jax.diffusion.samplers import DDPMSampler
from imagen_jax.diffusion.schedules import DiscreteSchedule
from imagen_jax.diffusion.time_grids import SpacedGrid
from imagen_jax.errors import UserError
from imagen_jax.interop.if_stage import IFStage
from imagen_jax.interop.scheduler import DiscreteDDPM
from imagen_jax.models.if_backbone import IFBackbone
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage

# What IF's pipelines in diffusers draw with unless they are told otherwise; IF was trained with this many tokens.
STEPS, SR_STEPS, WEIGHT, SR_WEIGHT, AUG_LEVEL, TOKENS = 100, 50, 7.0, 4.0, 0.25, 77
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def native_stage(one: IFStage, image_size: int, low_res_size: int | None = None) -> tuple[Stage, SamplingConfig]:
    """The stage and its sampling; IFStage.params are its parameters.

    Args:
      one: as `load_if_stage` gives it.
      image_size: side of its images, in pixels: sample_size of unet/config.json.
      low_res_size: super-resolution: side of the images that it enlarges; None of a base stage.

    Raises:
      UserError: a scheduler has betas or a clipping that no `Stage` has, or the sizes do not fit each other.
    """
    noising = None if one.noising is None else DiscreteNoise(schedule=_schedule(one.noising))
    if (noising is None) != (low_res_size is None):
        what = "enlarges no images" if noising is None else "enlarges images"
        raise UserError(f"this stage of DeepFloyd IF {what}, but low_res_size is {low_res_size}")
    schedule = _schedule(one.scheduler)
    # Any: Linen's own signatures are wider than a Backbone's.
    model: Any = IFBackbone(one.config, schedule, noising)
    stage = Stage(
        name="base" if noising is None else f"sr{image_size}",
        model=model,
        image_size=image_size,
        low_res_size=low_res_size,
        text_embed_dim=one.config.text_dim,
        max_text_length=TOKENS,
        schedule=schedule,
        prediction=_PREDICTIONS[one.scheduler.prediction_type],
        null_text="empty",
        enlargement="half_pixel" if noising is None else "corners",
        low_res_noise=noising or CosineNoise(),
    )
    return stage, _sampling(one.scheduler, noising is not None)


def _schedule(given: DiscreteDDPM) -> DiscreteSchedule:
    num = given.num_train_timesteps
    if given.beta_schedule == "squaredcos_cap_v2":
        return DiscreteSchedule(num_timesteps=num)
    if given.beta_schedule == "linear" and (given.beta_start * num, given.beta_end * num) == (0.1, 20.0):
        return DiscreteSchedule(betas="linear", num_timesteps=num)
    raise UserError(
        f"the betas {given.beta_schedule!r} from {given.beta_start} to {given.beta_end} over {num} times are none that "
        "a Stage has; expected squaredcos_cap_v2, or linear from 0.1 / T to 20 / T"
    )


def _sampling(given: DiscreteDDPM, enlarges: bool) -> SamplingConfig:
    learned = given.variance_type == "learned_range"
    thresholding = "dynamic" if given.thresholding else "static" if given.clip_sample else "none"
    if thresholding == "static" and given.clip_sample_range != 1.0:
        raise UserError(f"clip_sample_range ({given.clip_sample_range}) must be 1, the range of the images here")
    return SamplingConfig(
        num_steps=SR_STEPS if enlarges else STEPS,
        sampler=DDPMSampler(gamma=float(given.variance_type == "fixed_large"), use_learned=learned),
        times=SpacedGrid(
            spacing=given.timestep_spacing, num_timesteps=given.num_train_timesteps, offset=given.steps_offset
        ),
        guidance_weight=SR_WEIGHT if enlarges else WEIGHT,
        thresholding=thresholding,
        percentile=100 * given.dynamic_thresholding_ratio,
        threshold_cap=given.sample_max_value,
        aug_level=AUG_LEVEL if enlarges else 0.0,
    )
