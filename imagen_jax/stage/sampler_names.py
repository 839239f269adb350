"""Samplers by the names that flags and sweeps call them."""

from typing import Any

from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverSampler, HeunSampler, Sampler
from imagen_jax.diffusion.schedules import EDMSchedule
from imagen_jax.diffusion.time_grids import UniformGrid
from imagen_jax.errors import UserError

SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPMSampler(),
    "ddim": DDIMSampler(),
    "dpm++": DPMSolverSampler(),
    "dpm++sde": DPMSolverSampler(eta=1.0),
    "heun": HeunSampler(),
}


def sampler_settings(name: str) -> dict[str, Any]:
    """Fields of `SamplingConfig` that a sampler's name stands for.

    Raises:
      UserError: there is no such sampler.
    """
    if name not in SAMPLERS:
        raise UserError(f"sampler ({name!r}) must be one of {', '.join(SAMPLERS)}")
    changes: dict[str, Any] = {"sampler": SAMPLERS[name]}
    if name == "heun":
        # The stage's times are of its own schedule.
        changes |= {"schedule": EDMSchedule(), "times": UniformGrid()}
    return changes
