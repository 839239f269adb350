"""What a stage's sampler can do besides drawing from noise, on networks whose answer is known."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process
from imagen_jax.diffusion.guidance import IntervalGuidance, OscillatingGuidance
from imagen_jax.diffusion.samplers import DDIMSampler, DDPMSampler, DPMSolverSampler
from imagen_jax.errors import UserError
from imagen_jax.models.backbone import CONDITIONS
from imagen_jax.sampling import stage_sampler
from imagen_jax.sampling.stage_sampler import SampleRows, image_keys, sample_stage
from imagen_jax.stage.guided import Edit
from imagen_jax.stage.sampling_config import SamplingConfig
from tests.sampling.test_stage_sampler import MEAN, ORACLE, STD
from tests.tiny import BASE

PLAIN = SamplingConfig(num_steps=50, thresholding="none")


class Told(nn.Module):
    """A network that is a plain function."""

    function: Callable[..., jax.Array]
    learned_variance: bool = False
    size_factor = 1
    conditions = CONDITIONS

    @nn.compact
    def __call__(self, z_t, log_snr, cond):
        return self.function(z_t, log_snr, cond)


def _draw(stage, config, rows: int = 8, seed: int = 0, **options) -> np.ndarray:
    text = (jnp.zeros((rows, 6, 12)), jnp.ones((rows, 6), bool))
    return np.asarray(sample_stage(stage, config, {}, SampleRows(image_keys(seed, jnp.arange(rows)), *text), **options))


def test_image_to_image_ends_where_the_flow_from_the_noised_image_does() -> None:
    """For N(m, s²) the flow maps z_t to m + s (z_t - alpha m) / sqrt(alpha² s² + sigma²), whose mean is known."""
    image, strength = 0.35, 0.5
    given = Edit(image=jnp.full((16, 16, 16, 3), image), strength=strength)
    config = dataclasses.replace(PLAIN, sampler=DPMSolverSampler())
    drawn = _draw(ORACLE, config, 16, edit=given)
    alpha2 = np.cos(np.pi / 2 * strength) ** 2
    spread = np.sqrt(alpha2 * STD**2 + 1 - alpha2)
    # With text the oracle's mean is -MEAN.
    expected = -MEAN + STD * np.sqrt(alpha2) * (image + MEAN) / spread
    assert abs(drawn.mean() - expected) < 0.01
    assert abs(drawn.std() - STD * np.sqrt(1 - alpha2) / spread) < 0.01
    near = _draw(ORACLE, config, 4, edit=Edit(image=jnp.full((4, 16, 16, 3), image), strength=0.02))
    assert abs(near - image).max() < 0.2


def _one_grey(z_t: jax.Array, log_snr: jax.Array, cond) -> jax.Array:
    """eps for images of one grey, which is N(0, 0.5²): all pixels tell of it together."""
    alpha, sigma = process.alpha_sigma(log_snr, z_t.ndim)
    pixels = z_t[0].size
    mean = jnp.mean(z_t, axis=(1, 2, 3), keepdims=True)
    x0 = alpha * 0.25 * mean / (alpha**2 * 0.25 + sigma**2 / pixels)
    return (z_t - alpha * x0) / sigma


def test_inpainting_keeps_what_is_given_and_resampling_makes_the_rest_fit() -> None:
    stage = dataclasses.replace(BASE, model=Told(_one_grey), prediction="eps")
    greys = np.linspace(-0.8, 0.8, 8, dtype=np.float32)
    image = np.broadcast_to(greys[:, None, None, None], (8, 8, 8, 3))
    mask = np.zeros((8, 8, 8, 1), np.float32)
    mask[:, :, 1:] = 1  # One column of eight is kept.
    off = {}
    for rounds, length in ((1, 1), (8, 5)):
        edit = Edit(image=jnp.asarray(image), mask=jnp.asarray(mask), num_resamples=rounds, jump_length=length)
        drawn = _draw(stage, dataclasses.replace(PLAIN, num_steps=30, sampler=DDPMSampler()), edit=edit)
        np.testing.assert_array_equal(drawn[:, :, 0], image[:, :, 0])
        off[rounds] = abs(drawn[:, :, 1:].mean(axis=(1, 2, 3)) - greys).mean()
    assert off[8] < 0.5 * off[1] and off[8] < 0.1


def test_guidance_schedules_at_their_ends_are_constant_guidance() -> None:
    constant = dataclasses.replace(PLAIN, guidance_weight=2.0)
    never = dataclasses.replace(constant, guidance_schedule=IntervalGuidance(t_min=0.999, t_max=0.9999))
    always = dataclasses.replace(constant, guidance_schedule=IntervalGuidance(t_min=0.0, t_max=1.0))
    both = dataclasses.replace(constant, guidance_schedule=OscillatingGuidance(low=2.0))
    plain = _draw(ORACLE, constant)
    np.testing.assert_array_equal(_draw(ORACLE, always), plain)
    np.testing.assert_array_equal(_draw(ORACLE, both), plain)
    np.testing.assert_allclose(_draw(ORACLE, never), _draw(ORACLE, PLAIN), atol=1e-6)


def test_without_guidance_a_step_of_an_interval_leaves_the_null_call_out() -> None:
    """Weight 1 by interval gives what weight 1 for all does, and in between the result lies in between."""
    constant = dataclasses.replace(PLAIN, guidance_weight=3.0)
    means = [
        _draw(ORACLE, dataclasses.replace(constant, guidance_schedule=schedule)).mean()
        for schedule in (IntervalGuidance(t_min=0.3, t_max=0.6), OscillatingGuidance(low=1.0))
    ]
    assert all(-5 * MEAN < mean < -MEAN for mean in means)


def test_self_conditioning_hands_the_last_estimate_on() -> None:
    """x0_hat = (1 + last x0_hat) / 2, from 0: after N calls 1 - 2^-N."""
    half = Told(lambda z_t, log_snr, cond: 0.5 + 0.5 * cond.self_cond)
    stage = dataclasses.replace(BASE, model=half, prediction="x0", self_cond_rate=0.5)
    for calls in (1, 3):
        drawn = _draw(stage, dataclasses.replace(PLAIN, num_steps=calls), 2)
        np.testing.assert_allclose(drawn, 1 - 0.5**calls, atol=1e-6)


def test_self_conditioning_is_given_estimates_as_training_clips_them() -> None:
    """x0_hat = 1.5 - 3/4 of the last, without thresholding: the second look sees 1, not 1.5, and gives 0.75."""
    seen = Told(lambda z_t, log_snr, cond: 1.5 - 0.75 * cond.self_cond)
    stage = dataclasses.replace(BASE, model=seen, prediction="x0", self_cond_rate=0.5)
    drawn = _draw(stage, dataclasses.replace(PLAIN, num_steps=2, thresholding="none"), 2)
    np.testing.assert_allclose(drawn, 0.75, atol=1e-6)


@pytest.mark.parametrize(("output", "gamma"), [(-1.0, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_a_learned_variance_decides_between_the_bounds(output: float, gamma: float) -> None:
    def eps(z_t, log_snr, cond):
        return 0.3 * z_t

    def with_variance(z_t, log_snr, cond):
        return jnp.concatenate([eps(z_t, log_snr, cond), jnp.full_like(z_t, output)], axis=-1)

    learned = dataclasses.replace(BASE, model=Told(with_variance, True), prediction="eps")
    fixed = dataclasses.replace(BASE, model=Told(eps), prediction="eps")
    config = dataclasses.replace(PLAIN, num_steps=6, guidance_weight=2.0)
    ours = _draw(learned, dataclasses.replace(config, sampler=DDPMSampler()))
    theirs = _draw(fixed, dataclasses.replace(config, sampler=DDPMSampler(gamma=gamma)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_sizes_need_not_be_square_nor_drawn_whole() -> None:
    config = dataclasses.replace(PLAIN, num_steps=8)
    wide = _draw(ORACLE, config, 2, size=(8, 20))
    assert wide.shape == (2, 8, 20, 3)
    tiles = dataclasses.replace(config, tile_size=8, tile_overlap=2)
    # At t = 1 an eps prediction is divided by alpha = 4.5e-5, and so is its rounding.
    np.testing.assert_allclose(_draw(ORACLE, tiles, 2, size=(8, 20)), wide, atol=1e-3)


def test_an_image_has_its_own_seed() -> None:
    keys = image_keys(jnp.array([5, 9], jnp.uint32), jnp.zeros(2, jnp.uint32))
    alone = image_keys(9, jnp.zeros(1, jnp.uint32))
    np.testing.assert_array_equal(jax.random.key_data(keys[1]), jax.random.key_data(alone[0]))
    assert (jax.random.key_data(keys[0]) != jax.random.key_data(keys[1])).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 0.0}, "strength"),
        ({"strength": 1.5}, "strength"),
        ({"num_resamples": 0}, "num_resamples"),
        ({"num_resamples": 10**9}, "num_resamples"),
        ({"jump_length": -2}, "jump_length"),
    ],
)
def test_impossible_edits_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Edit(image=jnp.zeros((1, 8, 8, 3)), **change)


def test_other_times_of_the_same_number_compile_nothing_new() -> None:
    config = dataclasses.replace(PLAIN, num_steps=7, guidance_weight=2.0, sampler=DDIMSampler(eta=0.5))
    edit = Edit(image=jnp.zeros((2, 16, 16, 3)), strength=0.8)
    _draw(ORACLE, config, 2, edit=edit)
    compiled = stage_sampler.draw._cache_size()
    _draw(ORACLE, dataclasses.replace(config, guidance_weight=7.0), 2, 1, edit=dataclasses.replace(edit, strength=0.4))
    assert stage_sampler.draw._cache_size() == compiled
