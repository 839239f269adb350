"""Framing: what a network is told of a picture's size and crop, in training, sampling and tiles."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import UserError
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.denoiser import Conditioning, uncropped
from imagen_jax.models.embeddings import Embedder, TextSpec
from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
from imagen_jax.stage.sampling_config import SamplingConfig
from imagen_jax.stage.spec import Stage
from imagen_jax.stage.tiles import tiled
from tests.tiny import BASE, batch


class TellsFraming(nn.Module):
    """Gives as x0 the mean of the framing, each number weighted by its place."""

    size_factor: ClassVar[int] = 2
    learned_variance: ClassVar[bool] = False
    conditions: ClassVar[tuple[str, ...]] = CONDITIONS

    @nn.compact
    def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        told = (cond.framing * jnp.array([1, 2, 3, 4, 5, 6])).sum(1) / 1000
        return jnp.broadcast_to(told[:, None, None, None], z_t.shape)


STAGE = Stage(
    name="base",
    model=TellsFraming(),
    image_size=8,
    text_embed_dim=12,
    max_text_length=6,
    prediction="x0",
    framing=True,
)


def _cond(framing: jax.Array | None) -> Conditioning:
    rows = 2 if framing is None else framing.shape[0]
    return Conditioning(text=jnp.ones((rows, 3, 4)), text_mask=jnp.ones((rows, 3), bool), framing=framing)


def test_each_of_the_six_numbers_reaches_the_embedding() -> None:
    embedder = Embedder(16, TextSpec(dim=8), 4)
    plain = jnp.tile(jnp.array([[20.0, 30, 0, 5, 20, 20]]), (2, 1))
    params = embedder.init(jax.random.key(0), jnp.zeros(2), _cond(plain))
    apply = jax.jit(lambda cond: embedder.apply(params, jnp.zeros(2), cond)[0])
    before = apply(_cond(plain))
    for number in range(6):
        after = apply(_cond(plain.at[1, number].add(3)))
        np.testing.assert_array_equal(after[0], before[0])
        assert np.abs(after[1] - before[1]).max() > 1e-3
    # Without it there are no parameters for it: networks that are not told of it are what they were.
    without = embedder.init(jax.random.key(0), jnp.zeros(2), _cond(None))["params"]
    assert set(params["params"]) - set(without) == {"framing_in", "framing_out"}


def test_training_tells_the_framing_of_the_batch() -> None:
    rows = {**batch(BASE, 4), "framing": jnp.arange(24.0).reshape(4, 6)}
    rows["x0"] = jnp.broadcast_to(
        ((rows["framing"] * jnp.arange(1, 7)).sum(1) / 1000)[:, None, None, None], (4, 8, 8, 3)
    )
    loss, _ = STAGE.loss({}, rows, jax.random.key(0))
    assert float(loss) < 1e-9


def test_pictures_are_drawn_as_if_nothing_was_cut_off() -> None:
    np.testing.assert_array_equal(uncropped(2, 4, 6), [[4, 6, 0, 0, 4, 6]] * 2)
    text = jnp.zeros((2, 6, 12))
    rows = SampleRows(image_keys(0, jnp.arange(2)), text, jnp.ones((2, 6), bool))
    config = SamplingConfig(num_steps=3, guidance_weight=2.0)
    drawn = sample_stage(STAGE, config, {}, rows, size=(8, 12))
    np.testing.assert_allclose(drawn, (8 + 2 * 12 + 5 * 8 + 6 * 12) / 1000, atol=1e-5)


def test_a_tile_is_told_that_it_is_a_crop() -> None:
    seen = []

    def network(z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        jax.debug.callback(lambda framing: seen.append(framing[0].tolist()), cond.framing)
        return z_t

    z_t = jnp.zeros((1, 8, 12, 3))
    tiled(network, 8, 2)(z_t, jnp.zeros(1), _cond(uncropped(1, 8, 12))).block_until_ready()
    jax.effects_barrier()
    assert sorted(seen) == [[8, 12, 0, 0, 8, 8], [8, 12, 0, 4, 8, 8]]


def test_a_network_that_reads_no_framing_is_refused() -> None:
    class TextAlone(TellsFraming):
        conditions: ClassVar[tuple[str, ...]] = ("text",)

    with pytest.raises(UserError, match="framing"):
        dataclasses.replace(STAGE, model=TextAlone())
