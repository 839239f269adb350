"""Tiles: they cover the image, a local network gives what it gives to the whole, and differing tiles leave no edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.stage.tiles import check_tiles, tile_starts, tiled


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(64, 64, 8), (40, 64, 8), (100, 64, 16), (1000, 64, 16), (96, 32, 0)]
)
def test_tiles_cover_and_overlap(size: int, tile: int, overlap: int) -> None:
    starts = tile_starts(size, tile, overlap)
    tile = min(tile, size)
    assert starts[0] == 0 and starts[-1] + tile == size
    assert (np.diff(starts) <= tile - overlap).all() or len(starts) == 1
    # One tile fewer could not cover the image.
    assert len(starts) == 1 or (len(starts) - 1) * (tile - overlap) + overlap < size


def _cond(image: jax.Array) -> Conditioning:
    rows = image.shape[0]
    text, mask = jnp.zeros((rows, 2, 3)), jnp.ones((rows, 2), bool)
    return Conditioning(text=text, text_mask=mask, low_res=image, aug_level=jnp.zeros(rows))


def test_a_pixelwise_network_is_not_changed_by_tiles() -> None:
    z_t, low_res = jax.random.normal(jax.random.key(0), (2, 2, 40, 56, 3))

    def network(z, log_snr, cond):
        return jnp.concatenate([jnp.tanh(z) * cond.low_res, z + log_snr[:, None, None, None]], axis=-1)

    log_snr = jnp.array([0.5, -1.0])
    whole = network(z_t, log_snr, _cond(low_res))
    parts = tiled(network, 16, 5)(z_t, log_snr, _cond(low_res))
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_tiles_that_disagree_blend_without_an_edge() -> None:
    """A network that gives each tile a grey of its own: neighbouring pixels differ by a share of the overlap only."""

    def network(z, log_snr, cond):
        return jnp.broadcast_to(jnp.sign(jnp.mean(z, axis=(1, 2), keepdims=True)), z.shape)

    overlap = 15
    z_t = jax.random.normal(jax.random.key(3), (1, 96, 96, 3))
    image = np.asarray(tiled(network, 32, overlap)(z_t, jnp.zeros(1), _cond(z_t)))
    steps = max(abs(np.diff(image, axis=axis)).max() for axis in (1, 2))
    assert image.min() < -0.9 and image.max() > 0.9
    assert steps < 2 * 2.0 / (overlap + 1)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"), [(None, 4, "needs a tile_size"), (8, 8, "less than"), (8, -1, ">= 0")]
)
def test_impossible_tiles_are_refused(tile: int | None, overlap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_tiles(tile, overlap)
