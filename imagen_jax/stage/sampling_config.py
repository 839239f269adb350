"""Sampling settings of a trained stage."""

import dataclasses
from typing import Any

from imagen_jax.checks import check_count
from imagen_jax.diffusion import guidance, noise_conditioning, thresholding
from imagen_jax.diffusion.guidance import ConstantGuidance, GuidanceSchedule
from imagen_jax.diffusion.samplers import DDIMSampler, Sampler
from imagen_jax.diffusion.schedules import MAX_STEPS, Schedule
from imagen_jax.diffusion.time_grids import TimeGrid, UniformGrid
from imagen_jax.errors import UserError
from imagen_jax.stage.tiles import check_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling settings of a stage.

    Args:
      num_steps: steps from noise to image; the paper does not state a number. A step calls the network once (guided
        calls count once), with HeunSampler twice.
      sampler: DDPMSampler, DDIMSampler, DPMSolverSampler or HeunSampler.
      times: which times the steps are between.
      schedule: log-SNR of those times; None is the stage's own.
      guidance_weight: w of classifier-free guidance; 1 is off, 0 unconditional.
      guidance_schedule: how w changes over the steps.
      thresholding: "dynamic", "static" or "none".
      percentile: of dynamic thresholding, on the 0-100 scale (paper: 99.5).
      threshold_cap: the most that dynamic thresholding clips to; the paper has none.
      aug_level: super-resolution: how far the low-res image is corrupted at inference, in [0, 1].
      tile_size: images are drawn in overlapping tiles of this side, in pixels; None: whole.
      tile_overlap: pixels that neighbouring tiles share at least.
    """

    num_steps: int = 64
    sampler: Sampler = DDIMSampler()
    times: TimeGrid = UniformGrid()
    schedule: Schedule | None = None
    guidance_weight: float = 1.0
    guidance_schedule: GuidanceSchedule = ConstantGuidance()
    thresholding: str = "dynamic"
    percentile: float = 99.5
    threshold_cap: float = float("inf")
    aug_level: float = 0.0
    tile_size: int | None = None
    tile_overlap: int = 0

    def __post_init__(self) -> None:
        check_count("num_steps", self.num_steps, hint="32 to 256 is usual", most=MAX_STEPS)
        kinds: dict[str, tuple[Any, str]] = {
            "sampler": (Sampler, "@DDIMSampler()"),
            "times": (TimeGrid, "@UniformGrid()"),
            "guidance_schedule": (GuidanceSchedule, "@ConstantGuidance()"),
        }
        for name, (kind, example) in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise UserError(f"{name} ({getattr(self, name)!r}) must be a {kind.__name__}, e.g. {example}")
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise UserError(f"schedule ({self.schedule!r}) must be a schedule, e.g. @EDMSchedule(), or None")
        guidance.check_guidance_weight(self.guidance_weight)
        thresholding.check_thresholding(self.thresholding, self.percentile, self.threshold_cap)
        noise_conditioning.check_aug_level(self.aug_level)
        check_tiles(self.tile_size, self.tile_overlap)
        self.times.times(self.num_steps)
