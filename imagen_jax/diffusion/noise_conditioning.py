"""Noise conditioning augmentation of the low-resolution input (paper section 2.4, figure A.32).

The low-resolution image, already resized to the size of the stage, is corrupted by the variance-preserving
process of the cosine schedule at time aug_level, and the network is told that level:

    low_res' = cos(pi aug / 2) low_res + sin(pi aug / 2) eps

DeepFloyd IF corrupts with an integer level, L = int(aug T), by entry L + 1 of a table of T betas, so that aug 0 is not
quite a clean image. Its pipelines enlarge with the corner pixels in the corners (align_corners of torch).
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.process import diffuse
from imagen_jax.diffusion.schedules import DiscreteSchedule
from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Float

ENLARGEMENTS = ("half_pixel", "corners")


def corrupt(
    low_res: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], aug_level: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Corrupts low_res with unit Gaussian eps; aug_level in [0, 1] per example, 0 leaves it as it is."""
    angle = (0.5 * jnp.pi * aug_level).reshape((-1,) + (1,) * (low_res.ndim - 1))
    return jnp.cos(angle) * low_res + jnp.sin(angle) * eps


def check_aug_level(aug_level: float) -> None:
    """Raises UserError outside [0, 1]."""
    if not 0.0 <= aug_level <= 1.0:
        raise UserError(f"aug_level ({aug_level}) must be in [0, 1]: 0 is a clean low-res image, 0.1 to 0.3 is usual")


@runtime_checkable
class LowResNoise(Protocol):
    """Noise of the low-resolution images of a super-resolution stage."""

    def corrupt(
        self, low_res: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], aug_level: Float[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Corrupts images with unit Gaussian eps; aug_level in [0, 1] per example."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineNoise:
    """The paper's corruption, `corrupt`: any aug_level, by the cosine schedule."""

    def corrupt(
        self, low_res: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], aug_level: Float[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """See LowResNoise."""
        return corrupt(low_res, eps, aug_level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteNoise:
    """DeepFloyd IF's corruption: integer levels of a table of betas.

    Args:
      schedule: the table.
    """

    schedule: DiscreteSchedule = DiscreteSchedule()

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, DiscreteSchedule):
            raise UserError(f"DiscreteNoise.schedule ({self.schedule!r}) must be a DiscreteSchedule")

    def level(self, aug_level: Float[Array, " b"]) -> Float[Array, " b"]:
        """The integer level of an aug_level, from 0 to the number of entries - 1: of 1000 entries, 0.25 is 250."""
        num = self.schedule.num_timesteps
        # A hair more, so that 0.29 in float32 is 290.
        return jnp.clip(jnp.floor(aug_level * num + 1e-3), 0, num - 1)

    def corrupt(
        self, low_res: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], aug_level: Float[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """See LowResNoise."""
        times = (self.level(aug_level) + 1) / self.schedule.num_timesteps
        return diffuse(low_res, eps, self.schedule.log_snr(times))


def enlarge(images: Float[Array, "b h w c"], height: int, width: int, enlargement: str) -> Float[Array, "b H W c"]:
    """Bilinear enlargement.

    Args:
      images: to be enlarged.
      height, width: of the result.
      enlargement: "half_pixel": pixels are squares, of which the outermost edges coincide; "corners": the centres of
        the corner pixels do.
    """
    if enlargement == "half_pixel":
        return jax.image.resize(images, (images.shape[0], height, width, images.shape[3]), "bilinear")
    rows, columns = (_weights(old, new) for old, new in zip(images.shape[1:3], (height, width), strict=True))
    return jnp.einsum("Hh,bhwc,Ww->bHWc", rows, images, columns, precision="highest")


def _weights(old: int, new: int) -> np.ndarray:
    places = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(1 - np.abs(places[:, None] - np.arange(old)), 0).astype(np.float32)
