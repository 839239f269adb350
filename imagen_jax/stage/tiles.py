"""A network on overlapping tiles of an image that is too large for it.

At every step of the sampler the network sees each tile in turn, and its outputs are blended with weights that fall
towards the edges of a tile. The noise and the low-resolution image are those of the whole, so tiles agree where they
overlap and leave no seam (the blending of arXiv 2302.08113, section 4, inside each step).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning, Denoiser
from imagen_jax.typing import Array, Float


def check_tiles(tile_size: int | None, tile_overlap: int) -> None:
    """Raises UserError for a tile without an inside, or an overlap without tiles."""
    if tile_size is None:
        if tile_overlap:
            raise UserError(f"tile_overlap ({tile_overlap}) needs a tile_size")
    elif tile_size < 1 or not 0 <= tile_overlap < tile_size:
        raise UserError(
            f"tile_overlap ({tile_overlap}) must be >= 0 and less than tile_size ({tile_size}); try a quarter"
        )


def tile_starts(size: int, tile: int, overlap: int) -> np.ndarray:
    """First pixels of the fewest tiles that cover `size` pixels and overlap by at least `overlap`, evenly spread."""
    count = 1 if tile >= size else -(-(size - overlap) // (tile - overlap))
    return np.round(np.linspace(0, max(size - tile, 0), count)).astype(np.int32)


def tile_ramp(tile: int, overlap: int) -> np.ndarray:
    """Weight of each pixel along one side of a tile: rises over `overlap` pixels, then 1, then falls."""
    inside = np.minimum(np.arange(tile) + 1, tile - np.arange(tile))
    return np.minimum(inside / (overlap + 1), 1.0).astype(np.float32)


def tiled(network: Denoiser, tile_size: int, overlap: int) -> Denoiser:
    """The network's output for a whole image, from its outputs for tiles of it.

    Args:
      network: takes images of tile_size pixels a side, or of a whole side that is shorter.
      tile_size: side of a tile, in pixels.
      overlap: pixels that neighbours share at least.
    """

    def apply(
        z_t: Float[Array, "b h w c"], log_snr: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b h w c2"]:
        height, width = z_t.shape[1:3]
        tall, wide = min(tile_size, height), min(tile_size, width)
        corners = [
            (top, left) for top in tile_starts(height, tall, overlap) for left in tile_starts(width, wide, overlap)
        ]
        window = jnp.asarray(np.outer(tile_ramp(tall, overlap), tile_ramp(wide, overlap))[None, :, :, None])

        def cut(image: Array, corner: Array) -> Array:
            return jax.lax.dynamic_slice(image, (0, *corner, 0), (image.shape[0], tall, wide, image.shape[-1]))

        def one(corner: Array) -> Array:
            images = {
                name: cut(image, corner)
                for name in ("low_res", "self_cond")
                if (image := getattr(cond, name)) is not None
            }
            if cond.framing is not None:
                # A tile is what a crop there would be.
                tile = jnp.broadcast_to(jnp.asarray([*corner, tall, wide], jnp.float32), (z_t.shape[0], 4))
                images["framing"] = jnp.concatenate([cond.framing[:, :2], tile], axis=1)
            return network(cut(z_t, corner), log_snr, dataclasses.replace(cond, **images))

        def add(total: tuple[Array, Array], corner: Array) -> tuple[tuple[Array, Array], None]:
            def into(whole: Array, part: Array) -> Array:
                return jax.lax.dynamic_update_slice(whole, cut(whole, corner) + part, (0, *corner, 0))

            return (into(total[0], window * one(corner)), into(total[1], window)), None

        channels = jax.eval_shape(one, jax.ShapeDtypeStruct((2,), jnp.int32)).shape[-1]
        zeros = jnp.zeros((*z_t.shape[:3], channels)), jnp.zeros((1, height, width, 1))
        (output, weight), _ = jax.lax.scan(add, zeros, jnp.asarray(corners, jnp.int32))
        return output / weight

    return apply
