"""Sampling of one stage, against distributions that are known exactly."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process
from imagen_jax.diffusion.guidance import IntervalGuidance
from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverSampler, HeunSampler
from imagen_jax.diffusion.schedules import EDMSchedule
from imagen_jax.errors import UserError
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.models.denoiser import Conditioning
from imagen_jax.sampling import stage_sampler
from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
from imagen_jax.sharding.mesh import MeshConfig
from imagen_jax.sharding.rules import param_shardings
from imagen_jax.stage.sampling_config import SamplingConfig
from tests.tiny import BASE, SR, batch

MEAN, STD = 0.2, 0.15


class GaussianOracle(nn.Module):
    """The exact eps prediction when every pixel of x0 is N(MEAN, STD²); with text, the mean is -MEAN."""

    size_factor = 1
    learned_variance = False
    conditions = CONDITIONS

    @nn.compact
    def __call__(self, z_t: jax.Array, log_snr: jax.Array, cond: Conditioning) -> jax.Array:
        alpha, sigma = process.alpha_sigma(log_snr, z_t.ndim)
        mean = jnp.where(cond.text_mask.any(1), -MEAN, MEAN)[:, None, None, None]
        return sigma * (z_t - alpha * mean) / (alpha**2 * STD**2 + sigma**2)


ORACLE = dataclasses.replace(BASE, model=GaussianOracle(), image_size=16, prediction="eps")


def _text(rows: int, has_text: bool) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros((rows, 6, 12)), jnp.full((rows, 6), has_text)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPMSampler(),
        DDPMSampler(gamma=1.0),
        DDIMSampler(),
        DDIMSampler(eta=1.0),
        DPMSolverSampler(),
        DPMSolverSampler(eta=1.0),
        HeunSampler(),
        HeunSampler(churn=0.2),
    ],
)
def test_samples_have_the_distribution_of_the_data(sampler) -> None:
    schedule = EDMSchedule() if isinstance(sampler, HeunSampler) else None
    config = SamplingConfig(num_steps=100, sampler=sampler, schedule=schedule, thresholding="none")
    x0 = np.asarray(sample_stage(ORACLE, config, {}, SampleRows(image_keys(0, jnp.arange(16)), *_text(16, True))))
    assert abs(x0.mean() + MEAN) < 0.01
    # The last step returns the mean of x0 given z_t, which takes away a little of the spread.
    assert 0.9 * STD < x0.std() < 1.05 * STD


def test_guidance_extrapolates_from_the_null_text() -> None:
    """With x0_hat affine in the mean, weight w puts the mean at w (-MEAN) + (1 - w) MEAN."""
    rows = SampleRows(image_keys(1, jnp.arange(8)), *_text(8, True))
    for weight, mean in ((0.0, MEAN), (1.0, -MEAN), (2.0, -3 * MEAN)):
        config = SamplingConfig(num_steps=100, guidance_weight=weight, thresholding="none")
        x0 = np.asarray(sample_stage(ORACLE, config, {}, rows))
        assert abs(x0.mean() - mean) < 0.02
    # From another text that has the same mean, no weight leads away.
    same = Conditioning(*_text(1, True))
    x0 = np.asarray(sample_stage(ORACLE, config, {}, rows, null=same))
    assert abs(x0.mean() + MEAN) < 0.02


def _sr_params():
    leaves, tree = jax.tree.flatten(nn.unbox(jax.jit(SR.init)(jax.random.key(0))))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_images", "config", "options"),
    [
        (8, MeshConfig(data=2, fsdp=2, tensor=2), {}),
        (3, MeshConfig(fsdp=4, spatial=2), {"guidance_schedule": IntervalGuidance(t_min=0.3, t_max=0.8)}),
        (2, MeshConfig(fsdp=2, data=4), {"tile_size": 4, "sampler": DPMSolverSampler()}),
    ],
    ids=["some each", "all each, guided now and then", "in tiles"],
)
def test_a_mesh_draws_what_one_device_does(num_images: int, config: MeshConfig, options: dict) -> None:
    params, rows = _sr_params(), batch(SR, num_images)
    mesh = config.build()
    sharded = jax.device_put(params, param_shardings(jax.eval_shape(SR.init, jax.random.key(0)), mesh))
    sampling = SamplingConfig(num_steps=4, guidance_weight=2.0, **options)

    def draw(params, mesh):
        given = SampleRows(image_keys(5, jnp.arange(num_images)), rows["text"], rows["text_mask"], rows["low_res"])
        return np.asarray(sample_stage(SR, sampling, params, given, mesh=mesh))

    np.testing.assert_allclose(draw(sharded, mesh), draw(params, None), atol=1e-5)


def test_an_image_does_not_depend_on_its_batch() -> None:
    params, rows = _sr_params(), batch(SR, 4)
    config = SamplingConfig(num_steps=4, sampler=DDPMSampler(), guidance_weight=3.0, aug_level=0.3)
    given = SampleRows(image_keys(5, jnp.arange(4)), rows["text"], rows["text_mask"], rows["low_res"])
    all_four = sample_stage(SR, config, params, given)
    order = jnp.array([2, 0])
    two = sample_stage(SR, config, params, SampleRows(*(array[order] for array in given)))
    np.testing.assert_allclose(two, all_four[order], atol=1e-4)
    assert np.abs(all_four[0] - all_four[1]).max() > 1e-3
    assert np.abs(all_four).max() <= 1.0


def test_weights_and_levels_compile_nothing_new() -> None:
    params, rows = _sr_params(), batch(SR, 2)
    given = SampleRows(image_keys(0, jnp.arange(2)), rows["text"], rows["text_mask"], rows["low_res"])

    def draw(**changes) -> None:
        config = SamplingConfig(**{"num_steps": 2, "guidance_weight": 2.0, **changes})
        sample_stage(SR, config, params, given)

    draw()
    compiled = stage_sampler.draw._cache_size()
    draw(guidance_weight=5.0, aug_level=0.4, schedule=EDMSchedule())
    assert stage_sampler.draw._cache_size() == compiled
    draw(num_steps=3)
    assert stage_sampler.draw._cache_size() == compiled + 1


def test_low_res_belongs_to_super_resolution_alone() -> None:
    rows = batch(SR, 2)
    text = SampleRows(image_keys(0, jnp.arange(2)), rows["text"], rows["text_mask"])
    config = SamplingConfig(num_steps=1)
    with pytest.raises(UserError, match="low_res of stage 'sr': got none, expected images"):
        sample_stage(SR, config, {}, text)
    with pytest.raises(UserError, match="low_res of stage 'base': got images, expected none"):
        sample_stage(BASE, config, {}, text._replace(low_res=rows["low_res"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"guidance_weight": -1.0}, "guidance_weight"),
        ({"percentile": 0.995}, "0-100"),
        ({"thresholding": "soft"}, "must be one of"),
        ({"aug_level": 2.0}, "aug_level"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingConfig(**change)
