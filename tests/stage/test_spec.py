"""A stage: its checks, its loss against a recomputation, and what training may see."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process
from imagen_jax.diffusion.losses import EDMWeighting, MinSNRWeighting
from imagen_jax.diffusion.time_sampling import LogitNormalTimes
from imagen_jax.errors import UserError
from imagen_jax.models.backbone import CONDITIONS, check_backbone
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.models.unet import UNet
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.stage.spec import Stage
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
        learned_variance = False
        conditions = CONDITIONS

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
        learned_variance = False
        conditions = CONDITIONS

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


class _Lacking:
    """Another library's network: all of the contract but one property."""

    def __init__(self, lacks: str) -> None:
        values = {"size_factor": 1, "learned_variance": False, "conditions": CONDITIONS}
        for name in values.keys() - {lacks}:
            setattr(self, name, values[name])

    def init(self, rng, z_t, log_snr, cond):
        return {"params": {}}

    def apply(self, variables, z_t, log_snr, cond):
        return z_t


class _OnlyText(nn.Module):
    size_factor = 1
    learned_variance = False
    conditions = ("text",)

    @nn.compact
    def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        return z_t


def test_a_network_that_is_no_linen_module_can_be_trained() -> None:
    """What the contract lists is all that a stage reads of it."""
    stage = dataclasses.replace(BASE, model=_Lacking(""), prediction="x0")
    rows = batch(BASE, 4)
    _, aux = stage.loss(stage.init(jax.random.key(0)), rows, jax.random.key(1))
    assert aux["per_example_loss"].shape == (4,)


def test_the_time_sampler_decides_the_noise_of_training() -> None:
    """Very narrow logit-normal times are all near sigmoid(mean), whose log-SNR the loss then reports."""
    narrow = dataclasses.replace(BASE, time_sampler=LogitNormalTimes(mean=0.5, std=1e-4), model=_OnlyText())
    _, aux = narrow.loss({}, batch(BASE, 8), jax.random.key(1))
    t = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(aux["log_snr"], -2 * np.log(np.tan(np.pi / 2 * t)), atol=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 9}, r"image_size \(9\) must be divisible by 2.*choose 8 or 10"),
        ({"image_size": 0}, r"Stage.image_size \(0\) must be an integer >= 1"),
        ({"prediction": "noise"}, "one of eps, x0, v"),
        ({"cond_drop_rate": 1.0}, r"must be in \[0, 1\)"),
        ({"max_aug_level": 0.0}, r"must be in \(0, 1\]; the paper uses 1"),
        ({"low_res_size": 3}, "must divide image_size"),
        ({"model": _OnlyText(), "low_res_size": 4}, r"has conditions \('text',\).*reads 'low_res'"),
        ({"model": _OnlyText(), "self_cond_rate": 0.5}, r"has conditions \('text',\).*reads 'self_cond'"),
    ],
)
def test_impossible_stages_are_refused(change: dict, message: str) -> None:
    fields = {field.name: getattr(BASE, field.name) for field in dataclasses.fields(BASE)}
    with pytest.raises(UserError, match=message):
        Stage(**{**fields, **change})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (UserError, "must be a network"),
        (UNet, r"must be a network.*trailing \(\) matters"),
        (_Lacking("size_factor"), r"_Lacking\) has size_factor None, expected a positive whole number"),
        (BASE.model.copy(patch=0), r"UNet\) has size_factor 0, expected a positive whole number"),
        (_Lacking("learned_variance"), r"has learned_variance None, expected True or False"),
        (_Lacking("conditions"), r"has conditions None, expected a tuple of some of"),
    ],
)
def test_a_value_that_is_no_backbone_is_refused(model: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_backbone(model, ("text",))


def test_a_height_that_a_mesh_cannot_split_is_refused() -> None:
    """Eight pixels, two levels: the lowest has two rows."""
    with pytest.raises(UserError, match=r"spatial \(8\) must divide 2, the height.*choose 2"):
        SR.network({}, MeshConfig(spatial=8).build())


@pytest.mark.parametrize("weighting", [MinSNRWeighting(), EDMWeighting(sigma_data=0.3)])
def test_a_weighting_weighs_each_example_by_its_noise(weighting) -> None:
    params = jax.tree.map(lambda p: p + 0.05, _params(BASE))
    rows, rng = batch(BASE, 8), jax.random.key(3)
    _, plain = _loss(BASE, params, rows, rng)
    _, weighted = _loss(dataclasses.replace(BASE, weighting=weighting), params, rows, rng)
    snr = np.exp(np.asarray(plain["log_snr"], np.float64))
    # BASE predicts eps, whose squared error is SNR times that of x0.
    of_x0 = {MinSNRWeighting: np.minimum(snr, 5.0), EDMWeighting: 1 / 0.3**2 + snr}[type(weighting)]
    np.testing.assert_allclose(weighted["per_example_loss"] / plain["per_example_loss"], of_x0 / snr, rtol=1e-4)


class _Halfway(nn.Module):
    """x0_hat = (1 + self_cond) / 2."""

    size_factor = 1
    learned_variance = False
    conditions = CONDITIONS

    @nn.compact
    def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        gain = self.param("gain", nn.initializers.ones, ())
        return gain * (0.5 + 0.5 * cond.self_cond)


@pytest.mark.parametrize(("rate", "x0_hat", "slope"), [(1.0, 0.75, 0.75), (1e-9, 0.5, 0.5)])
def test_self_conditioning_is_a_first_look_that_is_not_differentiated(rate: float, x0_hat: float, slope: float) -> None:
    stage = dataclasses.replace(BASE, model=_Halfway(), prediction="x0", self_cond_rate=rate)
    rows, params = batch(BASE, 4), {"gain": jnp.float32(1.0)}
    (loss, _), grads = jax.value_and_grad(stage.loss, has_aux=True)(params, rows, jax.random.key(0))
    x0 = np.asarray(rows["x0"], np.float64)
    np.testing.assert_allclose(loss, ((x0_hat - x0) ** 2).mean(), rtol=1e-5)
    # d x0_hat / d gain is the second look's own, 0.5 + 0.5 self_cond, with self_cond held fixed.
    np.testing.assert_allclose(grads["gain"], (2 * (x0_hat - x0) * slope).mean(), rtol=1e-4)


@pytest.mark.parametrize("stage", [BASE, SR])
def test_a_learned_variance_is_trained_by_the_bound_and_the_prediction_is_not(stage: Stage) -> None:
    both = dataclasses.replace(stage, model=stage.model.clone(learned_variance=True))
    params = jax.tree.map(lambda p: p + 0.02, _params(both))
    rows, rng = batch(stage, 4), jax.random.key(1)

    def last_layer(vlb_weight: float) -> np.ndarray:
        one = dataclasses.replace(both, vlb_weight=vlb_weight)
        grads = jax.jit(jax.grad(lambda p: one.loss(p, rows, rng)[0]))(params)
        return np.asarray(grads["conv_out"]["kernel"])

    little, much = last_layer(1e-6), last_layer(1.0)
    assert little.shape[-1] == 6
    np.testing.assert_allclose(much[..., :3], little[..., :3], rtol=1e-4, atol=1e-7)
    assert abs(much[..., 3:]).min() > 0
    np.testing.assert_allclose(much[..., 3:], 1e6 * little[..., 3:], rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vlb_weight": 0.0}, "vlb_weight"),
        ({"self_cond_rate": 1.5}, "self_cond_rate"),
    ],
)
def test_impossible_loss_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BASE, **change)
