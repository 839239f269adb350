"""DDPM as diffusers' scheduler_config.json describes it: integer times, thresholding, learned-range variance.

The fraction (v + 1) / 2 of the network's further channels lies between the log posterior variance and log beta
(arXiv 2102.09672, eq. 15).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.time_grids import SpacedGrid
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

_VALUES: dict[str, tuple[Any, ...]] = {
    "_class_name": ("DDPMScheduler",),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "rescale_betas_zero_snr": (False,),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "trained_betas": (None,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned_range"),
    "clip_sample": (True, False),
    "thresholding": (True, False),
}
# Closed ranges of what is computed with.
_RANGES = {
    "num_train_timesteps": (1, 100_000),
    "beta_start": (1e-12, 0.999),
    "beta_end": (1e-12, 0.999),
    "dynamic_thresholding_ratio": (0, 1),
    "clip_sample_range": (1e-6, 1e6),
    "sample_max_value": (1, 1e6),
    "steps_offset": (0, 100_000),
}
_IDLE = {"_diffusers_version"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteDDPM:
    """A DDPM scheduler; fields and defaults are those of diffusers' DDPMScheduler."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    variance_type: str = "fixed_small"
    clip_sample: bool = True
    prediction_type: str = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    @classmethod
    def read(cls, source: str, given: Any) -> "DiscreteDDPM":
        """The scheduler of a scheduler_config.json.

        Raises:
          UserError: names every key that is unknown or has a value that is not supported, in one line.
        """
        if not isinstance(given, dict):
            raise UserError(f"{source} must hold one JSON object, got {type(given).__name__}; download it again")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        faults = [
            f"{key} is not known"
            for key in sorted(given.keys() - fields.keys() - _VALUES.keys() - _IDLE)
            if given[key] is not None
        ]
        for key, value in given.items():
            if key in _VALUES and value not in _VALUES[key]:
                faults.append(f"{key} ({value!r}) must be {' or '.join(map(repr, _VALUES[key]))}")
            elif key in fields and key not in _VALUES and not _fits(fields[key].default, value):
                faults.append(f"{key} ({value!r}) must be a number as {fields[key].default!r} is")
            elif key in _RANGES and not _RANGES[key][0] <= value <= _RANGES[key][1]:
                faults.append(f"{key} must be from {_RANGES[key][0]} to {_RANGES[key][1]}")
        if faults:
            raise UserError(f"{source} describes no scheduler that is supported: {'; '.join(faults)}")
        settings: dict[str, Any] = {}
        for key in given.keys() & fields.keys():  # JSON writes 1.0 as 1, too.
            settings[key] = float(given[key]) if isinstance(fields[key].default, float) else given[key]
        return cls(**settings)

    def alphas_cumprod(self) -> np.ndarray:
        """alpha² at every integer time, in float64."""
        num = self.num_train_timesteps
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, num)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, num) ** 2
        else:
            bar = np.cos((np.arange(num + 1) / num + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        return np.cumprod(1 - betas)

    def timesteps(self, num_steps: int) -> np.ndarray:
        """The integer times of a run, falling.

        Raises:
          UserError: see `SpacedGrid.integer_times`.
        """
        grid = SpacedGrid(
            spacing=self.timestep_spacing, num_timesteps=self.num_train_timesteps, offset=self.steps_offset
        )
        return grid.integer_times(num_steps)

    def add_noise(self, x0: Float[Array, "b *s"], eps: Float[Array, "b *s"], t: np.ndarray) -> Float[Array, "b *s"]:
        """Noises images to integer times t [b]."""
        alpha = self.alphas_cumprod()[np.asarray(t)].reshape(-1, *[1] * (x0.ndim - 1))
        return jnp.float32(np.sqrt(alpha)) * x0 + jnp.float32(np.sqrt(1 - alpha)) * eps

    def step(
        self,
        output: Float[Array, "b h w o"],
        z_t: Float[Array, "b h w c"],
        t: int,
        previous: int,
        noise: Float[Array, "b h w c"] | None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """One step from time t to `previous` (< 0: the end); the next z and the estimate of x0.

        Args:
          output: of the network; with learned_range its last half is the variance.
          noise: that the step adds; unused at t = 0.
        """
        table, channels = self.alphas_cumprod(), z_t.shape[-1]
        now, after = float(table[t]), float(table[previous]) if previous >= 0 else 1.0
        output, variance = output[..., :channels], output[..., channels:]
        x0 = self._limit(self._x0(output, z_t, now))
        kept = now / after
        z = math.sqrt(after) * (1 - kept) / (1 - now) * x0 + math.sqrt(kept) * (1 - after) / (1 - now) * z_t
        if t > 0:
            assert noise is not None
            z = z + self._deviation(variance, now, after) * noise
        return z, x0

    def _x0(self, output: Float[Array, "b *s"], z_t: Float[Array, "b *s"], alpha2: float) -> Float[Array, "b *s"]:
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "epsilon":
            return (z_t - math.sqrt(1 - alpha2) * output) / math.sqrt(alpha2)
        return math.sqrt(alpha2) * z_t - math.sqrt(1 - alpha2) * output

    def _limit(self, x0: Float[Array, "b *s"]) -> Float[Array, "b *s"]:
        if self.thresholding:
            size = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), self.dynamic_thresholding_ratio, axis=1)
            size = jnp.clip(size, 1.0, self.sample_max_value).reshape(-1, *[1] * (x0.ndim - 1))
            return jnp.clip(x0, -size, size) / size
        return jnp.clip(x0, -self.clip_sample_range, self.clip_sample_range) if self.clip_sample else x0

    def _deviation(self, variance: Float[Array, "b *s"], now: float, after: float) -> Any:
        beta = 1 - now / after
        posterior = max((1 - after) / (1 - now) * beta, 1e-20)
        if self.variance_type == "learned_range":
            part = (variance + 1) / 2
            return jnp.exp(0.5 * (part * math.log(beta) + (1 - part) * math.log(posterior)))
        return math.sqrt(posterior if self.variance_type.startswith("fixed_small") else beta)


def _fits(default: Any, value: Any) -> bool:
    return isinstance(value, int if isinstance(default, int) else int | float) and not isinstance(value, bool)
