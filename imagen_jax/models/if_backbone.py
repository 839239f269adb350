"""DeepFloyd IF's U-Net as a `Backbone`: log-SNR and aug_level become the integers that the network was trained with.

The schedule and the noise of the low-resolution images belong to the network, since they number its times; a stage has
the same ones. Text is read without a mask: a `TextConfig` with keep_padding gives it.
"""

from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, check_size
from imagen_jax.models.if_unet import IFUNet, IFUNetConfig
from imagen_jax.typing import Array, Float


@runtime_checkable
class NumbersTimes(Protocol):
    """A schedule of discrete times, such as `diffusion.schedules.DiscreteSchedule`."""

    def integer_time(self, log_snr: Float[Array, " b"]) -> Float[Array, " b"]:
        """The integer time whose log-SNR this is, counted from 0."""


@runtime_checkable
class NumbersLevels(Protocol):
    """Noise of low-resolution images in integer levels, such as `diffusion.noise_conditioning.DiscreteNoise`."""

    def level(self, aug_level: Float[Array, " b"]) -> Float[Array, " b"]:
        """The integer level of an aug_level."""


class IFBackbone(nn.Module):
    """IF's U-Net; its parameters have the names of `IFUNet`'s.

    Attributes:
      config: sizes of the network.
      schedule: numbers its times.
      noising: numbers the noise levels of super-resolution; None for the base stage.
    """

    config: IFUNetConfig
    schedule: NumbersTimes
    noising: NumbersLevels | None = None

    def setup(self) -> None:
        """Makes the network, with this module's scope: no name stands before those of its parameters."""
        self.network = IFUNet(self.config)
        nn.share_scope(self, self.network)

    @property
    def size_factor(self) -> int:
        """See Backbone."""
        return 2 ** (len(self.config.widths) - 1)

    @property
    def learned_variance(self) -> bool:
        """See Backbone."""
        return self.config.out_channels != self._image_channels

    @property
    def conditions(self) -> tuple[str, ...]:
        """See Backbone."""
        return ("text",) if self.noising is None else ("text", "low_res")

    @property
    def _image_channels(self) -> int:
        return self.config.in_channels // (1 if self.noising is None else 2)

    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        """The network's output: eps and, where it learned one, the variance's fraction in [-1, 1].

        Raises:
          UserError: noised images are given to a base stage or none to super-resolution, or a size does not fit.
        """
        check_size(z_t.shape[1], z_t.shape[2], self.size_factor)
        if (cond.low_res is None) != (self.noising is None):
            raise UserError(
                f"low_res is {'missing' if cond.low_res is None else 'given'}, but this network of DeepFloyd IF has "
                f"{self.config.in_channels} input channels; set Stage.low_res_size for super-resolution alone"
            )
        times = self.schedule.integer_time(log_snr)
        if self.noising is None or cond.low_res is None:
            return self.network(z_t, times, cond.text)
        assert cond.aug_level is not None
        level = self.noising.level(cond.aug_level)
        return self.network(jnp.concatenate([z_t, cond.low_res], -1), times, cond.text, level)
