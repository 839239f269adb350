"""The times at which a sampler calls the network: decreasing, the last one the clean image.

    uniform    1, 1 - 1/N, …, 1/N, 0; with t_last > 1/N evenly from 1 to t_last, then 0
    EDM        evenly from 1 to 0, where the last call is, then the clean image (arXiv 2206.00364, eq. 5)
    respaced   of T discrete times, cut into equal sections, so many from each section as `sections` says
    spaced     of T discrete times, as diffusers' `timestep_spacing` chooses them; integer time k is k + 1 of T:
                 leading   offset + i floor(T / N), i = N - 1 … 0
                 linspace  N from 0 to T - 1, rounded
                 trailing  round(T - i T / N) - 1, i = 0 … N - 1

A section of `size` entries gives `count` of them evenly from its first to its last, rounded; a count of 1 gives the
first. This is the rule of improved diffusion (arXiv 2102.09672, section 4) that DeepFloyd IF's tables follow.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from imagen_jax.checks import check_count
from imagen_jax.diffusion.schedules import MAX_STEPS, DiscreteSchedule, Schedule
from imagen_jax.errors import UserError


@runtime_checkable
class TimeGrid(Protocol):
    """Chooses num_steps + 1 times."""

    def times(self, num_steps: int, t_start: float = 1.0) -> np.ndarray:
        """float64 [num_steps + 1], decreasing, from t_start to 0.

        A grid with times of its own leaves out those before t_start.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformGrid:
    """Evenly spaced from t_start to 0.

    Args:
      t_last: the network is not called at earlier times, in [0, 1): with many steps the last call is at t_last, and its
        x0_hat is the image. EDM's sigma_min says the same (arXiv 2206.00364, table 1). For a network whose x0_hat is
        off by more than the noise of such times, so that more steps there spoil the image.
    """

    t_last: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_last < 1.0:
            raise UserError(f"UniformGrid.t_last ({self.t_last}) must be in [0, 1), a time: 0 is the clean image")

    def times(self, num_steps: int, t_start: float = 1.0) -> np.ndarray:
        """float64 [num_steps + 1]; from a t_start that is no later than t_last a single call, [t_start, 0]."""
        if t_start <= self.t_last:
            return np.array([t_start, 0.0])
        return np.append(np.linspace(t_start, max(self.t_last, t_start / num_steps), num_steps), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMGrid:
    """The network is called evenly from t_start to 0 itself: with `EDMSchedule` the last call is at sigma_min.

    EDM's sigma_i, i = 0 … N - 1, are those of times 1 - i / (N - 1), and sigma_N = 0 is the clean image
    (arXiv 2206.00364, eq. 5). For schedules whose noise at t = 0 is not nothing.
    """

    def times(self, num_steps: int, t_start: float = 1.0) -> np.ndarray:
        """float64 [num_steps + 1]; the last two are 0, the last call and the clean image. One step: [t_start, 0]."""
        return np.append(np.linspace(t_start, 0.0, num_steps), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RespacedGrid:
    """Times of a discrete schedule, so many from each of its sections.

    DeepFloyd IF's tables: smart27 is (7, 4, 2, 1, 2, 4, 7), fast27 (10, 10, 3, 2, 2), super27
    (1, 1, 1, 1, 1, 1, 1, 2, 5, 13), super40 (2, 2, 2, 2, 2, 2, 3, 4, 6, 15), smart50
    (10, 6, 4, 3, 2, 2, 3, 4, 6, 10).

    Args:
      sections: how many times from each section, from the clean end to the noisy one; their sum is the number of steps.
      num_timesteps: of the discrete schedule.
    """

    sections: Sequence[int]
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(self.sections))
        if not self.sections:
            raise UserError("RespacedGrid.sections is empty; give the number of times of each section, e.g. (10, 5)")
        for count in self.sections:
            check_count("each of RespacedGrid.sections", count)
        for count, size in zip(self.sections, self._sizes(), strict=True):
            if count > size:
                raise UserError(
                    f"RespacedGrid.sections asks for {count} times of a section that has {size}: "
                    f"{self.num_timesteps} timesteps in {len(self.sections)} sections; ask for fewer"
                )

    def _sizes(self) -> list[int]:
        size, extra = divmod(self.num_timesteps, len(self.sections))
        return [size + (i < extra) for i in range(len(self.sections))]

    def times(self, num_steps: int, t_start: float = 1.0) -> np.ndarray:
        """float64 [n + 1], n at most num_steps: those of the times that are not before t_start.

        Raises:
          UserError: num_steps is not the sum of the sections.
        """
        if num_steps != sum(self.sections):
            raise UserError(
                f"num_steps ({num_steps}) must be the sum of the grid's sections {self.sections}, {sum(self.sections)}"
            )
        entries, start = [0], 0
        for count, size in zip(self.sections, self._sizes(), strict=True):
            strides = [(size - 1) / max(count - 1, 1)] * (count - 1)
            # Added up rather than multiplied: so IF's tables round their halves.
            entries += [start + round(position) + 1 for position in itertools.accumulate(strides, initial=0.0)]
            start += size
        times = np.asarray(entries[::-1]) / self.num_timesteps
        return times[times <= t_start]


SPACINGS = ("leading", "linspace", "trailing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpacedGrid:
    """Evenly spaced times of a discrete schedule, as diffusers' schedulers space them.

    Args:
      spacing: one of SPACINGS; see the module.
      num_timesteps: of the discrete schedule.
      offset: added to the integer times of "leading".
    """

    spacing: str = "leading"
    num_timesteps: int = 1000
    offset: int = 0

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise UserError(f"SpacedGrid.spacing ({self.spacing!r}) must be one of {', '.join(SPACINGS)}")
        check_count("SpacedGrid.num_timesteps", self.num_timesteps, most=MAX_STEPS)
        check_count("SpacedGrid.offset", self.offset, 0, most=MAX_STEPS)

    def integer_times(self, num_steps: int) -> np.ndarray:
        """Integer times from 0 to num_timesteps - 1, falling.

        Raises:
          UserError: more steps than there are times, or fewer than one; or the offset leads beyond the last time.
        """
        total = self.num_timesteps
        if not 1 <= num_steps <= total:
            raise UserError(f"num_steps ({num_steps}) must be from 1 to num_timesteps ({total})")
        if self.spacing == "linspace":
            return np.linspace(0, total - 1, num_steps).round()[::-1].astype(int)
        if self.spacing == "trailing":
            return np.round(np.arange(total, 0, -total / num_steps)).astype(int)[:num_steps] - 1
        times = np.arange(num_steps)[::-1] * (total // num_steps) + self.offset
        if times[0] >= total:
            raise UserError(
                f"the offset ({self.offset}) puts the first of {num_steps} steps at time {times[0]}, but "
                f"num_timesteps is {total}; take fewer steps, or a smaller offset"
            )
        return times

    def times(self, num_steps: int, t_start: float = 1.0) -> np.ndarray:
        """float64 [n + 1], n at most num_steps: those of the times that are not before t_start.

        Raises:
          UserError: see `integer_times`.
        """
        times = np.append((self.integer_times(num_steps) + 1) / self.num_timesteps, 0.0)
        return times[times <= t_start]


def check_steps(schedule: Schedule, num_steps: int) -> None:
    """Raises UserError where a discrete schedule has fewer times than steps are asked for."""
    if isinstance(schedule, DiscreteSchedule) and num_steps > schedule.num_timesteps:
        raise UserError(
            f"num_steps ({num_steps}) is more than the schedule has: {schedule.num_timesteps} discrete times; "
            f"choose at most {schedule.num_timesteps}"
        )
