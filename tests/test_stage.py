"""A stage: its checks, its loss against a recomputation, and what training may see."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process
from imagen_jax.errors import UserError
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage import Stage
from tests.tiny import BASE, SR, batch


def _params(stage: Stage):
    return nn.unbox(jax.jit(stage.init)(jax.random.key(0)))


def _loss(stage: Stage, params, rows, rng):
    return jax.jit(stage.loss)(params, rows, rng)


def test_loss_of_a_fresh_network_is_the_energy_of_its_target() -> None:
    """A fresh network predicts zero, so the mean loss is the variance of eps: 1 up to sampling error."""
    params = _params(BASE)
    loss, aux = _loss(BASE, params, batch(BASE, 256), jax.random.key(1))
    assert abs(float(loss) - 1.0) < 0.02
    np.testing.assert_allclose(loss, aux["per_example_loss"].mean(), rtol=1e-6)
    assert aux["log_snr"].shape == (256,)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_loss_vanishes_for_a_network_that_knows_the_answer(prediction: str) -> None:
    """A stand-in network that is told x0 and answers exactly leaves no loss in any prediction space."""

    class Oracle(nn.Module):
        size_factor = 1

        @nn.compact
        def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
            x0 = jnp.full_like(z_t, 0.25)
            alpha, sigma = process.alpha_sigma(log_snr, z_t.ndim)
            return process.target(prediction, x0, (z_t - alpha * x0) / sigma, log_snr)

    stage = dataclasses.replace(BASE, model=Oracle(), prediction=prediction)
    rows = batch(BASE, 8) | {"x0": jnp.full((8, 8, 8, 3), 0.25)}
    loss, _ = _loss(stage, {}, rows, jax.random.key(0))
    # At the clean end (log_snr 20) eps is read from z_t - alpha x0, whose float32 rounding is magnified.
    assert float(loss) < 2e-3


def test_dropped_text_never_reaches_the_network() -> None:
    certain = dataclasses.replace(BASE, cond_drop_rate=0.999999)
    params = jax.tree.map(lambda p: p + 0.05, _params(BASE))
    rows = batch(BASE, 4)
    other = rows | {"text": rows["text"] * -3.0}
    np.testing.assert_array_equal(
        _loss(certain, params, rows, jax.random.key(2))[0],
        _loss(certain, params, other, jax.random.key(2))[0],
    )
    null = Conditioning(text=jnp.ones((1, 6, 12)), text_mask=jnp.arange(6)[None] < 2)
    instead = rows | {"text": jnp.ones_like(rows["text"]), "text_mask": jnp.broadcast_to(null.text_mask, (4, 6))}
    kept = dataclasses.replace(BASE, cond_drop_rate=0.0)
    np.testing.assert_array_equal(
        jax.jit(certain.loss)(params, other, jax.random.key(2), null)[0],
        _loss(kept, params, instead, jax.random.key(2))[0],
    )
    assert _loss(kept, params, rows, jax.random.key(2))[0] != _loss(kept, params, other, jax.random.key(2))[0]


def test_super_resolution_sees_its_low_res_input_at_every_level() -> None:
    params = jax.tree.map(lambda p: p + 0.05, _params(SR))
    rows = batch(SR, 4)
    blank = rows | {"low_res": jnp.zeros_like(rows["low_res"])}
    losses = [_loss(SR, params, b, jax.random.key(2))[1]["per_example_loss"] for b in (rows, blank)]
    assert (np.abs(losses[0] - losses[1]) > 1e-6).all()


def test_training_corrupts_the_low_res_input_up_to_max_aug_level() -> None:
    """A network that answers with its aug_level for each pixel: the loss of a zero target is that level squared."""

    class Teller(nn.Module):
        size_factor = 1

        @nn.compact
        def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
            assert cond.aug_level is not None
            return jnp.broadcast_to(cond.aug_level[:, None, None, None], z_t.shape)

    rows = batch(SR, 256)
    rows |= {"x0": jnp.zeros_like(rows["x0"])}
    for top in (1.0, 0.25):
        stage = dataclasses.replace(SR, model=Teller(), prediction="x0", max_aug_level=top)
        levels = np.sqrt(_loss(stage, {}, rows, jax.random.key(0))[1]["per_example_loss"])
        assert 0.9 * top < levels.max() <= top
        np.testing.assert_allclose(levels.mean(), top / 2, rtol=0.1)


def test_low_res_is_resized_to_the_stage() -> None:
    grown = SR.upsample_low_res(jnp.full((2, 4, 4, 3), 0.5))
    np.testing.assert_allclose(grown, jnp.full((2, 8, 8, 3), 0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 9}, r"image_size \(9\) must be divisible by 2.*choose 8 or 10"),
        ({"image_size": 0}, "must be a positive whole number"),
        ({"prediction": "noise"}, "one of eps, x0, v"),
        ({"cond_drop_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"max_aug_level": 0.0}, r"must be in \(0, 1\]; the paper uses 1"),
        ({"low_res_size": 3}, "must divide image_size"),
        ({"model": UserError}, r"must be a network"),
    ],
)
def test_impossible_stages_are_refused(change: dict, message: str) -> None:
    fields = {field.name: getattr(BASE, field.name) for field in dataclasses.fields(BASE)}
    with pytest.raises(UserError, match=message):
        Stage(**{**fields, **change})


def test_a_height_that_a_mesh_cannot_split_is_refused() -> None:
    """Eight pixels, two levels: the lowest has two rows."""
    with pytest.raises(UserError, match=r"spatial \(8\) must divide 2, the height.*choose 2"):
        SR.network({}, MeshConfig(spatial=8).build())
