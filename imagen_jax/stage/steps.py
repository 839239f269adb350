"""Step tables: the noise levels and guidance weight of each step of a sampler, and where it goes back.

A step table is arrays, one entry a step: other weights, levels and times of the same number compile nothing anew.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.guidance import GuidanceSchedule
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.time_grids import TimeGrid, check_steps
from imagen_jax.errors import UserError
from imagen_jax.typing import Array


class StepTable(NamedTuple):
    """Steps of one stage, float32 [n] on the host; the last entry is the last network call, whose x0_hat is the image.

    Attributes:
      log_snr_t, log_snr_s: where each step begins and ends.
      log_snr_before: where the step before began; -inf at the first one and after going back.
      log_snr_next: where the next step begins: log_snr_s, or less where the sampler goes back.
      guidance_weight: w of each step.
    """

    log_snr_t: Any
    log_snr_s: Any
    log_snr_before: Any
    log_snr_next: Any
    guidance_weight: Any


def make_step_table(
    schedule: Schedule,
    grid: TimeGrid,
    num_steps: int,
    guidance_weight: float,
    guidance_schedule: GuidanceSchedule,
    *,
    t_start: float = 1.0,
    num_resamples: int = 1,
    jump_length: int = 1,
) -> StepTable:
    """Lays out the steps.

    Args:
      schedule: log-SNR of a time.
      grid, num_steps: which times the steps are between.
      guidance_weight, guidance_schedule: w of each of them.
      t_start: only the times from here on: less than 1 to change a given image.
      num_resamples: how often each stretch of steps is gone through before the next (RePaint, arXiv 2201.09865,
        section 4.2).
      jump_length: steps of such a stretch.

    Raises:
      UserError: a discrete schedule has fewer times, or none is left from t_start on; or a log-SNR is not finite.
    """
    check_steps(schedule, num_steps)
    times = grid.times(num_steps, t_start)
    if len(times) < 2:
        raise UserError(f"strength ({t_start}) leaves no step of {num_steps}; choose a larger one, or more steps")
    try:
        log_snrs = np.asarray(_log_snrs(schedule, jnp.asarray(times, jnp.float32)), np.float32)
    except ArithmeticError:
        log_snrs = np.full(len(times), np.nan, np.float32)
    if not np.isfinite(log_snrs).all():
        raise UserError(f"{schedule} gives no finite log-SNR at some of {num_steps} steps; choose less extreme values")
    weights = guidance_schedule.weights(guidance_weight, times[:-1])
    last = len(times) - 2
    order, following = visits(last, num_resamples, jump_length)
    index, nexts = np.asarray([*order, last]), np.asarray([*following, last + 1])
    anew = np.asarray([True, *(after <= at for at, after in zip(order, following, strict=True))])
    before = np.where(anew, -np.inf, log_snrs[np.maximum(index - 1, 0)])
    return StepTable(
        log_snr_t=log_snrs[index],
        log_snr_s=log_snrs[index + 1],
        log_snr_before=before.astype(np.float32),
        log_snr_next=log_snrs[nexts],
        guidance_weight=weights[index],
    )


@functools.partial(jax.jit, static_argnums=0)
def _log_snrs(schedule: Schedule, times: Array) -> Array:
    """Compiled once a schedule and number of times: jit forgets a bound method that it is given."""
    return schedule.log_snr(times)


def visits(last: int, num_resamples: int, jump_length: int) -> tuple[list[int], list[int]]:
    """Steps 0 … last - 1 in the order they are taken, and the step that follows each of them.

    Every stretch of jump_length steps is gone through num_resamples times.
    """
    order: list[int] = []
    following: list[int] = []
    for begin in range(0, last, jump_length):
        stretch = list(range(begin, min(begin + jump_length, last)))
        for round_ in range(num_resamples):
            order += stretch
            following += [step + 1 for step in stretch]
            if round_ + 1 < num_resamples:
                following[-1] = begin
    return order, following
