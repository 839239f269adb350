"""Inputs and output of every denoising network.

A network is a Linen module called as `module.apply({"params": p}, z_t, log_snr, cond) -> output`; what the output
means (eps, x0, v or flow) is the stage's business, not the network's.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp

from imagen_jax.errors import UserError
from imagen_jax.typing import Array, Bool, Float


@flax.struct.dataclass
class Conditioning:
    """Everything a network may look at besides z_t and its log-SNR.

    Attributes:
      text: token embeddings of the frozen text encoder, zero where padded.
      text_mask: True at real tokens.
      low_res: super-resolution only: the low-resolution image, resized to the size of z_t and corrupted.
      aug_level: super-resolution only: how far low_res was corrupted, in [0, 1].
      self_cond: self-conditioning only: an estimate of x0 in [-1, 1], or zeros.
      framing: of stages that are told of it: height and width of the original picture, those cut off at the top and at
        the left, height and width of x0, all in pixels of x0.
    """

    text: Float[Array, "b n d"]
    text_mask: Bool[Array, "b n"]
    low_res: Float[Array, "b h w c"] | None = None
    aug_level: Float[Array, " b"] | None = None
    self_cond: Float[Array, "b h w c"] | None = None
    framing: Float[Array, "b 6"] | None = None

    def images(self) -> tuple[Float[Array, "b h w c"], ...]:
        """The images among them, which a network reads beside z_t."""
        return tuple(image for image in (self.low_res, self.self_cond) if image is not None)


def uncropped(rows: int, height: int, width: int) -> Float[Array, "b 6"]:
    """The framing of pictures that are drawn: nothing was cut off, and the original was of their size."""
    return jnp.tile(jnp.asarray([height, width, 0, 0, height, width], jnp.float32), (rows, 1))


@runtime_checkable
class Denoiser(Protocol):
    """The network as a function of its parameters."""

    def __call__(
        self, z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        """One prediction for every row of z_t, c channels or, with a learned variance, 2 c."""


def zero_text(like: Conditioning) -> Conditioning:
    """The paper's null text (section 4.1): zero embeddings, no token. One row, which stands for any number of them."""
    return Conditioning(text=jnp.zeros_like(like.text[:1]), text_mask=jnp.zeros_like(like.text_mask[:1]))


def drop_text(cond: Conditioning, keep: Bool[Array, " b"], null: Conditioning | None = None) -> Conditioning:
    """Turns the rows where `keep` is False into null text.

    Args:
      cond: b rows.
      keep: the rows that stay.
      null: text and text_mask of one row or b; None is `zero_text`.
    """
    null = zero_text(cond) if null is None else null
    text = jnp.where(keep[:, None, None], cond.text, null.text)
    return dataclasses.replace(cond, text=text, text_mask=jnp.where(keep[:, None], cond.text_mask, null.text_mask))


def check_size(height: int, width: int, factor: int) -> None:
    """Raises UserError unless a network that halves log2(factor) times can take this image size."""
    for name, size in (("image_size (height)", height), ("image_size (width)", width)):
        if size % factor:
            near = max(size // factor, 1) * factor
            raise UserError(
                f"{name} ({size}) must be divisible by {factor}, the product of the network's down-samplings; "
                f"choose {near} or {near + factor}"
            )
